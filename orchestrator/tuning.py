"""Ray Tune around fine-tuning trials: all trials of a study in one experiment, on workers that keep the base model.

A trial's state lives in its stage directory (`finetune.trial`), not in Tune: a killed trial, worker or driver costs
the steps since the last checkpoint, and a trial that is done is never run again. Tune adds placement, retries, search
and pruning. With `how.backend: local` the same trials run one after the other in this process.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config import HowConfig, RunConfig, SearchAxis
from orchestrator.errors import StageError, VtsweepError
from orchestrator.finetune.trial import baseline_stage, run_baseline, run_trial, trial_stage
from orchestrator.layout import Stage, Storage, canonical_json, digest
from orchestrator.progress import Progress
from orchestrator.sweep import set_key, validate

REPORT_SECONDS = 2.0
"""Least time between two of a trial's reports to Tune."""


def run_trials(
    runs: Sequence[RunConfig],
    storage: Storage,
    *,
    search: Mapping[str, SearchAxis] | None = None,
    quiet: bool = False,
) -> list[RunConfig]:
    """Run every trial that is not done; returns the trials' configurations, those of a search's samples included.

    Args:
        runs: one configuration a point.
        search: dotted key -> space; `finetune.search_trials` samples of it are tried at each point.

    Raises:
        ResourceError: the cluster could never hold one trial.
        StageError: a trial failed; those that finished are kept, and the same call resumes the rest.
    """
    searched = bool(search) and any(run.finetune.search_trials for run in runs)
    if not searched and all(trial_stage(run, storage).is_done() for run in runs):
        return list(runs)
    if runs[0].how.backend == "local":
        return _run_local(runs, storage, search or {}, quiet)
    return _run_ray(runs, storage, search if searched and search else {}, quiet)


# ---------------------------------------------------------------- in this process


def _run_local(
    runs: Sequence[RunConfig], storage: Storage, search: Mapping[str, SearchAxis], quiet: bool
) -> list[RunConfig]:
    import numpy as np

    rng = np.random.default_rng(0)
    every = [
        sampled(run, {key: draw(axis, rng) for key, axis in search.items()})
        for run in runs
        for _ in range(run.finetune.search_trials if search else 1)
    ]
    failures: dict[str, str] = {}
    with Progress("finetune", total=len(every), unit="trials", quiet=quiet) as progress:
        for run in every:
            try:
                run_trial(run, storage)
            except VtsweepError as error:
                if not search:
                    failures[describe(run)] = str(error)
            progress.advance(note=describe(run))
    _raise_failures(failures, len(every))
    return every


def draw(axis: SearchAxis, rng: Any) -> Any:
    """One value of a search space, from a numpy generator."""
    if axis.kind == "choice":
        return (axis.values or ())[int(rng.integers(len(axis.values or ())))]
    low, high = bounds(axis)
    if axis.kind == "randint":
        return int(rng.integers(int(low), int(high)))
    if axis.kind == "loguniform":
        return math.exp(rng.uniform(math.log(low), math.log(high)))
    return float(rng.uniform(low, high))


def bounds(axis: SearchAxis) -> tuple[float, float]:
    """Both ends of a numeric space, which its own validation made sure of."""
    assert axis.low is not None
    assert axis.high is not None
    return axis.low, axis.high


def sampled(run: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """The point with sampled values set.

    Raises:
        ConfigError: a sampled value is not valid for its key.
    """
    tree = run.model_dump(mode="json")
    for key, value in values.items():
        tree = set_key(tree, key, value, where="search")
    return validate(RunConfig, tree, "search")


def describe(run: RunConfig) -> str:
    """`ratio=0.5 seed=1 (3fa9c2)`: the last part is unique among settings."""
    settings = run.finetune
    return f"ratio={settings.complexity_ratio:g} seed={settings.seed} ({digest(settings.model_dump(mode='json'))[:6]})"


def _raise_failures(failures: Mapping[str, str], n: int) -> None:
    if failures:
        lines = "\n".join(f"  {name}: {reason}" for name, reason in failures.items())
        raise StageError(f"{len(failures)} of {n} trials failed; the others are kept:\n{lines}")


# ---------------------------------------------------------------- with Ray Tune


@dataclass(frozen=True)
class Room:
    """What one trial holds, and how many run at a time."""

    n_trials: int
    cpus: float
    gpus: float
    threads: int


def plan_room(how: HowConfig, n_cores: int, n_gpus: float) -> Room:
    """Resources of a trial: a GPU where there are any, else an even share of the cores.

    Small models do not gain from many threads, so cores go to trials first: with two cores, two trials run beside each
    other on one thread each.
    """
    gpus = how.gpus_per_trial if how.gpus_per_trial is not None else float(n_gpus > 0)
    at_once = how.concurrent_trials or max(1, int(n_gpus // gpus) if gpus else n_cores // (how.torch_threads or 1))
    threads = how.torch_threads or max(1, n_cores // at_once)
    return Room(at_once, how.cpus_per_actor, gpus, threads)


def _run_ray(
    runs: Sequence[RunConfig], storage: Storage, search: Mapping[str, SearchAxis], quiet: bool
) -> list[RunConfig]:
    from orchestrator.cluster import Pool, n_cores, session

    how = runs[0].how
    with session(how, storage) as cluster:
        cores = n_cores() if len(cluster.nodes) == 1 else int(cluster.cpus)
        room = plan_room(how, cores, cluster.gpus)
        n_samples = max(run.finetune.search_trials for run in runs) if search else 1
        room = Room(min(room.n_trials, len(runs) * n_samples), room.cpus, room.gpus, room.threads)
        cluster.check([Pool("fine-tuning trials", room.n_trials, room.cpus, room.gpus)])
        experiment = Experiment(storage, how, room, dict(search), n_samples, quiet)
        name = digest([trial_stage(run, storage).digest for run in runs] + [n_samples, *sorted(search)])
        outcomes = experiment.run(runs, name)
        if not search:
            # A driver that was killed may have lost trials that were newer than Tune's last snapshot.
            lost = [run for run in runs if not trial_stage(run, storage).is_done()]
            lost = [run for run in lost if describe(run) not in outcomes.failures]
            if lost:
                outcomes = experiment.run(lost, f"{name}-{digest([trial_stage(r, storage).digest for r in lost])}")
            _raise_failures(outcomes.failures, len(runs))
            return list(runs)
        return outcomes.runs


@dataclass
class Outcomes:
    runs: list[RunConfig]
    failures: dict[str, str]


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
        trainable = tune.with_resources(TRAINABLE, {"cpu": self.room.cpus, "gpu": self.room.gpus})
        space = self._space(runs)
        with Progress("finetune", total=None, unit="trials", quiet=self.quiet) as progress:
            path = f"{self._folder}/{name}"
            if tune.Tuner.can_restore(path):
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
                    ),
                    run_config=tune.RunConfig(
                        name=name,
                        storage_path=self._folder,
                        failure_config=tune.FailureConfig(max_failures=self.how.max_retries),
                        callbacks=[_progress_callback(progress)],
                        verbose=0,
                    ),
                )
            return self._outcomes(tuner.fit())

    @property
    def _folder(self) -> str:
        return self.storage.path("tune") if self.storage.is_local else f"{self.storage.uri.rstrip('/')}/tune"

    def _space(self, runs: Sequence[RunConfig]) -> dict[str, Any]:
        """Base models are measured by trials of their own at the head of the queue, while others already train."""
        from ray import tune

        baselines = {baseline_stage(run, self.storage).digest: run for run in reversed(runs)}
        entries = [("baseline", run) for run in reversed(baselines.values())] + [("trial", run) for run in runs]
        space: dict[str, Any] = {"entry": tune.grid_search([self._entry(kind, run) for kind, run in entries])}
        for key, axis in self.search.items():
            space[f"search/{key}"] = _domain(axis)
        return space

    def _entry(self, kind: str, run: RunConfig) -> str:
        how = run.how.model_copy(update={"torch_threads": self.room.threads})
        uri = self.storage.path("") if self.storage.is_local else self.storage.uri
        settled = run.model_copy(update={"how": how}).model_dump(mode="json")
        return canonical_json({"kind": kind, "run": settled, "storage": uri, "folder": str(Path.cwd())})

    def _scheduler(self, runs: Sequence[RunConfig]) -> Any:
        if not (self.search and any(run.finetune.prune for run in runs)):
            return None
        from orchestrator.pruning import PointASHA

        return PointASHA(max(run.finetune.n_steps for run in runs))

    def _outcomes(self, results: Any) -> Outcomes:
        outcomes = Outcomes([], {})
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


def _domain(axis: SearchAxis) -> Any:
    from ray import tune

    if axis.kind == "choice":
        return tune.choice(list(axis.values or ()))
    low, high = bounds(axis)
    if axis.kind == "randint":
        return tune.randint(int(low), int(high))
    return tune.loguniform(low, high) if axis.kind == "loguniform" else tune.uniform(low, high)


def read_entry(config: Mapping[str, Any]) -> tuple[str, RunConfig, Storage]:
    """Kind, configuration and storage of a Tune trial."""
    entry = json.loads(config["entry"])
    values = {key.removeprefix("search/"): value for key, value in config.items() if key.startswith("search/")}
    return entry["kind"], sampled(RunConfig.model_validate(entry["run"]), values), Storage(entry["storage"])


def tune_trial(config: dict[str, Any]) -> None:
    """What a Tune worker runs. Mistakes of the user are reported, not retried; everything else may be retried."""
    from ray import tune

    folder = json.loads(config["entry"])["folder"]
    if Path(folder).is_dir():  # relative paths of models and data mean what they meant to the driver
        os.chdir(folder)
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
        stage = run_baseline(run, storage) if kind == "baseline" else run_trial(run, storage, report)
        tune.report({**end, "loss": last_loss, "score": score(stage)})
    except VtsweepError as error:
        tune.report({**end, "loss": math.inf, "score": 0.0, "failed": str(error)})


TRAINABLE = tune_trial
"""What Tune is given."""


def score(stage: Stage) -> float:
    """What a search maximises: the mean accuracy of the tiers; 0 for a base model's stage."""
    values = [value for key, value in stage.summary().items() if key in ("accuracy/low", "accuracy/high")]
    return sum(values) / len(values) if values else 0.0


def _progress_callback(progress: Progress) -> Any:
    from ray.tune import Callback

    class Shown(Callback):
        def __init__(self, *shown: Progress) -> None:
            self.shown = shown

        def __getstate__(self) -> dict[str, Any]:  # Tune pickles its callbacks; a terminal cannot be
            return {"shown": ()}

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            kind, run, _ = read_entry(trial.config)
            for one in self.shown:
                one.total = len(trials)
                one.advance(note=describe(run) if kind == "trial" else "base model")

    return Shown(progress)
