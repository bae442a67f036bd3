"""The page that `vtsweep ui` opens: what it says of each study, and what it hands out."""

from __future__ import annotations

import io
import json
import urllib.error
import urllib.request
from contextlib import nullcontext
from pathlib import Path

import pytest

from orchestrator.store.filesystem import Storage
from orchestrator.store.study_record import DEFAULT_STORAGE
from orchestrator.tracking import ui
from orchestrator.tracking.landing import answer_request, landing_page, landing_server
from orchestrator.tracking.tracker import default_uri

LINKS = {
    "mine": ("http://127.0.0.1:5000/#/experiments/1", {"Compression against accuracy": "http://127.0.0.1:5000/#/v"})
}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    folder = tmp_path / "studies" / "mine"
    (folder / "report" / "figures").mkdir(parents=True)
    point = {"label": "base", "axes": {}, "config": {}, "stages": {"capture": "0" * 16, "correlate": "1" * 16}}
    record = {
        "name": "mine",
        "versions": {},
        "stages": ["capture"],
        "points": [point],
        "created": "2026-11-26T10:00:00",
    }
    record |= dict.fromkeys(("file", "text"), "") | {"hardware": {}, "seconds": {}}
    record |= {"description": "Do <many> objects matter?", "command": "vtsweep run mine.yaml"}
    (folder / "study.json").write_text(json.dumps(record))
    (folder / "report" / "report.html").write_text("<html>the report</html>")
    (folder / "report" / "figures" / "a.png").write_bytes(b"png")
    (folder / "report" / "notes.txt").write_text("not for the page")
    (folder / "report" / "answers.json").write_text(
        json.dumps([{"sentence": "They do: 0.9 [0.8, 1.0].", "verdicts": []}])
    )
    done = tmp_path / "capture" / ("0" * 16)
    done.mkdir(parents=True)
    (done / "_SUCCESS").write_text("{}")
    return Storage(str(tmp_path))


def test_a_study_stands_there_with_its_answer_state_report_and_views(storage: Storage) -> None:
    page = landing_page(storage, LINKS)
    for part in ("They do: 0.9 [0.8, 1.0].", "1 of 2 stages done", "/report/mine/report.html", "vtsweep run mine.yaml",
                 "Compression against accuracy", "Do &lt;many&gt; objects matter?"):  # fmt: skip
        assert part in page
    assert 'http-equiv="refresh"' in page  # it is not finished


def test_a_finished_study_without_a_report_says_how_to_write_one(storage: Storage) -> None:
    Path(storage.path("studies/mine/report/report.html")).unlink()
    assert "no report yet" not in landing_page(storage, LINKS)  # it is not finished
    for stage in Path(storage.uri).glob("c*/*"):
        stage.rename(stage.with_name("1" * 16))
    record = storage.read_json("studies/mine/study.json")
    record["points"] = [{**p, "stages": {"capture": "1" * 16}} for p in record["points"]]
    storage.write_json("studies/mine/study.json", record)
    assert f"vtsweep report {storage.uri}/studies/mine" in landing_page(storage, LINKS)


def test_a_damaged_record_is_named_and_hides_no_other(storage: Storage) -> None:
    broken = Path(storage.path("studies/broken"))
    broken.mkdir()
    (broken / "study.json").write_text("{")
    page = landing_page(storage, {})
    assert "is damaged" in page
    assert "They do" in page


def test_an_empty_storage_says_how_to_begin(tmp_path: Path) -> None:
    assert "vtsweep run" in landing_page(Storage(str(tmp_path / DEFAULT_STORAGE)), {})


@pytest.mark.parametrize(("path", "kind"), [("report.html", "text/html"), ("figures/a.png", "image/png")])
def test_reports_and_their_figures_are_handed_out(storage: Storage, path: str, kind: str) -> None:
    status, found, _ = answer_request(storage, f"/report/mine/{path}", dict)
    assert status == 200
    assert found.startswith(kind)


@pytest.mark.parametrize(
    "path",
    [
        "/report/mine/notes.txt",
        "/report/mine/../study.json",
        "/report/mine/%2e%2e/study.json",
        "/report/..%2f..%2fetc/passwd.html",
        "/report/mine//etc/passwd.html",
        "/studies/mine/study.json",
        "/report/other/report.html",
    ],
)
def test_nothing_else_is(storage: Storage, path: str) -> None:
    assert answer_request(storage, path, dict)[0] == 404


def test_only_pages_of_this_machine_are_answered(storage: Storage) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with landing_server(storage, 0, dict) as address:
        with opener.open(address, timeout=10) as answer:
            assert b"They do" in answer.read()
        with pytest.raises(urllib.error.HTTPError) as refused:
            opener.open(urllib.request.Request(address, headers={"Host": "evil.example.org"}), timeout=10)
    assert refused.value.code == 403


def test_servers_listen_on_loopback_alone(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    with landing_server(storage, 0, dict) as address:
        port = int(address.rpartition(":")[2])
        listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        assert [one for one in listening if one.endswith(f":{port:04X}") and one.startswith("0100007F")]
        assert not [one for one in listening if one.endswith(f":{port:04X}") and one.startswith("00000000")]
    started: list[list[str]] = []

    class Server:
        def __init__(self, command: list[str], **_: object) -> None:
            started.append(command)
            raise OSError("not started")

    monkeypatch.setattr(ui.subprocess, "Popen", Server)
    with pytest.raises(OSError, match="not started"), ui.ui_server("sqlite:///none"):
        pass
    (command,) = started
    assert command[command.index("--host") + 1] == "127.0.0.1"


def test_the_servers_stray_folder_of_an_encoded_path_goes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a#b"
    folder.mkdir()
    stray = tmp_path / "a%23b"

    class Server:
        pid, stdout = 0, io.BytesIO()

        def __init__(self, *_: object, **__: object) -> None:
            stray.mkdir()

        def terminate(self) -> None: ...
        def wait(self, timeout: float) -> None: ...

    monkeypatch.setattr(ui.subprocess, "Popen", Server)
    monkeypatch.setattr(ui, "guarded_process", lambda _: nullcontext())
    monkeypatch.setattr(ui, "_wait", lambda *_: None)
    with ui.ui_server(default_uri(Storage(str(folder))) or ""):
        assert stray.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["a#b"]
