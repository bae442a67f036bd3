"""A study's record, read back: its distinct stages, its machine, and its files against their checksums."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import ModelConfig, RunConfig, ScenesConfig
from orchestrator.store import provenance
from orchestrator.store.filesystem import Storage
from orchestrator.store.stage_folder import Stage
from orchestrator.store.study_record import Study
from orchestrator.store.tables.core import rejected_rows
from orchestrator.store.verify import verify_study


def begun(storage: Storage, seed: int, n_shards: int = 2) -> Stage:
    stage = Stage(storage, "capture", {"version": 1, "seed": seed})
    stage.open()
    for shard in range(n_shards):
        stage.write_shard(shard, {"rejected": rejected_rows([(shard, "a", "broken")], "rejected")})
    stage.mark_done({"images": n_shards})
    return stage


def point(seed: int, stages: dict[str, str]) -> dict[str, Any]:
    run = RunConfig(model=ModelConfig(name="reference-joint"), data=ScenesConfig(n_images=2, seed=seed))
    return {"label": f"seed {seed}", "axes": {"seed": seed}, "config": run.model_dump(mode="json"), "stages": stages}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    storage = Storage(str(tmp_path))
    first, second = begun(storage, 0), begun(storage, 1)
    points = [
        point(0, {"capture": first.digest}),
        point(0, {"capture": first.digest, "probe": "0" * 16}),
        point(1, {"capture": second.digest}),
    ]
    return Study(storage, {"name": "s", "stages": ["capture", "probe"], "points": points, "versions": {}})


def test_points_that_share_a_stage_have_one_view_of_it_and_stages_not_begun_none(study: Study) -> None:
    digests = [point["stages"]["capture"] for point in study.record["points"]]
    views = study.views("capture")
    assert [view.stage.digest for view in views] == [digests[0], digests[2]]
    assert [view.axes for view in views] == [{"seed": 0}, {"seed": 1}]
    assert len({view.label for view in views}) == 2
    assert study.views("probe") == study.views("finetune") == []
    assert [view.stage.digest for view in study.views("capture", only=[digests[2]])] == [digests[2]]


def test_every_shard_is_checked_and_counted_once(study: Study) -> None:
    counted: list[int] = []
    findings = verify_study(study, counted.append)
    assert [(f.stage, f.n_shards, f.problems) for f in findings] == [("capture", 2, ()), ("capture", 2, ())]
    assert counted == [1, 1, 1, 1]
    assert all(f.n_bytes > 0 for f in findings)


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="needs Linux")
def test_the_machine_s_memory_is_in_gigabytes() -> None:
    lines = Path("/proc/meminfo").read_text().splitlines()
    kilobytes = int(next(line.split()[1] for line in lines if line.startswith("MemTotal")))
    assert provenance.hardware()["memory_gb"] == pytest.approx(1024 * kilobytes / 1e9, rel=0.02, abs=0.1)


def test_the_commit_is_marked_by_changes_of_the_package_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, page = tmp_path / "package" / "store" / "provenance.py", tmp_path / "page.md"
    module.parent.mkdir(parents=True)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    monkeypatch.setattr(provenance, "__file__", str(module))
    commit = provenance.source_commit.__wrapped__

    def run(*arguments: str) -> None:
        subprocess.run([*git, *arguments], check=True, capture_output=True)

    run("init")
    for path in (module, page):
        path.write_text("a")
    run("add", "page.md")
    run("commit", "-m", "page")
    assert commit() == "unknown"  # a copy that is not the repository's own
    run("add", ".")
    run("commit", "-m", "package")
    page.write_text("b")
    assert len(clean := commit()) == 40
    module.write_text("b")
    assert commit() == clean + "+"
