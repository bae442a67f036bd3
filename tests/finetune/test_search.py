"""A search: the same samples everywhere, each accounted for, and nothing taken for a result that is none."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.config import RunConfig, SearchAxis
from orchestrator.errors import DivergedError, StageError
from orchestrator.finetune.finetune_stage import sampled_point
from orchestrator.finetune.ray import experiment, trials
from orchestrator.finetune.ray.pruning import PointASHA, rung_steps
from orchestrator.finetune.ray.search import SampleRecord, check_samples, draw_samples, is_searched, search_folder
from orchestrator.finetune.ray.watcher import make_watcher
from orchestrator.store.filesystem import Storage
from orchestrator.store.resolved_point import ResolvedPoint
from tests.points import run_trials, trial_point, trial_stage

MakeRun = Callable[..., RunConfig]
SPACE = {
    "finetune.language.learning_rate": SearchAxis(kind="loguniform", low=1e-4, high=1e-2),
    "finetune.dropout": SearchAxis(kind="choice", values=(0.0, 0.1)),
}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """`run_trial` in name only: notes the learning rate and marks the trial and its base model done."""
    rates: list[float] = []

    def run_trial(point: ResolvedPoint) -> Any:
        rates.append(point.run.finetune.language.learning_rate)
        for stage in (point.stages["baseline"], point.stages["finetune"]):
            stage.open()
            stage.mark_done({"accuracy/low": 0.5})
        return stage

    monkeypatch.setattr(trials, "run_trial", run_trial)
    return rates


def test_samples_of_a_point_depend_on_neither_other_points_nor_the_order_of_keys(
    make_run: MakeRun, storage: Storage
) -> None:
    points = [trial_point(make_run(complexity_ratio=r, search_trials=3), storage) for r in (0.0, 0.5, 1.0)]
    together = draw_samples(points, SPACE)
    alone = draw_samples([points[2]], dict(reversed(SPACE.items())))
    assert [s.values for s in together[6:]] == [s.values for s in alone]
    assert len({str(s.values) for s in together}) == 9


def test_a_sample_that_fails_fails_the_search_and_the_others_are_kept(
    make_run: MakeRun, storage: Storage, trained: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(search_trials=3)
    whole = trials.run_trial

    def broken(one: ResolvedPoint) -> Any:
        if len(trained) == 1 and not fixed:
            trained.append(0.0)
            raise StageError("no memory left")
        return whole(one)

    fixed: list[bool] = []
    told: list[tuple[str, str]] = []
    monkeypatch.setattr(trials, "run_trial", broken)
    with pytest.raises(StageError, match=r"1 of 3 samples failed(.|\n)*no memory left"):
        run_trials([run], storage, search=SPACE, quiet=True, watch=lambda p, state: told.append((p.label, state)))
    ends = ("done", "failed", "done")
    assert told == [(f"sample {i}", state) for i, end in enumerate(ends) for state in ("running", end)]
    fixed.append(True)
    assert len(run_trials([run], storage, search=SPACE, quiet=True)) == 3
    assert len(trained) == 4, "two before, the failed one again, and none twice"


def test_a_sample_that_diverges_is_an_answer_unless_all_of_them_do(
    make_run: MakeRun, storage: Storage, trained: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(search_trials=2)
    whole = trials.run_trial

    def diverges(one: ResolvedPoint) -> Any:
        if always or not trained:
            trained.append(0.0)
            raise DivergedError("the loss is inf")
        return whole(one)

    always: list[bool] = []
    monkeypatch.setattr(trials, "run_trial", diverges)
    assert len(run_trials([run], storage, search=SPACE, quiet=True)) == 1
    assert len(run_trials([run], storage, search=SPACE, quiet=True)) == 1, "and is not tried again"
    assert len(trained) == 2
    always.append(True)
    with pytest.raises(StageError, match="every sample of point"):
        run_trials([make_run(search_trials=2, seed=5)], storage, search=SPACE, quiet=True)


@pytest.mark.parametrize("n_told", [0, 1])
@pytest.mark.usefixtures("trained")
def test_an_experiment_that_ends_early_is_a_failure(make_run: MakeRun, storage: Storage, n_told: int) -> None:
    """As when Tune hands back what there is after a signal."""
    samples = draw_samples([trial_point(make_run(search_trials=2), storage)], SPACE)
    folder = search_folder(samples, SPACE, "random")
    for sample in samples[:n_told]:
        trials.run_trial(sample.resolved)
        made: dict[str, Any] = {"point": sample.point, "number": sample.number, "values": dict(sample.values or {})}
        folder.write(SampleRecord(**made, state="done", score=0.5, rungs=[]))
    with pytest.raises(StageError, match=f"{2 - n_told} of 2 samples failed(.|\n)*ended without a result"):
        check_samples(samples, folder.read(), {})


@pytest.mark.usefixtures("trained")
def test_a_sample_that_fails_under_optuna_fails_the_search_and_only_it_is_tried_again(
    make_run: MakeRun, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a search whose algorithm chooses values as it goes; what a sample of pruning leaves is an answer."""
    point = trial_point(make_run(search_trials=3), storage)
    asked: list[list[int]] = []

    def run_optuna(self: experiment.Experiment, samples: Any, _: Any) -> dict[str, str]:
        asked.append([sample.number for sample in samples])
        assert self.folder is not None
        for sample in samples:
            if sample.number == 1 and len(asked) == 1:
                continue
            values = {"finetune.dropout": 0.1 * sample.number}
            made: dict[str, Any] = {"point": sample.point, "number": sample.number, "values": values, "rungs": []}
            if sample.number == 2:
                self.folder.write(SampleRecord(**made, state="pruned", score=0.0))
                continue
            trials.run_trial(sampled_point(sample.base, values))
            self.folder.write(SampleRecord(**made, state="done", score=0.5))
        return {f"sample 1 of point {point.stages['finetune'].digest[:6]} x": "worker lost"} if len(asked) == 1 else {}

    monkeypatch.setattr(experiment.Experiment, "run_optuna", run_optuna)
    resources = experiment.TrialResources(1, 1.0, 0.0, 1)
    work = experiment.Experiment(point.run.how, resources, quiet=True, search=SPACE)
    with pytest.raises(StageError, match=r"1 of 3 samples failed(.|\n)*worker lost"):
        trials._search_on_ray([point], work, "optuna")
    assert len(trials._search_on_ray([point], work, "optuna")) == 2
    assert len(trials._search_on_ray([point], work, "optuna")) == 2
    assert asked == [[0, 1, 2], [1]]


def test_who_follows_a_search_is_told_of_samples_whose_values_are_proposed_as_it_goes(
    make_run: MakeRun, storage: Storage
) -> None:
    """Tune's calls of one experiment: a trial that starts again keeps its number, and its record has the same."""
    (base, *_) = draw_samples([trial_point(make_run(search_trials=2), storage)], SPACE)
    folder = search_folder([base], SPACE, "optuna")
    told: list[tuple[str, float, str]] = []

    def watch(point: ResolvedPoint, state: str) -> None:
        told.append((point.label, point.run.finetune.dropout, state))

    watcher = make_watcher(None, 60.0, folder, [0, 1], watch)
    work = experiment.Experiment(base.base.run.how, experiment.TrialResources(1, 1.0, 0.0, 1), quiet=True)
    entry = work._entry("trial", base.base, base.point)
    first, second = (
        SimpleNamespace(trial_id=name, config={"entry": entry, "search/finetune.dropout": dropout}, last_result={})
        for name, dropout in (("a", 0.0), ("b", 0.1))
    )
    second.last_result = {"end": "done", "score": 0.5}
    for trial in (first, second, first):
        watcher.on_trial_start(0, [], trial)
    for trial in (second, first):
        watcher.on_trial_complete(0, [], trial)
    started = [("sample 0", 0.0, "running"), ("sample 1", 0.1, "running"), ("sample 0", 0.0, "running")]
    assert told == [*started, ("sample 1", 0.1, "done"), ("sample 0", 0.0, "pruned")]
    assert {key[1]: record.state for key, record in folder.read().items()} == {1: "done", 0: "pruned"}


def test_a_record_that_speaks_of_a_trial_that_is_not_there_is_tried_again(
    make_run: MakeRun, storage: Storage, trained: list[float]
) -> None:
    run = make_run(search_trials=2)
    assert not is_searched([trial_point(run, storage)], SPACE)
    done = run_trials([run], storage, search=SPACE, quiet=True)
    assert is_searched([trial_point(run, storage)], SPACE)
    assert not is_searched([trial_point(make_run(search_trials=3), storage)], SPACE), "one sample more"
    trial_stage(done[0], storage).store.remove("_SUCCESS")
    assert not is_searched([trial_point(run, storage)], SPACE)
    (record, *_) = storage.files(folder := "search/" + storage.files("search")[0])
    damaged = storage.read(f"{folder}/{record}").replace(b'"number": 0', b'"number": 1')
    storage.write(f"{folder}/{record}", damaged)
    assert run_trials([run], storage, search=SPACE, quiet=True) == done
    assert len(trained) == 3


def test_samples_are_judged_at_steps_that_no_clock_decides(
    make_run: MakeRun, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray import tune

    run = make_run(n_steps=64, prune=True, search_trials=2)
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(tune, "report", told.append)

    def run_trial(_: ResolvedPoint, report: Callable[[dict[str, Any]], None]) -> Any:
        for step in range(1, 65):
            report({"step": step, "loss": 1.0 / step})
        return SimpleNamespace(summary=dict)

    monkeypatch.setattr(experiment, "run_trial", run_trial)
    sample = draw_samples([trial_point(run, storage)], SPACE)[0]
    made = experiment.Experiment(run.how, experiment.TrialResources(1, 1.0, 0.0, 1), quiet=True)
    experiment.tune_trial({"entry": made._entry("trial", sample.base, sample.point, sample.number, sample.values)})
    assert [t["step"] for t in told] == [*rung_steps(64), 64] == [8, 24, 64]
    assert [t["end"] for t in told] == ["", "", "done"]
    bracket = PointASHA(64)._point(SimpleNamespace(config={"entry": '{"point": "a"}'}))[0]._brackets[0]  # type: ignore[attr-defined]
    assert sorted(step for step, _ in bracket._rungs if step < 64) == rung_steps(64)


def test_a_resumed_search_judges_by_what_earlier_samples_reached() -> None:
    scheduler = PointASHA(64)
    for number, loss in enumerate((0.1, 0.2, 0.3)):
        scheduler.replay("a", number, [(8, loss)])
    late = SimpleNamespace(trial_id="late", config={"entry": '{"point": "a"}'})
    other = SimpleNamespace(trial_id="other", config={"entry": '{"point": "a"}'})
    for trial in (late, other):
        scheduler.on_trial_add(None, trial)
    worst = {"step": 8, "loss": 0.9, "training_iteration": 1}
    assert scheduler.on_trial_result(None, late, worst) == PointASHA.STOP


def test_the_experiments_own_folder_is_no_place_that_others_can_write(
    make_run: MakeRun, storage: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Tune unpickles what lies in its folder: it gets a private temporary one, and none of an earlier attempt."""
    from ray import tune

    made: dict[str, Any] = {}

    class Tuner:
        can_restore = restore = classmethod(lambda *_, **__: pytest.fail("a Tune experiment is restored"))

        def __init__(self, *_: Any, **given: Any) -> None:
            made.update(given)

        def fit(self) -> None:
            folder = Path(made["run_config"].storage_path)
            made["mode"] = folder.stat().st_mode & 0o077

    monkeypatch.setattr(tune, "Tuner", Tuner)
    run = make_run()
    experiment.Experiment(run.how, experiment.TrialResources(1, 1.0, 0.0, 1), quiet=True).run_points(
        [trial_point(run, storage)]
    )
    folder = Path(made["run_config"].storage_path)
    assert made["mode"] == 0
    assert not folder.is_relative_to(tmp_path)
    assert not folder.exists(), "it goes with the experiment"
    assert not storage.files("tune")


def test_what_watches_a_search_needs_no_pickle() -> None:
    """Tune pickles its callbacks; MLflow's client, which writes samples as they run, holds locks."""
    from ray import cloudpickle

    from orchestrator.finetune.ray.watcher import make_watcher

    lock, told = threading.Lock(), []

    def watch(*call: object) -> None:
        with lock:
            told.append(call)

    watcher = make_watcher(None, 1.0, None, [0], watch)
    assert cloudpickle.loads(cloudpickle.dumps(watcher)).__dict__ == {}
    watcher.watch(None, "running")
    assert told == [(None, "running")]
