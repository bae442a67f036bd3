import sqlite3
import subprocess
import sys
import warnings
from pathlib import Path

import polars as pl
import pytest

from orchestrator.config import RunConfig, TrackConfig
from orchestrator.store.stage_folder import Stage, Storage
from orchestrator.tracking.outbox import Content, Outbox
from orchestrator.tracking.runs import Tracker, track_pending

pytest.importorskip("mlflow")
NOWHERE = "http://ada:hunter2@127.0.0.1:9/mlflow"
"""Nothing listens on the discard port."""


def _content(value: float = 0.5) -> Content:
    return Content(
        params={"model": "reference-joint", "complexity_ratio": value},
        metrics={"accuracy/high": value, "not a number": float("nan"), "absent": None},
        curves={"compression/vision/gini": [(0, 0.1), (1, 0.4), (2, float("nan"))]},
        tables={"correlations": pl.DataFrame({"layer": [0, 1], "rho": [0.1, -0.2]})},
        figures={"fig1.png": b"\x89PNG", "report.html": b"<p>"},
        note="a *note*",
    )


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables: making one takes seconds, copying it does not."""
    folder = tmp_path_factory.mktemp("mlflow")
    Tracker(TrackConfig(), "first", Storage(str(folder))).log_group("made", "0", None, Content())
    return folder / "mlflow.db"


@pytest.fixture
def storage(tmp_path: Path, empty_database: Path) -> Storage:
    (tmp_path / "mlflow.db").write_bytes(empty_database.read_bytes())
    return Storage(str(tmp_path))


def _runs(storage: Storage, study: str = "study") -> list:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{storage.path('mlflow.db')}")
    experiment = client.get_experiment_by_name(study)
    return [] if experiment is None else list(client.search_runs([experiment.experiment_id]))


def _stage(storage: Storage, what: int = 0, name: str = "capture") -> Stage:
    return Stage(storage, name, {"what": what})


def test_a_stage_is_logged_once_with_params_metrics_curves_and_artifacts(storage):
    from mlflow import MlflowClient

    tracker = Tracker(TrackConfig(), "study", storage)
    stage = _stage(storage)
    assert tracker.log_stage(stage, RunConfig(), _content())
    assert tracker.log_stage(stage, RunConfig(), _content())
    assert Tracker(TrackConfig(), "study", storage).log_stage(stage, RunConfig(), _content())
    (run,) = _runs(storage)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"model": "reference-joint", "complexity_ratio": "0.5"}
    assert set(run.data.metrics) == {"accuracy/high", "compression/vision/gini"}
    assert run.data.tags["digest"] == stage.digest
    assert run.data.tags["stage"] == "capture"
    assert run.data.tags["commit"]
    client = MlflowClient(tracking_uri=f"sqlite:///{storage.path('mlflow.db')}")
    history = client.get_metric_history(run.info.run_id, "compression/vision/gini")
    assert [(m.step, m.value) for m in history] == [(0, 0.1), (1, 0.4)]
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.name == "scenes seed 0, 200 images"
    names = {f.path for top in ("", "figures", "tables") for f in client.list_artifacts(run.info.run_id, top)}
    assert {"config.yaml", "figures/fig1.png", "tables/correlations.csv", "report.html"} <= names
    assert Outbox(storage, "study").waiting() == []


def test_trials_nest_below_one_parent(storage):
    tracker = Tracker(TrackConfig(), "study", storage)
    for k in range(3):
        content = _content(k / 2)
        tracker.log_stage(
            _stage(storage, k, "finetune"), RunConfig(), content, title=f"ratio {k / 2}", parent="finetune"
        )
    runs = {r.info.run_name: r for r in _runs(storage)}
    assert set(runs) == {"finetune", "ratio 0.0", "ratio 0.5", "ratio 1.0"}
    parent = runs.pop("finetune")
    assert {r.data.tags["mlflow.parentRunId"] for r in runs.values()} == {parent.info.run_id}


def _log_trials(storage, session, trials, seconds):
    tracker = Tracker(TrackConfig(), "study", storage, session=session)
    for k in trials:
        stage = _stage(storage, k, "finetune")
        content = Content(seconds=5.0 + k)
        tracker.log_stage(stage, RunConfig(), content, title=str(k), parent="finetune", parent_seconds=seconds)
    tracker.log_group("finetune", str(trials), None, Content())


def _seconds(storage, name):
    (run,) = [r for r in _runs(storage) if r.info.run_name == name]
    return (run.info.end_time - run.info.start_time) / 1000


def test_a_parent_run_lasts_as_long_as_the_work_of_all_its_children(storage):
    _log_trials(storage, "first call", (0, 1), 9.0)
    assert _seconds(storage, "finetune") == pytest.approx(9.0, abs=0.01)
    assert [_seconds(storage, name) for name in "01"] == pytest.approx([5.0, 6.0], abs=0.01)
    _log_trials(storage, "second call", (0, 1, 2), 4.0)  # one trial was added to the study
    assert _seconds(storage, "finetune") == pytest.approx(13.0, abs=0.01)
    _log_trials(storage, "third call", (0, 1, 2), 0.5)  # nothing was left to do
    assert _seconds(storage, "finetune") == pytest.approx(13.0, abs=0.01)


def test_a_group_is_logged_again_only_when_its_digest_changes(storage):
    tracker = Tracker(TrackConfig(), "study", storage)
    for digest, best in (("a", 0.1), ("a", 0.2), ("b", 0.3)):
        tracker.log_group("report", digest, None, Content(params={"p": best}, metrics={"best": best}))
    (run,) = _runs(storage)
    assert run.data.metrics == {"best": 0.3}
    assert run.data.params == {"p": "0.1"}


def test_a_run_cut_short_is_logged_anew_and_whole(storage, monkeypatch):
    from mlflow import MlflowClient

    def dies(*_args, **_kwargs):
        raise OSError("the driver was killed here")

    stage = _stage(storage)
    tracker = Tracker(TrackConfig(), "study", storage)
    monkeypatch.setattr(MlflowClient, "log_artifacts", dies)
    with pytest.warns(UserWarning, match="killed here"):
        assert not tracker.log_stage(stage, RunConfig(), _content())
    monkeypatch.undo()
    assert Outbox(storage, "study").waiting() == [f"capture-{stage.digest}"]
    assert track_pending(storage, TrackConfig()) == (1, 0)
    (run,) = _runs(storage)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["accuracy/high"] == 0.5


def test_what_a_dead_server_misses_is_sent_later_and_once(storage):
    dead = Tracker(TrackConfig(uri=NOWHERE), "study", storage)
    with pytest.warns(UserWarning, match="vtsweep track") as caught:
        assert not dead.log_stage(_stage(storage, 0), RunConfig(), _content())
    assert "hunter2" not in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not dead.log_stage(_stage(storage, 1), RunConfig(), _content())
    assert track_pending(storage, TrackConfig()) == (2, 0)
    assert track_pending(storage, TrackConfig()) == (0, 0)
    assert len(_runs(storage)) == 2


def test_storage_without_a_place_for_a_database_keeps_the_record(tmp_path):
    storage = Storage(f"memory://{tmp_path.name}")
    with pytest.warns(UserWarning, match=r"track\.uri is not set"):
        assert not Tracker(TrackConfig(), "study", storage).log_stage(_stage(storage), RunConfig(), _content())
    assert len(Outbox(storage, "study").waiting()) == 1


def test_credentials_never_reach_the_database_or_the_artifacts(storage):
    secrets = {
        "hub_token": "plain-secret",
        "uri": "s3://key:plain-secret@bucket/x",
        "note": "hf_plainsecretplainsecret",
    }
    content = Content(params=secrets, note="see https://me:plain-secret@host/?sig=plain-secret")
    run = RunConfig.model_validate(
        {"data": {"source": "coco", "root": "https://me:plain-secret@host/coco?token=plain-secret"}}
    )
    Tracker(TrackConfig(), "study", storage).log_stage(_stage(storage), run, content)
    dump = "\n".join(sqlite3.connect(storage.path("mlflow.db")).iterdump())
    files = [p for p in Path(storage.uri).rglob("*") if p.is_file() and p.suffix != ".db"]
    text = dump + "".join(p.read_text(errors="replace") for p in files)
    assert "***" in text
    assert "plain-secret" not in text
    assert "hf_plainsecret" not in text


def test_tracking_that_is_off_writes_nothing(tmp_path):
    storage = Storage(str(tmp_path))
    assert not Tracker(TrackConfig(enabled=False), "study", storage).log_stage(_stage(storage), RunConfig(), _content())
    assert list(tmp_path.iterdir()) == []


def test_importing_the_tracker_imports_no_mlflow():
    code = "import sys, orchestrator.tracking.runs; sys.exit(bool({'mlflow', 'torch'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
