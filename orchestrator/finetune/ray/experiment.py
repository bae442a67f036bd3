"""One Ray Tune experiment over fine-tuning trials: its space, its workers, and what came of each trial."""

from __future__ import annotations

import itertools
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config import HowConfig, RunConfig, SearchAxis
from orchestrator.config.search_space import bounds
from orchestrator.errors import ResourceError, VtsweepError
from orchestrator.finetune.finetune_stage import baseline_stage, trial_stage
from orchestrator.finetune.ray.entry import enter_folder, read_entry
from orchestrator.finetune.ray.processes import train_together
from orchestrator.finetune.trial import run_baseline, run_trial
from orchestrator.progress import Progress
from orchestrator.store.stage_folder import Stage, Storage, canonical_json, digest

REPORT_SECONDS = 2.0
"""Least time between two of a trial's reports to Tune."""


def describe(run: RunConfig) -> str:
    """`ratio=0.5 seed=1 (3fa9c2)`: the last part is unique among settings."""
    settings = run.finetune
    unique = digest(settings.model_dump(mode="json"))[:6]
    return f"ratio={settings.complexity_ratio:g} seed={settings.seed} ({unique})"


@dataclass(frozen=True)
class Room:
    """How many trials run at a time, and what each process of one holds."""

    n_trials: int
    cpus: float
    gpus: float
    threads: int


@dataclass
class Outcomes:
    """What came of an experiment."""

    runs: list[RunConfig]
    """Trials that are done."""
    failures: dict[str, str]
    """Trial -> the last line of what went wrong."""
    restored: bool
    """Whether it went on from Tune's record of an earlier attempt."""


def experiment_folder(storage: Storage) -> str:
    """Where Ray keeps its own records of experiments."""
    return storage.path("tune") if storage.is_local else f"{storage.uri.rstrip('/')}/tune"


@dataclass(frozen=True)
class Experiment:
    """One Tune experiment: where it lies and how its trials are placed."""

    storage: Storage
    how: HowConfig
    room: Room
    search: dict[str, SearchAxis]
    n_samples: int
    quiet: bool

    def run(self, runs: Sequence[RunConfig], name: str) -> Outcomes:
        """Run the points' trials to the end, from Tune's own record of an interrupted experiment of that name."""
        os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
        os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
        from ray import tune

        for logger in ("ray.tune", "ray.train"):
            logging.getLogger(logger).setLevel(logging.ERROR)
        held = {"cpu": self.room.cpus, "gpu": self.room.gpus}
        if self.how.processes_per_trial > 1:
            # The processes hold their own resources; the Tune trial only waits for them, on the head.
            held = {"node:__internal_head__": 0.001}
        trainable = tune.with_resources(TRAINABLE, held)
        entries = self._entries(runs)
        space = {"entry": tune.grid_search(entries) if len(entries) > 1 else entries[0]}
        space |= {f"search/{key}": tune_domain(axis) for key, axis in self.search.items()}
        n = len(entries) * self.n_samples
        with Progress("finetune", total=n, unit="trials", quiet=self.quiet) as progress:
            path = f"{experiment_folder(self.storage)}/{name}"
            restored = tune.Tuner.can_restore(path)
            if restored:
                tuner = tune.Tuner.restore(path, trainable, resume_errored=True, param_space=space)
            else:
                tuner = tune.Tuner(
                    trainable,
                    param_space=space,
                    tune_config=tune.TuneConfig(
                        num_samples=self.n_samples,
                        max_concurrent_trials=self.room.n_trials,
                        reuse_actors=self.how.reuse_workers,
                        scheduler=self._scheduler(runs),
                        search_alg=self._search_algorithm(runs),
                        trial_name_creator=_trial_name,
                        trial_dirname_creator=_trial_name,
                    ),
                    run_config=tune.RunConfig(
                        name=name,
                        storage_path=experiment_folder(self.storage),
                        failure_config=tune.FailureConfig(max_failures=self.how.max_retries),
                        callbacks=[_watcher(progress, self.how.no_progress_timeout_s)],
                        verbose=0,
                    ),
                )
            return self._outcomes(tuner.fit(), restored)

    def unused_name(self, name: str) -> str:
        """`NAME-1`, or the next number that no experiment has."""
        taken = set(self.storage.files("tune"))
        return next(f"{name}-{k}" for k in itertools.count(1) if f"{name}-{k}" not in taken)

    def _entries(self, runs: Sequence[RunConfig]) -> list[str]:
        """What Tune's trials are: each base model's measurement first, while other trials already train; then the runs.

        An algorithm that learns gets one point at a time and no grid; its first trial measures the base model. So do
        trials of several processes, whose Tune trial holds no GPU.
        """
        baselines = {baseline_stage(run, self.storage).digest: run for run in reversed(runs)}
        first = [("baseline", run) for run in reversed(baselines.values())]
        if self.search and runs[0].finetune.search_algorithm == "optuna":
            assert len(runs) == 1, "Optuna takes no grid"
            first = []
        if self.how.processes_per_trial > 1:
            first = []
        return [self._entry(kind, run) for kind, run in first + [("trial", run) for run in runs]]

    def _search_algorithm(self, runs: Sequence[RunConfig]) -> Any:
        if not self.search or runs[0].finetune.search_algorithm == "random":
            return None
        from ray.tune.search.optuna import OptunaSearch

        return OptunaSearch(metric="score", mode="max", seed=runs[0].finetune.seed)

    def _entry(self, kind: str, run: RunConfig) -> str:
        how = run.how.model_copy(update={"torch_threads": self.room.threads, "gpus_per_trial": self.room.gpus})
        uri = self.storage.path("") if self.storage.is_local else self.storage.uri
        settled = run.model_copy(update={"how": how}).model_dump(mode="json")
        return canonical_json({"kind": kind, "run": settled, "storage": uri, "folder": str(Path.cwd())})

    def _scheduler(self, runs: Sequence[RunConfig]) -> Any:
        if not (self.search and any(run.finetune.prune for run in runs)):
            return None
        from orchestrator.finetune.ray.pruning import PointASHA

        return PointASHA(max(run.finetune.n_steps for run in runs))

    def _outcomes(self, results: Any, restored: bool) -> Outcomes:
        outcomes = Outcomes([], {}, restored)
        for i in range(len(results)):
            result = results[i]
            config = result.config or {}
            kind, run, _ = read_entry(config)
            if result.error is not None:
                outcomes.failures[describe(run)] = str(result.error).strip().splitlines()[-1]
            elif (result.metrics or {}).get("failed") and not self.search:
                outcomes.failures[describe(run)] = str(result.metrics["failed"])
            elif kind == "trial" and trial_stage(run, self.storage).is_done():
                outcomes.runs.append(run)
        return outcomes


def tune_domain(axis: SearchAxis) -> Any:
    """The space as Ray Tune writes it."""
    from ray import tune

    if axis.kind == "choice":
        return tune.choice(list(axis.values or ()))
    low, high = bounds(axis)
    if axis.kind == "randint":
        return tune.randint(int(low), int(high))
    return tune.loguniform(low, high) if axis.kind == "loguniform" else tune.uniform(low, high)


def _trial_name(trial: Any) -> str:
    """Tune would put the whole configuration into the name."""
    return str(trial.trial_id)


def tune_trial(config: dict[str, Any]) -> None:
    """What a Tune worker runs. Mistakes of the user are reported, not retried; everything else may be retried."""
    from ray import tune

    enter_folder(config)
    kind, run, storage = read_entry(config)
    last_time, last_loss = 0.0, math.inf

    def report(values: Mapping[str, Any]) -> None:
        nonlocal last_time, last_loss
        last_loss = values["loss"]
        if time.monotonic() - last_time >= REPORT_SECONDS:
            last_time = time.monotonic()
            tune.report(dict(values))

    end: dict[str, Any] = {"step": run.finetune.n_steps}
    try:
        if kind == "baseline":
            stage = run_baseline(run, storage)
        elif run.how.processes_per_trial > 1 and not (stage := trial_stage(run, storage)).is_done():
            name = f"{stage.digest}-{time.time_ns()}"
            train_together(dict(config), name, f"{experiment_folder(storage)}/processes", run.how)
        else:
            stage = run_trial(run, storage, report)
        tune.report({**end, "loss": last_loss, "score": score(stage)})
    except VtsweepError as error:
        tune.report({**end, "loss": math.inf, "score": 0.0, "failed": str(error)})


def score(stage: Stage) -> float:
    """What a search maximises: the mean accuracy of the tiers; 0 for a base model's stage."""
    values = [value for key, value in stage.summary().items() if key in ("accuracy/low", "accuracy/high")]
    return sum(values) / len(values) if values else 0.0


TRAINABLE = tune_trial
"""What Tune is given."""


def _watcher(progress: Progress, patience: float) -> Any:
    """Shows what ends, and stops the wait for a machine that is gone."""
    from ray.tune import Callback

    class Watcher(Callback):
        def __init__(self, *shown: Progress) -> None:
            self.shown = shown

        def __getstate__(self) -> dict[str, Any]:  # Tune pickles its callbacks; a terminal cannot be
            return {"shown": ()}

        def setup(self, *given: Any, **info: Any) -> None:  # also when restored, where the clock is another
            self.last_seen = time.monotonic()

        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            now = time.monotonic()
            if any(trial.status == "RUNNING" for trial in trials) or all(trial.is_finished() for trial in trials):
                self.last_seen = now
            elif now - self.last_seen > patience:
                raise ResourceError(
                    f"no fine-tuning trial could run for {patience:.0f} s (how.no_progress_timeout_s): the nodes are "
                    "gone or full. What was finished is kept; the same command goes on."
                )

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            kind, run, _ = read_entry(trial.config)
            for one in self.shown:
                one.total = max(one.total or 0, len(trials))  # Tune makes trials as room comes free
                one.advance(note=describe(run) if kind == "trial" else "base model")

    return Watcher(progress)
