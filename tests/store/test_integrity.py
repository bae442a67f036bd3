"""What is read back is what was written: checksums, names, digests; nothing on storage is unpickled."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from orchestrator.errors import ConfigError, DamagedError, StorageError, VtsweepError
from orchestrator.store.filesystem import Storage
from orchestrator.store.load_stage import load_stage
from orchestrator.store.shard_files import _CHECKED
from orchestrator.store.stage_folder import Stage
from orchestrator.store.study_record import Study
from orchestrator.store.verify import redo, verify_study
from orchestrator.study.plan import make_plan
from orchestrator.study.run import run_study, write_report
from tests.conftest import tiny_study
from tests.points import run_capture


def make_stage(folder: Path) -> Stage:
    stage = Stage(Storage(str(folder)), "capture", {"x": 1})
    stage.open({"n": 2})
    for index in range(2):
        table = pl.DataFrame({"image_id": [f"{index}-{k}" for k in range(30)], "n": list(range(30))})
        features = np.arange(60, dtype=np.float16).reshape(30, 2)
        stage.write_shard(index, {"images": table}, {"features/decoder": features}, {"n": {1: 2}, "nan": float("nan")})
    return stage


def test_a_plan_calls_no_stage_done_whose_files_are_not_what_was_written(tmp_path: Path) -> None:
    sweep = tiny_study(tmp_path, "capture.layers=[0]", "capture.metrics=[gini]", stages=["capture"])
    folder = Path(run_capture(sweep.points[0].run, Storage(str(tmp_path)), quiet=True).store.path(""))
    assert [stage.done for stage in make_plan(sweep).stages] == ["done"]
    for file in ("stage.json", "_SUCCESS", "shards/00000.json", "layer_metrics/00000.parquet"):
        whole = (folder / file).read_bytes()
        for harmed in (whole[:-3], None):
            (folder / file).write_bytes(harmed) if harmed else (folder / file).unlink()
            if harmed or file.startswith("layer"):
                with pytest.raises(DamagedError, match=file.split("/")[-1]):
                    make_plan(sweep)
            (folder / file).write_bytes(whole)
    assert [stage.done for stage in make_plan(sweep).stages] == ["done"]


FILES = ("shards/00000.json", "images/00000.parquet", "features/decoder/00000.npy")


@pytest.mark.parametrize("file", FILES)
def test_any_changed_bit_of_a_shard_makes_it_no_shard(tmp_path: Path, file: str) -> None:
    stage = make_stage(tmp_path)
    path = Path(stage.store.path(file))
    data = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(data) * 8, 40):
        changed = bytearray(data)
        changed[place // 8] ^= 1 << (place % 8)
        path.write_bytes(changed)
        assert stage.read_shard(0) is None, f"bit {place}"
    path.write_bytes(data[:-1])
    assert stage.read_shard(0) is None
    path.write_bytes(data)
    assert list(stage.finished_shards()) == [0, 1]


def test_an_array_of_another_type_and_the_same_size_is_another_array(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    stage.store.write_array("features/decoder/00000.npy", np.arange(60, dtype=np.int16).reshape(30, 2))
    assert stage.read_shard(0) is None
    assert stage.read_shard(1) is not None


def test_resume_reads_no_byte_of_files_that_were_not_written_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = make_stage(tmp_path)
    read: list[str] = []
    whole = Storage.read
    monkeypatch.setattr(Storage, "read", lambda storage, name: read.append(name) or whole(storage, name))
    assert list(stage.finished_shards()) == [0, 1]
    assert read == ["shards/00000.json", "shards/00001.json"]
    path = Path(stage.store.path("features/decoder/00000.npy"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert list(stage.finished_shards()) == [1]


@pytest.mark.parametrize("file", FILES)
def test_nothing_is_read_from_a_finished_stage_but_what_was_written(tmp_path: Path, file: str) -> None:
    stage = make_stage(tmp_path)
    stage.mark_done({"n": 2})
    assert stage.scan("images").collect().height == 60
    path = Path(stage.store.path(file))
    kept = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)

    def use() -> None:
        stage.finished_shards()
        stage.scan("images")
        stage.arrays("features/decoder")

    with pytest.raises(DamagedError, match=r"is damaged.*vtsweep verify STUDY --redo"):
        use()
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))  # a disk that errs leaves times as they are
    _CHECKED.clear()
    with pytest.raises(DamagedError, match=file):
        use()


def test_further_files_and_the_closing_record_are_vouched_for(tmp_path: Path) -> None:
    stage = Stage(Storage(str(tmp_path)), "ablate", {"x": 1})
    stage.open()
    stage.write_shard(0, {}, files={"policy.yaml": b"share: 0.5"})
    stage.mark_done({"rules": 3})
    assert stage.read_file("policy.yaml") == b"share: 0.5"
    assert stage.summary() == {"rules": 3}
    Path(stage.store.path("policy.yaml")).write_bytes(b"share: 0.7")
    assert "policy.yaml" in (stage.check_shard(0)[0] or "")
    with pytest.raises(DamagedError, match=r"policy\.yaml"):
        stage.read_file("policy.yaml")
    closing = Path(stage.store.path("_SUCCESS"))
    closing.write_bytes(closing.read_bytes().replace(b"3", b"4", 1))
    with pytest.raises(DamagedError, match="_SUCCESS"):
        stage.summary()


def test_a_report_never_leaves_out_what_cannot_be_read(study: Path) -> None:
    loaded = Study.load(f"{study}/studies/tiny")
    (view,) = loaded.views("correlate")
    Path(view.stage.store.path("stage.json")).write_bytes(b"{")
    with pytest.raises(StorageError, match=r"stage\.json"):
        write_report(loaded, quiet=True)


def test_storage_that_does_not_answer_is_no_reason_to_do_a_shard_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = make_stage(tmp_path)

    def refuse(*_: object) -> bytes:
        raise StorageError("permission denied")

    monkeypatch.setattr(Storage, "read", refuse)
    with pytest.raises(StorageError, match="permission denied"):
        stage.read_shard(0)


@pytest.fixture(autouse=True, scope="module")
def _no_figures() -> Iterator[None]:
    """Drawing takes longer than all else together, and reads nothing that is not read here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orchestrator.study.run.write_report", lambda *_, **__: ["report.html"])
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    run_study(tiny_study(folder, "track.enabled=false"), quiet=True)
    return folder


@pytest.fixture
def study(finished: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(finished, tmp_path / "results"))


def test_verify_names_every_damaged_shard_and_redo_does_those_alone_again(study: Path) -> None:
    loaded = Study.load(f"{study}/studies/tiny")
    findings = verify_study(loaded)
    assert [f.stage for f in findings] == ["capture", "correlate"]
    assert not any(f.problems for f in findings)
    assert sum(f.n_bytes for f in findings) > 10_000
    capture = load_stage(loaded.storage, "capture", findings[0].digest)
    before = capture.scan("layer_metrics").collect()
    file = Path(capture.store.path("layer_metrics/00001.parquet"))
    kept = Path(capture.store.path("layer_metrics/00000.parquet")).stat().st_mtime_ns
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(data)
    (finding, other) = verify_study(loaded)
    assert finding.shards == (1,)
    assert "layer_metrics/00001.parquet" in finding.problems[0]
    assert not other.problems
    assert redo(loaded, [finding, other]) == [capture.store.uri]
    run_study(tiny_study(study, "track.enabled=false"), quiet=True)
    assert not any(f.problems for f in verify_study(loaded))
    assert capture.scan("layer_metrics").collect().equals(before)
    assert Path(capture.store.path("layer_metrics/00000.parquet")).stat().st_mtime_ns == kept


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "../../../x"),
        ("name", "other"),
        ("name", None),
        ("stages", ["../capture"]),
        ("points", [{"label": "a", "axes": {}, "config": {}, "stages": {"capture": "../../../../etc"}}]),
        ("points", "x"),
        ("seconds", {"capture": -1}),
        ("created", 3),
    ],
)
def test_a_record_that_names_another_place_is_refused(study: Path, key: str, value: Any) -> None:
    file = study / "studies/tiny/study.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    outside = {p for p in study.parent.rglob("*") if not p.is_relative_to(study)}
    with pytest.raises(StorageError, match=key):
        write_report(Study.load(f"{study}/studies/tiny"), quiet=True)
    assert {p for p in study.parent.rglob("*") if not p.is_relative_to(study)} == outside


@pytest.mark.parametrize("text", ["[" * 100_000, '{"name": 1' + "0" * 400 + "}", "\xff", "", "nul", '"\\ud800"', "[]"])
def test_a_record_that_is_no_record_is_refused(study: Path, text: str) -> None:
    (study / "studies/tiny/study.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(StorageError, match=r"study\.json"):
        Study.load(f"{study}/studies/tiny")


@pytest.mark.parametrize(
    "change",
    [
        {"what": []},
        {"inputs": {"capture": "../x"}},
        {"inputs": {"c!pture": "0" * 16}},
        {"what": {"x": float("nan")}},
        {"what": {"x": "\ud800"}},
        {"inputs": 3},
    ],
)
def test_a_stage_record_that_was_altered_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    stage = make_stage(tmp_path)
    record = json.loads(stage.store.read("stage.json"))
    stage.store.write("stage.json", json.dumps({**record, **change}).encode())
    with pytest.raises(DamagedError, match=rf"remove the folder {stage.store.uri} to begin the stage again"):
        load_stage(stage.storage, stage.name, stage.digest)


def test_a_plan_that_was_altered_is_refused(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    record = json.loads(stage.store.read("stage.json"))
    stage.store.write("stage.json", json.dumps({**record, "plan": {"n": 3}}).encode())
    with pytest.raises(StorageError, match="begin the stage again"):
        stage.open()


class Planted:
    """Unpickling it leaves a file behind."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def read_tables(study: Study) -> None:
    for table in (study.images, study.layer_metrics, study.correlations):
        table.collect()


def test_a_pickle_planted_in_any_file_of_a_study_is_never_run(study: Path, tmp_path: Path) -> None:
    from orchestrator.cli.status import study_status

    marker = tmp_path / "ran"
    payload = pickle.dumps(Planted(marker))
    object_array = (
        b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    )
    sweep = tiny_study(study, "track.enabled=false")
    files = [p for p in study.rglob("*") if p.is_file() and "report" not in p.parts]
    assert len(files) > 10
    for old in ("tune/x/tuner.pkl", "tune/x/experiment_state-1.json", "search/0/a.json"):
        (study / old).parent.mkdir(parents=True, exist_ok=True)
        files.append(study / old)
    for file in files:
        whole = file.read_bytes() if file.exists() else b""
        file.write_bytes((object_array if file.suffix == ".npy" else b"") + payload)
        for attempt in (read_tables, study_status, verify_study):
            with contextlib.suppress(VtsweepError, pl.exceptions.PolarsError):
                attempt(Study.load(f"{study}/studies/tiny"))
        assert not marker.exists(), file
        file.write_bytes(whole)
    run_study(sweep, quiet=True)
    assert not marker.exists()
    pickle.loads(payload)
    assert marker.exists(), "the payload works"


def test_unknown_names_of_a_policy_or_a_pickle_in_its_place_is_a_config_error(tmp_path: Path) -> None:
    from orchestrator.ablate.policy_file import load_policy

    file = tmp_path / "policy.yaml"
    for text in (
        pickle.dumps(Planted(tmp_path / "ran")),
        b"!!python/object/apply:os.mkdir [x]",
        b"[" * 9000,
        b"\xff",
        b"3",
    ):
        file.write_bytes(text)
        with pytest.raises(ConfigError, match="policy"):
            load_policy(str(file))
    assert not (tmp_path / "ran").exists()
