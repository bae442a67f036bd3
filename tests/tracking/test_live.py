"""Runs that are shown while their stage is worked on: continued, completed, never doubled."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from orchestrator.cli.closing import view_links
from orchestrator.config import RunConfig, TrackConfig
from orchestrator.progress import Progress
from orchestrator.report.summaries import _shown, thinned
from orchestrator.store.filesystem import Storage
from orchestrator.store.live_file import LIVE_FILE, Live, LiveWriter, read_live
from orchestrator.store.resolved_point import ResolvedPoint
from orchestrator.store.stage_folder import Stage
from orchestrator.store.study_record import Study, View
from orchestrator.tracking.content import Beat, Content, Entry
from orchestrator.tracking.live import _Follower, beat_of, streamed
from orchestrator.tracking.tracker import Sent, Tracker, default_uri
from orchestrator.tracking.views import TAG

pytest.importorskip("mlflow")
NOWHERE = "http://127.0.0.1:9/mlflow"
"""Nothing listens on the discard port."""


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mlflow")
    Tracker(TrackConfig(), "first", Storage(str(folder))).log([_entry()])
    return folder / "mlflow.db"


@pytest.fixture
def storage(tmp_path: Path, empty_database: Path) -> Storage:
    (tmp_path / "mlflow.db").write_bytes(empty_database.read_bytes())
    return Storage(str(tmp_path))


def _entry(content: Content | None = None, digest: str = "0" * 16) -> Entry:
    made = content or Content()
    return Entry("finetune", digest, "r=0.5 seed=1", lambda: made, "finetune", RunConfig(), ended=time.time())


def _beat(steps: range, state: str = "training", **metrics: float) -> Beat:
    losses = [(step, 1.0 / step) for step in steps]
    return Beat(state, {"complexity_ratio": 0.5}, {"loss": losses, **{k: [(0, v)] for k, v in metrics.items()}})


FINISHED = Content(
    params={"complexity_ratio": 0.5, "seed": 1},
    metrics={"accuracy/high": 0.75},
    curves={"loss": [(step, 1.0 / step) for step in range(1, 7)]},
)


def _client(storage: Storage):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=default_uri(storage))


def _trials(storage: Storage) -> list:
    experiment = _client(storage).get_experiment_by_name("study")
    return [*_client(storage).search_runs([experiment.experiment_id], "tags.stage = 'finetune'")]


def _steps(storage: Storage, run, metric: str = "loss") -> list[int]:
    return [m.step for m in _client(storage).get_metric_history(run.info.run_id, metric)]


def test_a_trial_is_shown_while_it_trains_and_completed_in_the_same_run(storage):
    tracker = Tracker(TrackConfig(), "study", storage)
    assert tracker.stream([(_entry(), _beat(range(1, 3)))])
    assert tracker.stream([(_entry(), _beat(range(1, 5), "training, step 4 of 6"))])
    (run,) = _trials(storage)
    assert run.info.status == "RUNNING"
    assert run.data.params == {"complexity_ratio": "0.5"}
    assert run.data.tags["state"] == "training, step 4 of 6"
    assert _steps(storage, run) == [1, 2, 3, 4]
    tracker.stream([(_entry(), _beat(range(1, 7), "measuring compression", **{"accuracy/high": 0.75}))])
    assert tracker.log([_entry(FINISHED)]) == Sent(1, 0)
    (done,) = _trials(storage)
    assert (done.info.run_id, done.info.status, done.data.tags["state"]) == (run.info.run_id, "FINISHED", "done")
    assert done.data.params == {"complexity_ratio": "0.5", "seed": "1"}
    assert _steps(storage, done) == [1, 2, 3, 4, 5, 6]
    assert _steps(storage, done, "accuracy/high") == [0]
    assert Tracker(TrackConfig(), "study", storage).log([_entry(FINISHED)]) == Sent(0, 0)
    tags = _client(storage).get_experiment_by_name("study").tags
    assert TAG + "training" in tags


@pytest.mark.parametrize("stopped", [True, False], ids=["interrupted", "killed"])
def test_a_study_that_was_stopped_continues_its_run(storage, stopped):
    first = Tracker(TrackConfig(), "study", storage)
    first.stream([(_entry(), _beat(range(1, 5)))])
    if stopped:
        first.end_streams("stopped")
        assert [run.info.status for run in _trials(storage)] == ["KILLED"]
    again = Tracker(TrackConfig(), "study", storage)
    again.stream([(_entry(), _beat(range(3, 6)))])  # from the checkpoint after step 2
    (run,) = _trials(storage)
    assert run.info.status == "RUNNING"
    assert _steps(storage, run) == [1, 2, 3, 4, 5]
    assert again.log([_entry(FINISHED)]) == Sent(1, 0)
    (run,) = _trials(storage)
    assert _steps(storage, run) == [1, 2, 3, 4, 5, 6]


def test_a_streamed_run_that_is_cut_short_while_completed_is_made_anew(storage, monkeypatch):
    from mlflow import MlflowClient

    tracker = Tracker(TrackConfig(), "study", storage)
    tracker.stream([(_entry(), _beat(range(1, 3)))])
    monkeypatch.setattr(MlflowClient, "log_artifacts", lambda *_: (_ for _ in ()).throw(OSError("killed here")))
    with pytest.warns(UserWarning, match="killed here"):
        assert tracker.log([_entry(FINISHED)]) == Sent(0, 1)
    monkeypatch.undo()
    assert Tracker(TrackConfig(), "study", storage).log([_entry(FINISHED)]) == Sent(1, 0)
    (run,) = _trials(storage)
    assert _steps(storage, run) == [1, 2, 3, 4, 5, 6]


def test_a_server_that_is_down_or_tracking_that_is_off_costs_nothing(tmp_path):
    storage = Storage(str(tmp_path))
    dead = Tracker(TrackConfig(uri=NOWHERE), "study", storage)
    with pytest.warns(UserWarning, match="vtsweep track"):
        assert not dead.stream([(_entry(), _beat(range(1, 3)))])
    assert not dead.stream([(_entry(), _beat(range(1, 4)))])
    dead.end_streams("stopped")
    off = Tracker(TrackConfig(enabled=False), "study", storage)
    with streamed(off, Study(storage, {"name": "study"}), "finetune", {"0" * 16}):
        pass
    assert off.views() == {}
    assert list(tmp_path.iterdir()) == []


def test_a_study_on_a_remote_storage_without_a_server_is_not_followed():
    storage = Storage("memory://followed")
    assert not Tracker(TrackConfig(), "study", storage).is_streamed


def _study(storage: Storage) -> tuple[Study, Stage]:
    stage = Stage(storage, "finetune", {"finetune": {}})
    point = {"label": "ratio=0.5 seed=1", "axes": {}, "stages": {"finetune": stage.digest}}
    point["config"] = RunConfig().model_dump(mode="json")
    record = {"name": "study", "stages": ["finetune"], "points": [point], "seconds": {}, "versions": {}}
    return Study(storage, record), stage


def test_the_driver_follows_what_a_worker_writes_and_leaves_the_run_stopped(storage):
    study, stage = _study(storage)
    follower = _Follower(Tracker(TrackConfig(), "study", storage), study, "finetune", {stage.digest})
    assert follower.look()  # not begun: nothing to show
    stage.open()
    writer = LiveWriter(stage.store, every_s=0.0)
    writer.step(1, 2.0)
    assert follower.look()
    writer.step(2, 1.5)
    assert follower.look()
    (run,) = _trials(storage)
    assert (run.info.run_name, run.info.status) == ("r=0.5 seed=1", "RUNNING")
    assert run.data.tags["state"] == f"training, step 2 of {RunConfig().finetune.n_steps}"
    assert run.data.params["complexity_ratio"] == str(RunConfig().finetune.complexity_ratio)
    assert _steps(storage, run) == [1, 2]
    follower.start()
    follower.end("stopped")
    (run,) = _trials(storage)
    assert (run.info.status, run.data.tags["state"]) == ("KILLED", "stopped")


def _sample(storage: Storage, number: int) -> ResolvedPoint:
    stage = Stage(storage, "finetune", {"finetune": {"sample": number}})
    return ResolvedPoint(RunConfig(), storage, {}, {}, stages={"finetune": stage}, label=f"sample {number}")


def test_samples_of_a_search_are_shown_from_their_start_and_end_as_they_ended(storage):
    study, stage = _study(storage)
    follower = _Follower(Tracker(TrackConfig(), "study", storage), study, "finetune", {stage.digest})
    samples = [_sample(storage, number) for number in range(3)]
    for number, sample in enumerate(samples[:2]):
        sample.stages["finetune"].open()
        LiveWriter(sample.stages["finetune"].store, every_s=0.0).step(1, 2.0 + number)
        follower.watch(sample, "running")
    follower.watch(samples[2], "running")  # nothing is known of it yet
    assert follower.look()
    runs = {run.info.run_name: run for run in _trials(storage)}
    assert {name: run.info.status for name, run in runs.items()} == {"sample 0": "RUNNING", "sample 1": "RUNNING"}
    assert runs["sample 1"].data.metrics["loss"] == 3.0
    LiveWriter(samples[0].stages["finetune"].store, every_s=0.0).step(2, 1.5)
    follower.watch(samples[0], "pruned")
    follower.watch(samples[2], "diverged")
    assert follower.look()
    follower.start()
    follower.end("stopped")
    ended = {run.info.run_name: (run.info.status, run.data.tags["state"]) for run in _trials(storage)}
    assert ended == {"sample 0": ("KILLED", "pruned"), "sample 1": ("KILLED", "stopped")}
    assert _steps(storage, runs["sample 0"]) == [1, 2], "the last steps before its end as well"


def test_an_error_of_the_work_passes_through_and_nothing_of_tracking_does(storage, monkeypatch):
    study, stage = _study(storage)
    stage.open()
    monkeypatch.setattr("orchestrator.tracking.live.beat_of", lambda *_: 1 / 0)
    with (
        pytest.raises(KeyError, match="the work"),
        streamed(Tracker(TrackConfig(), "study", storage), study, "finetune", {stage.digest}),
    ):
        raise KeyError("the work")


def test_a_stage_with_progress_says_units_and_rate(tmp_path):
    stage = Stage(Storage(str(tmp_path)), "capture", {})
    view = View("a model", RunConfig(), stage, {})
    assert beat_of("capture", view) is None
    with Progress("capture", 10, "images", quiet=True, about=stage.digest) as progress:
        progress.advance(3)
        progress.advance(1, skill=0.25)
        beat = beat_of("capture", view)
    assert beat is not None
    assert beat.state.startswith("4 of 10 images, ")
    assert beat.curves["live/images"] == [(4, 4.0)]
    assert beat.curves["live/images_per_second"][0][1] > 0
    assert beat.curves["live/skill"] == [(4, 0.25)]
    assert beat_of("capture", view) is None


def test_what_a_worker_writes_is_read_back_and_a_storage_that_refuses_costs_nothing(tmp_path):
    store = Storage(str(tmp_path))
    assert read_live(store) is None
    writer = LiveWriter(store)
    writer.step(1, 2.0)
    writer.step(2, 1.0)  # too soon to be written
    assert read_live(store) == Live("training", ((1, 2.0),))
    writer.state("answering", {"accuracy/high": 0.5})
    assert read_live(store) == Live("answering", ((1, 2.0), (2, 1.0)), {"accuracy/high": 0.5})
    store.write(LIVE_FILE, b"[1, 2")
    assert read_live(store) is None
    writer.remove()
    assert not store.exists(LIVE_FILE)
    (tmp_path / "file").write_text("")
    refused = LiveWriter(Storage(str(tmp_path / "file")))
    refused.step(1, 2.0)
    refused.remove()


def test_a_trial_has_few_metrics_and_the_same_thinned_steps_whenever_it_is_looked_at():
    shown = [
        "accuracy/high",
        "accuracy/low/count",
        "gain/high",
        "delta/vision/stable_rank_centred/middle",
        "drift/text/late",
    ]
    hidden = ["accuracy/high_low", "accuracy_base/high/count", "delta/vision/gini/late_high", "delta/vision/hoyer/late",
              "asked/high/delta/vision/gini/late", "train_tokens", "cka/vision/late"]  # fmt: skip
    assert [_shown(column) for column in shown] == [True] * len(shown)
    assert [_shown(column) for column in hidden] == [False] * len(hidden)
    losses = [(step, 1.0 / step) for step in range(1, 1730)]
    whole = thinned(losses, 1729)
    assert len(whole) <= 501
    assert whole[-1] == losses[-1]
    assert thinned(losses[:800], 1729) == [point for point in whole if point[0] <= 800]


def test_links_of_views_name_the_server_or_the_one_that_ui_starts():
    record = {"mlflow": {"address": "", "experiment": "3", "views": {"Loss by step": "training"}}}
    (link,) = view_links(Study(Storage("memory://links"), record)).values()
    assert link.startswith("http://127.0.0.1:5000/#/experiments/3/runs?")
    assert "viewStateShareKey=training" in link
    record["mlflow"]["address"] = "https://tracking.example.org"
    (link,) = view_links(Study(Storage("memory://links"), record)).values()
    assert link.startswith("https://tracking.example.org/#/experiments/3/")
    assert view_links(Study(Storage("memory://links"), {})) == {}
