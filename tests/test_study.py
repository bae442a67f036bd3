"""The main flow on a small study: what is written, what is not done twice, what is refused before work."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import polars as pl
import pytest

from orchestrator.errors import ConfigError, DataError, ModelError, StorageError
from orchestrator.store.study_record import Study
from orchestrator.study.run import run_study
from tests.conftest import tiny_study


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Study, str]:
    storage = tmp_path_factory.mktemp("results")
    study, report = run_study(tiny_study(storage), quiet=True)
    return storage, study, report


def test_a_study_leaves_tables_report_and_runs(finished: tuple[Path, Study, str]) -> None:
    storage, study, report = finished
    metrics = study.layer_metrics.collect()
    assert metrics["image_id"].n_unique() == 12
    assert set(metrics["group"]) == {"vision", "text"}
    assert metrics.filter(pl.col("tap") == "decoder")["layer"].unique().sort().to_list() == list(range(7))
    assert study.correlations.collect().height > 0
    assert Path(report).read_text(encoding="utf-8").startswith("<!doctype html>") or "<html" in Path(report).read_text()
    assert (storage / "mlflow.db").exists()
    assert Study.load(str(storage / "studies" / "tiny")).record == study.record


def test_the_mlflow_runs_nest_and_hold_curves(finished: tuple[Path, Study, str]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{finished[0] / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    child = runs["reference-joint on scenes"]
    parents = {name: r.info.run_id for name, r in runs.items()}
    assert child.data.tags["mlflow.parentRunId"] in (parents["capture"], parents["correlate"])
    captured = next(
        r for r in client.search_runs([experiment.experiment_id]) if "compression/vision/gini" in r.data.metrics
    )
    steps = client.get_metric_history(captured.info.run_id, "compression/vision/gini")
    assert sorted(m.step for m in steps) == list(range(7))


def test_a_finished_study_is_not_computed_again(
    finished: tuple[Path, Study, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a finished capture was computed again")

    monkeypatch.setattr("orchestrator.capture.shard_worker.CaptureWorker.__init__", forbidden)
    study, _ = run_study(tiny_study(finished[0]), quiet=True)
    assert study.layer_metrics.collect()["image_id"].n_unique() == 12


def test_a_lost_shard_alone_is_computed_again_to_the_same_values(tmp_path: Path) -> None:
    study, _ = run_study(tiny_study(tmp_path), stages=["capture"], quiet=True)
    stage = study.views("capture")[0].stage
    before = stage.scan("layer_metrics").collect()
    kept = Path(stage.store.path("layer_metrics/00000.parquet")).stat().st_mtime_ns
    Path(stage.store.path("layer_metrics/00001.parquet")).unlink()
    Path(stage.store.path("_SUCCESS")).unlink()
    run_study(tiny_study(tmp_path), stages=["capture"], quiet=True)
    after = stage.scan("layer_metrics").collect()
    assert before.equals(after)
    assert Path(stage.store.path("layer_metrics/00000.parquet")).stat().st_mtime_ns == kept


def test_points_that_share_a_capture_capture_once(tmp_path: Path) -> None:
    sweep = tiny_study(tmp_path, axes={"correlate.seed": [0, 1]})
    study, _ = run_study(sweep, quiet=True)
    assert len(study.views("capture")) == 1
    assert len(study.views("correlate")) == 2


@pytest.mark.parametrize(
    ("override", "error", "piece"),
    [
        ("model.name=reference-jont", ModelError, "reference-joint"),
        ("capture.metrics=[ginni]", ConfigError, "gini"),
        ("correlate.attributes=[n_object]", ConfigError, "n_objects"),
        ("correlate.hold_fixed=n_object", ConfigError, "n_objects"),
        ("data={source: coco, root: /no/such/place}", DataError, "/no/such/place"),
        ("data={source: scenes, width: 16, height: 16, n_objects: [900, 1000]}", ConfigError, "canvas"),
        ("storage=/proc/nowhere", StorageError, "/proc/nowhere"),
    ],
)
def test_bad_input_is_refused_before_work(tmp_path: Path, override: str, error: type[Exception], piece: str) -> None:
    with pytest.raises(error, match=piece):
        run_study(tiny_study(tmp_path, override), quiet=True)
    assert not (tmp_path / "capture").exists()


def test_loading_a_study_that_is_not_there_names_those_that_are(finished: tuple[Path, Study, str]) -> None:
    with pytest.raises(StorageError, match="tiny"):
        Study.load(str(finished[0] / "studies" / "tinny"))


def test_real_photographs_run_through_the_same_flow(tmp_path: Path, coco_root: Path) -> None:
    sweep = tiny_study(tmp_path, f"data={{source: coco, root: {coco_root}, n_images: 10}}")
    study, _ = run_study(sweep, quiet=True)
    images = study.images.collect()
    assert images.height == 10
    assert images["n_categories"].min() >= 1  # type: ignore[operator]


def test_a_table_s_own_key_is_not_covered_by_the_study_s_columns(tmp_path: Path) -> None:
    routes = ["image->last", "question->last"]
    ablate = {
        "checks": ["routes"],
        "routes": routes,
        "n_per_family": 2,
        "low_families": ["colour"],
        "high_families": [],
    }
    how = {"backend": "local", "batch_size": 4, "torch_threads": 1}
    base = {"model": {"name": "reference-joint"}, "ablate": ablate, "how": how}
    study, _ = run_study(tiny_study(tmp_path, stages=["ablate"], base=base), quiet=True)
    assert set(study.table("routes").collect()["source"]) == {"image", "question"}


def test_a_damaged_table_is_named_with_its_folder(finished: tuple[Path, Study, str], tmp_path: Path) -> None:
    from orchestrator.report.collect import gather_results

    shutil.copytree(finished[0], tmp_path / "copy")
    (table,) = (tmp_path / "copy" / "correlate").rglob("correlations/*.parquet")
    table.write_bytes(table.read_bytes()[:100])
    with pytest.raises(StorageError, match=r"correlate.*correlations/00000.parquet is damaged.*verify STUDY --redo"):
        gather_results(Study.load(str(tmp_path / "copy" / "studies" / "tiny")))


def test_next_commands_of_a_storage_with_spaces_can_be_pasted(tmp_path: Path) -> None:
    from orchestrator.report.collect import next_steps
    from orchestrator.store.filesystem import Storage

    storage = str(tmp_path / "my results")
    study = Study(Storage(storage), {"name": "mine", "stages": ["capture"]})
    assert shlex.split(next_steps(study)[0][0]) == ["vtsweep", "ui", storage]
