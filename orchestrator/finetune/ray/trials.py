"""Ray Tune around fine-tuning trials: all trials of a study in one experiment, on workers that keep the base model.

A trial's state lives in its stage directory (`finetune.trial`), not in Tune: a killed trial, worker or driver costs
the steps since the last checkpoint, and a trial that is done is never run again. Tune adds placement, retries, search
and pruning. With `how.backend: local` the same trials run one after the other in this process.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace

from orchestrator.cluster.placement import Node, Pool, n_places
from orchestrator.config import HowConfig, RunConfig, SearchAxis
from orchestrator.config.search_space import draw, sampled
from orchestrator.errors import ConfigError, StageError, VtsweepError
from orchestrator.finetune.finetune_stage import trial_stage
from orchestrator.finetune.ray.experiment import Experiment, Room, describe
from orchestrator.finetune.trial import run_trial
from orchestrator.progress import Progress
from orchestrator.store.stage_folder import Storage, digest


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


def plan_room(how: HowConfig, n_cores: int, n_gpus: float) -> Room:
    """Resources of a trial's process: a GPU where there are any, else an even share of the cores.

    Small models do not gain from many threads, so cores go to trials first: with two cores, two trials run beside each
    other on one thread each.
    """
    gpus = how.gpus_per_trial if how.gpus_per_trial is not None else float(n_gpus > 0)
    n = how.processes_per_trial
    fitting = n_places([Node(0.0, n_gpus)], gpus) // n if gpus else n_cores // ((how.torch_threads or 1) * n)
    at_once = how.concurrent_trials or max(1, int(fitting))
    threads = how.torch_threads or max(1, n_cores // (at_once * n))
    return Room(at_once, how.cpus_per_actor, gpus, threads)


def trial_pool(
    runs: Sequence[RunConfig], n_cores: int, n_gpus: float, search: Mapping[str, SearchAxis]
) -> tuple[Room, Pool]:
    """The room of a study's trials, never more at a time than there are, and the processes that all hold it at once."""
    how = runs[0].how
    n_samples = max(run.finetune.search_trials for run in runs) if search else 1
    room = plan_room(how, n_cores, n_gpus)
    room = replace(room, n_trials=min(room.n_trials, len(runs) * n_samples))
    return room, Pool("fine-tuning trials", room.n_trials * how.processes_per_trial, room.cpus, room.gpus)


def _run_ray(
    runs: Sequence[RunConfig], storage: Storage, search: Mapping[str, SearchAxis], quiet: bool
) -> list[RunConfig]:
    from orchestrator.cluster.session import n_cores, session

    how = runs[0].how
    with session(how, storage) as cluster:
        cores = n_cores() if len(cluster.nodes) == 1 else int(cluster.cpus)
        room, pool = trial_pool(runs, cores, cluster.gpus, search)
        cluster.check([pool])
        n_samples = max(run.finetune.search_trials for run in runs) if search else 1
        experiment = Experiment(storage, how, room, dict(search), n_samples, quiet)
        if search and how_searched(runs) == "optuna":
            parts = [experiment.run([run], experiment_name([run], experiment)) for run in runs]
            return [run for part in parts for run in part.runs]
        name = experiment_name(runs, experiment)
        outcomes = experiment.run(runs, name)
        if search:
            return outcomes.runs
        # Tune's record lacks trials newer than its last snapshot when the driver is killed, and holds as ended those
        # that failed in an earlier attempt: what mends them may have been done since.
        failures = {} if outcomes.restored else dict(outcomes.failures)
        lost = [run for run in _unfinished(runs, storage) if describe(run) not in failures]
        if lost:
            failures |= experiment.run(lost, experiment.unused_name(name)).failures
        for run in _unfinished(runs, storage):
            failures.setdefault(describe(run), "it ended without a result")
        _raise_failures(failures, len(runs))
        return list(runs)


def experiment_name(runs: Sequence[RunConfig], experiment: Experiment) -> str:
    """The same for the same trials, search and storage, so that an interrupted experiment is found again."""
    trials = [trial_stage(run, experiment.storage).digest for run in runs]
    space = {key: axis.model_dump(mode="json") for key, axis in experiment.search.items()}
    return digest([trials, experiment.n_samples, space, experiment.storage.path("")])


def _unfinished(runs: Sequence[RunConfig], storage: Storage) -> list[RunConfig]:
    return [run for run in runs if not trial_stage(run, storage).is_done()]


def how_searched(runs: Sequence[RunConfig]) -> str:
    """The search algorithm, which all points of a study share; Optuna is named with its extra where it is missing."""
    algorithm = runs[0].finetune.search_algorithm
    if algorithm == "optuna" and importlib.util.find_spec("optuna") is None:
        raise ConfigError("finetune.search_algorithm: optuna is not installed; pip install 'vtsweep[optuna]'")
    return algorithm


def _raise_failures(failures: Mapping[str, str], n: int) -> None:
    if failures:
        lines = "\n".join(f"  {name}: {reason}" for name, reason in failures.items())
        raise StageError(f"{len(failures)} of {n} trials failed; the others are kept:\n{lines}")
