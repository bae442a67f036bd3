"""Every command of a quick start on a local disk, on S3 (a server on loopback) and on this process's memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import polars as pl
import pytest
import yaml
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from orchestrator.cli import app
from orchestrator.store.filesystem import Storage
from tests.faults.s3_server import S3Server

QUICKSTART = {
    "name": "everywhere",
    "stages": ["capture", "correlate", "probe", "finetune", "ablate"],
    "base": {
        "model": {"name": "reference-joint"},
        "capture": {"n_vision_positions": 2, "n_text_positions": 1},
        "correlate": {"n_bootstrap": 0},
        "probe": {"solvers": ["ridge"], "attributes": ["n_dogs"], "layers": [1], "n_bootstrap": 0, "n_folds": 2},
        "finetune": {
            "n_examples": 8,
            "n_steps": 2,
            "batch_size": 4,
            "n_eval_per_family": 1,
            "n_capture_images": 4,
            "n_capture_questions": 0,
            "task": {"families": ["colour", "count"], "width": 112, "height": 112},
        },
        "ablate": {
            "checks": ["deletion", "policy"],
            "low_families": ["colour", "count"],
            "high_families": ["count"],
            "n_per_family": 4,
            "deleted_shares": [0.5],
            "methods": ["norm"],
            "seeds": [0],
        },
        "how": {"backend": "local", "batch_size": 12, "shard_size": 12, "torch_threads": 1},
    },
    "axes": {"finetune.complexity_ratio": [0.0, 1.0]},
}
"""The quick start, shrunk, with the checks that draw a policy."""


@pytest.fixture(params=["local", "s3", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A storage of each kind, empty."""
    if request.param == "local":
        yield str(tmp_path / "with space, 50%&#1")
    elif request.param == "s3":
        yield request.getfixturevalue("s3_server").bucket()
    else:
        yield "memory://places"
        MemoryFileSystem.store.clear()


Told = Callable[..., dict[str, Any]]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    """What a command prints as JSON; it must end with 0."""

    def command(*arguments: str) -> dict[str, Any]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            app.main([*arguments, "--json"])
        printed = capsys.readouterr().out
        assert ended.value.code == 0, f"{arguments}: {printed}"
        return dict(json.loads(printed)) if printed.startswith("{") else {"rows": json.loads(printed)}

    return command


def put_photographs(uri: str) -> None:
    """A folder of pictures and a table of attributes, through the file system alone."""
    fs, root = fsspec.core.url_to_fs(uri)
    fs.makedirs(root, exist_ok=True)
    for k in range(24):
        with fs.open(f"{root}/{k}.png", "wb") as file:
            Image.new("RGB", (112, 112), (10 * k, 255 - 10 * k, 90)).save(file, format="png")
    rows = "".join(f"{k}.png,{k % 5}\n" for k in range(24))
    fs.pipe_file(f"{root}/attributes.csv", f"file,n_dogs\n{rows}".encode())


def test_every_command_works_wherever_results_and_images_lie(
    place: str, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.report.build.study_figures", lambda _: ())
    monkeypatch.chdir(tmp_path)
    storage, images = f"{place}/results", f"{place}/photographs"
    put_photographs(images)
    file = tmp_path / "quickstart.yaml"
    file.write_text(yaml.safe_dump(QUICKSTART))
    database = f"sqlite:///{tmp_path}/runs/runs.db"
    given = [str(file), f"storage={storage}", "data.source=folder", f"data.root={images}", f"track.uri={database}"]

    planned = told("plan", *given)
    assert told("data", *given)["n_rows"] == 24
    done = told("run", *given)
    study = f"{storage}/studies/everywhere"
    assert done["report"] == f"{study}/report/report.html"
    assert b"<html" in Storage(study).read("report/report.html")
    assert {row["state"] for row in told("status", study)["stages"]} == {"done"}
    found = told("verify", study)
    assert not found["damaged"]
    assert all(row["shards"] for row in found["stages"])
    assert told("report", study)["report"][0] == done["report"]
    compared = told("compare", study, study, "--out", f"{place}/comparison")
    assert compared["report"] == f"{place}/comparison/report.html"
    assert b"<html" in Storage(f"{place}/comparison").read("report.html")
    assert told("track", storage, "--uri", database) == {"sent": 0, "waiting": 0}, "the run has sent everything"
    check_artifacts(storage, database)
    (ablation,) = Storage(storage).files("ablate")
    policy = f"{storage}/ablate/{ablation}/policy.yaml"
    evaluated = told("evaluate", *given, "--policy", policy)
    assert evaluated["reference-joint"]
    assert told("plan", *given)["stages"] != planned["stages"], "the plan sees what is done"
    for stage in QUICKSTART["stages"]:
        assert told(str(stage), *given)["stages"]
    packed = told("pack", study, "--out", f"{place}/packed")
    assert "tables/trials.parquet" in packed["files"]
    assert Storage(f"{place}/packed").exists("README.md")
    trial = Storage(storage).files("finetune")[0]
    told("export", str(tmp_path / "merged"), f"model.adapter={storage}/finetune/{trial}/adapter")
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    check_in_python(study)
    check_job(storage, given, told, monkeypatch)
    left = sorted(path.name for path in tmp_path.iterdir())
    expected = {"quickstart.yaml", "runs", "merged", "with space, 50%&#1"}
    assert set(left) <= expected, "nothing is written to where the command was typed"


def check_artifacts(storage: str, database: str) -> None:
    """Artifacts of MLflow lie in the storage, where MLflow knows its kind, else beside the database."""
    from mlflow import MlflowClient

    client = MlflowClient(database)
    experiment = client.get_experiment_by_name("everywhere")
    (run,) = client.search_runs([experiment.experiment_id], "attributes.run_name = 'report'")
    assert {"report.html"} <= {file.path for file in client.list_artifacts(run.info.run_id)}
    home = str(Path(database.removeprefix("sqlite:///")).parent) if storage.startswith("memory:") else storage
    name = experiment.artifact_location.rpartition("/")[2]
    assert name in Storage(home).files("mlflow-artifacts")


def check_in_python(study: str) -> None:
    import vtsweep

    loaded = vtsweep.Study.load(study)
    assert loaded.trials.collect().height == 2
    assert loaded.layer_metrics.filter(pl.col("group") == "vision").collect().height > 24
    assert loaded.probes.select(pl.len()).collect().item() > 0


def check_job(storage: str, given: list[str], told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job is given the storage as it was named."""
    jobs: list[dict[str, Any]] = []
    client = SimpleNamespace(submit_job=lambda **job: jobs.append(job) or "job-1")
    monkeypatch.setattr("orchestrator.cluster.submit._connect", lambda _: (client, "http://head:8265"))
    assert told("submit", *given)["status"] == "SUBMITTED"
    assert f"storage={storage}" in jobs[0]["entrypoint"]


def test_a_store_without_a_database_says_where_runs_can_go(
    capsys: pytest.CaptureFixture[str], s3_server: S3Server
) -> None:
    with pytest.raises(SystemExit) as ended:
        app.main(["ui", f"{s3_server.bucket()}/results"])
    assert ended.value.code == 5
    assert "no runs in" in capsys.readouterr().err
