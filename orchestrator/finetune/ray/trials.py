"""Ray Tune around fine-tuning trials: all trials of a study in one experiment, on workers that keep the base model.

The state of a trial is in its stage directory (`finetune.trial`), not in Tune: a killed trial, worker or driver loses
only the steps since the last checkpoint, and a finished trial is not repeated. Tune adds placement, retries, search
and pruning. With `how.backend: local` the same trials run sequentially in this process.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.cluster.placement import Node, Pool, n_places
from orchestrator.config import HowConfig, RunConfig, SearchAxis
from orchestrator.errors import ConfigError, DivergedError, StageError, VtsweepError
from orchestrator.finetune.ray.entry import describe
from orchestrator.finetune.ray.experiment import Experiment, TrialResources, score
from orchestrator.finetune.ray.search import (
    SampleRecord,
    State,
    Watch,
    check_samples,
    draw_samples,
    search_folder,
    searches,
    unfinished_samples,
    unwatched,
)
from orchestrator.finetune.trial import run_trial
from orchestrator.progress import Progress
from orchestrator.store.resolved_point import ResolvedPoint


def run_trials(
    points: Sequence[ResolvedPoint],
    *,
    search: Mapping[str, SearchAxis] | None = None,
    quiet: bool = False,
    watch: Watch = unwatched,
) -> list[ResolvedPoint]:
    """Run every trial that is not done; returns all trials, including the samples of a search.

    Args:
        search: dotted key -> axis of the space; `finetune.search_trials` samples are run at each point.
        watch: told of each sample that starts and ends.

    Raises:
        ResourceError: the cluster is too small for one trial.
        StageError: a trial failed; finished trials are kept, and the same call resumes the rest.
    """
    space = search if search and any(point.run.finetune.search_trials for point in points) else {}
    if not space and not _unfinished(points):
        return list(points)
    if points[0].run.how.backend == "ray":
        return _run_ray(points, space, quiet, watch)
    return _search_local(points, space, quiet, watch) if space else _run_local(points, quiet)


def _run_local(points: Sequence[ResolvedPoint], quiet: bool) -> list[ResolvedPoint]:
    failures: dict[str, str] = {}
    with Progress("finetune", total=len(points), unit="trials", quiet=quiet) as progress:
        for point in points:
            try:
                run_trial(point)
            except VtsweepError as error:
                failures[describe(point.run)] = str(error)
            progress.advance(note=describe(point.run))
    _raise_failures(failures, len(points))
    return list(points)


def _search_local(
    points: Sequence[ResolvedPoint], search: Mapping[str, SearchAxis], quiet: bool, watch: Watch
) -> list[ResolvedPoint]:
    samples = draw_samples(points, search)
    folder = search_folder(samples, search, "random")
    records, failures = folder.read(), {}
    with Progress("finetune", total=len(samples), unit="trials", quiet=quiet) as progress:
        for sample in unfinished_samples(samples, records):
            trial = sample.resolved
            fields: dict[str, Any] = {
                "point": sample.point,
                "number": sample.number,
                "values": dict(sample.values or {}),
            }
            watch(trial, "running")
            ended: State | None = None
            try:
                objective = score(run_trial(trial))
                ended = "done"
            except DivergedError:
                objective, ended = 0.0, "diverged"
            except VtsweepError as error:
                failures[f"sample {sample.number} of point {sample.point[:6]} {describe(trial.run)}"] = str(error)
            if ended:
                folder.write(SampleRecord(**fields, rungs=[], state=ended, score=objective))
            watch(trial, ended or "failed")
            progress.advance(note=describe(trial.run))
    return check_samples(samples, folder.read(), failures)


def plan_resources(how: HowConfig, n_cores: int, n_gpus: float) -> TrialResources:
    """Resources of a trial's process: a GPU if there are any, else an equal share of the cores.

    Small models do not gain from many threads, so that cores are given to trials first: with two cores, two trials
    run concurrently with one thread each.
    """
    gpus = how.gpus_per_trial if how.gpus_per_trial is not None else float(n_gpus > 0)
    n = how.processes_per_trial
    fitting = n_places([Node(0.0, n_gpus)], gpus) // n if gpus else n_cores // ((how.torch_threads or 1) * n)
    at_once = how.concurrent_trials or max(1, int(fitting))
    threads = how.torch_threads or max(1, n_cores // (at_once * n))
    return TrialResources(at_once, how.cpus_per_actor, gpus, threads)


def trial_pool(
    runs: Sequence[RunConfig], n_cores: int, n_gpus: float, search: Mapping[str, SearchAxis]
) -> tuple[TrialResources, Pool]:
    """Resources of a study's trials (at most as many at a time as there are trials), and the pool of all their
    processes."""
    how = runs[0].how
    n_samples = max(run.finetune.search_trials for run in runs) if search else 1
    resources = plan_resources(how, n_cores, n_gpus)
    resources = replace(resources, n_trials=min(resources.n_trials, len(runs) * n_samples))
    return resources, Pool(
        "fine-tuning trials", resources.n_trials * how.processes_per_trial, resources.cpus, resources.gpus
    )


def _run_ray(
    points: Sequence[ResolvedPoint], search: Mapping[str, SearchAxis], quiet: bool, watch: Watch
) -> list[ResolvedPoint]:
    from orchestrator.cluster.placement import n_cores
    from orchestrator.cluster.session import session

    how, storage, runs = points[0].run.how, points[0].storage, [point.run for point in points]
    algorithm = how_searched(runs) if search else ""
    with session(how, storage) as cluster:
        how = cluster.patient(how)
        cores = n_cores() if len(cluster.nodes) == 1 and not cluster.limits else int(cluster.cpus)
        resources, pool = trial_pool(runs, cores, cluster.gpus, search)
        cluster.check([pool])
        if search:
            experiment = Experiment(how, resources, quiet, dict(search), watch=watch)
            return _search_on_ray(points, experiment, algorithm)
        pending = _unfinished(points)
        failures = Experiment(how, resources, quiet).run_points(pending)
        for point in _unfinished(points):
            failures.setdefault(describe(point.run), "it ended without a result")
        _raise_failures(failures, len(pending))
        return list(points)


def _search_on_ray(points: Sequence[ResolvedPoint], experiment: Experiment, algorithm: str) -> list[ResolvedPoint]:
    samples = draw_samples(points, experiment.search)
    if algorithm != "optuna":
        folder = search_folder(samples, experiment.search, algorithm)
        records = folder.read()
        pending = unfinished_samples(samples, records)
        failures = replace(experiment, folder=folder).run_samples(pending, records) if pending else {}
        return check_samples(samples, folder.read(), failures)
    completed: list[ResolvedPoint] = []
    for requested, folder in searches(samples, experiment.search, algorithm):  # one point at a time
        records = folder.read()
        pending = unfinished_samples(requested, records)
        earlier = {key: record for key, record in records.items() if key[1] not in {s.number for s in pending}}
        failures = replace(experiment, folder=folder).run_optuna(pending, earlier) if pending else {}
        completed += check_samples(requested, folder.read(), failures)
    return completed


def _unfinished(points: Sequence[ResolvedPoint]) -> list[ResolvedPoint]:
    return [point for point in points if not point.is_done("finetune")]


def how_searched(runs: Sequence[RunConfig]) -> str:
    """The search algorithm, common to all points of a study; raises with the extra's name if Optuna is missing."""
    algorithm = runs[0].finetune.search_algorithm
    if algorithm == "optuna" and importlib.util.find_spec("optuna") is None:
        raise ConfigError("finetune.search_algorithm: optuna is not installed; pip install 'vtsweep[optuna]'")
    return algorithm


def _raise_failures(failures: Mapping[str, str], n: int) -> None:
    if failures:
        lines = "\n".join(f"  {name}: {reason}" for name, reason in failures.items())
        raise StageError(f"{len(failures)} of {n} trials failed; the others are kept:\n{lines}")
