"""Probes on Ray: the grid in blocks of one (tap, layer), and a hyperparameter search of the probes.

A block's features are read once and every probe is fitted on them; its shard is the unit of resume. Blocks are tasks
on CPU cores, or calls of long-lived actors with a GPU (`cost.py`). A task of the search fits many probes in one call,
on features that all tasks share through the object store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from orchestrator.config import RunConfig, SearchAxis
from orchestrator.config.probe_search import configured
from orchestrator.config.search_space import draw
from orchestrator.errors import StageError
from orchestrator.probes.cost import place
from orchestrator.probes.probe_stage import (
    Work,
    block_progress,
    finish,
    fit_block,
    fit_missing,
    open_probes,
)
from orchestrator.probes.search import (
    Evaluation,
    SearchData,
    Trial,
    check_space,
    evaluate,
    groups,
    halve,
    load_search_data,
)
from orchestrator.progress import Progress
from orchestrator.store.resolved_point import ResolvedPoint
from orchestrator.store.stage_folder import Stage
from orchestrator.store.tables.core import check_table

PREFIX = "probe."
NET_SETTINGS = ("width", "depth", "learning_rate")


def default_space(data: SearchData) -> dict[str, SearchAxis]:
    """The default search space."""
    return {
        "solver": SearchAxis(kind="choice", values=("linear", "mlp")),
        "positions": SearchAxis(kind="choice", values=tuple(groups(data.positions))),
        "penalty": SearchAxis(kind="loguniform", low=1e-4, high=1e2),
        "standardise": SearchAxis(kind="choice", values=(True, False)),
        "width": SearchAxis(kind="choice", values=(16, 32, 64, 128)),
        "depth": SearchAxis(kind="choice", values=(1, 2, 3)),
        "learning_rate": SearchAxis(kind="loguniform", low=3e-4, high=3e-2),
    }


def run_probe_stage(
    point: ResolvedPoint, *, search: Mapping[str, SearchAxis] | None = None, quiet: bool = False
) -> Stage:
    """The probe stage: the grid, then the search if configured. Returns at once if the stage is done.

    Args:
        search: `probe.` + setting (`config.probe_search.SETTINGS`) -> space; the default space when absent.

    Raises:
        ConfigError: the space contains settings that no trial can use.
        StageError: some blocks failed; the others are kept, and the same call resumes.
    """
    run, stage = point.run, point.stages["probe"]
    if stage.is_done():
        return stage
    work, local = open_probes(point, quiet=quiet), run.how.backend == "local"
    search_space = {key.removeprefix(PREFIX): axis for key, axis in (search or {}).items() if key.startswith(PREFIX)}
    if run.probe.search_trials:
        check_space(work, search_space)
    if work.missing():
        fit_missing(work, run, quiet=quiet) if local else _fit_on_ray(work, run, quiet)
    if not run.probe.search_trials:
        return finish(work)
    data = load_search_data(work)
    space = search_space or default_space(data)
    table = (_search_here if local else _search_on_ray)(data, space, run, stage, quiet)
    stage.write_shard(len(work.blocks), {"probe_search": table})
    best = table.filter("best").row(0, named=True)
    return finish(work, {"search": {key: value for key, value in best.items() if value is not None}})


# ---------------------------------------------------------------- the grid


def _fit_on_ray(work: Work, run: RunConfig, quiet: bool) -> None:
    import ray

    from orchestrator.cluster.placement import Pool, n_cores, n_places
    from orchestrator.cluster.session import session

    how = run.how
    with session(how, work.stage.storage) as cluster:
        how = cluster.patient(how)
        cores = n_cores() if len(cluster.nodes) == 1 and not cluster.limits else cluster.cpus
        threads = how.torch_threads or 1
        cpus = max(1.0, cluster.cpus / cores) * threads  # a local Ray session may report more CPUs than cores
        missing = work.missing()
        share = min(1.0, how.gpus_per_actor or 1.0)
        useful = cluster.gpus > 0 and work.config.engine == "batched"  # scikit-learn runs on cores
        places = n_places(cluster.nodes, share, cluster.limits) if useful else 0
        chosen = place(
            work.sizes(missing), cores / threads, places, mlp="mlp" in work.config.solvers, requested=how.gpus_per_actor
        )
        shared = ray.put(work)
        if chosen.on_gpu:
            # Ray starts a new process for every task with a GPU, which costs 5 s per block; an actor keeps its process.
            n = max(1, min(places, len(missing)))
            cluster.check([Pool("probe actors", n, cpus, share)])
            kind = ray.remote(
                num_cpus=cpus, num_gpus=share, max_restarts=how.max_retries, max_task_retries=how.max_retries
            )(_FitActor)
            actors: list[Any] = [kind.remote(shared, threads) for _ in range(n)]
            names = {actors[k % n].fit.remote(i): work.name(i) for k, i in enumerate(missing)}
        else:
            cluster.check([Pool("probe tasks", 1, cpus)])
            task = ray.remote(num_cpus=cpus, max_retries=how.max_retries)(_fit_task)
            names = {task.remote(shared, i, threads): work.name(i) for i in missing}
        failures: dict[str, str] = {}
        with block_progress(work, run, quiet) as progress:
            pending = list(names)
            while pending:
                ready, pending = ray.wait(pending, timeout=how.no_progress_timeout_s)
                if not ready:
                    for ref in pending:
                        ray.cancel(ref)
                    raise StageError(
                        f"probe: no block finished for {how.no_progress_timeout_s:g} s (how.no_progress_timeout_s); "
                        f"{len(pending)} are left; finished blocks are kept"
                    )
                for ref in ready:
                    try:
                        ray.get(ref)
                    except ray.exceptions.RayError as error:
                        failures[names[ref]] = str(getattr(error, "cause", error)).strip().splitlines()[-1]
                    progress.advance(note=names[ref])
        if failures:
            lines = "\n".join(f"  {name}: {reason}" for name, reason in failures.items())
            raise StageError(f"{len(failures)} of {len(names)} probe blocks failed; the others are kept:\n{lines}")


def _fit_task(work: Work, index: int, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    fit_block(work, index, "cpu")


class _FitActor:
    """A process with a GPU that fits one block after another."""

    def __init__(self, work: Work, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.work, self.device = work, "cuda" if torch.cuda.is_available() else "cpu"

    def fit(self, index: int) -> None:
        fit_block(self.work, index, self.device)


# ---------------------------------------------------------------- the search


def _draw(space: dict[str, SearchAxis], run: RunConfig) -> list[dict[str, Any]]:
    """The sampled settings; the same on every machine and backend."""
    random = np.random.default_rng(run.probe.seed)
    return [{name: draw(axis, random) for name, axis in space.items()} for _ in range(run.probe.search_trials)]


def _advance(progress: Progress, evaluation: Evaluation, skill: float) -> None:
    """Count a fit, and keep its skill on validation images for who follows the search."""
    if evaluation.held_out:
        progress.advance()
    else:
        progress.advance(skill=skill)


def _search_here(
    data: SearchData, space: dict[str, SearchAxis], run: RunConfig, stage: Stage, quiet: bool
) -> pl.DataFrame:
    samples = _draw(space, run)
    with Progress("probe search", None, "fits", quiet=quiet, about=stage.digest) as progress:

        def judge_all(evaluations: list[Evaluation]) -> list[float]:
            skills = []
            for evaluation in evaluations:
                skills.append(evaluate(data, evaluation))
                _advance(progress, evaluation, skills[-1])
            return skills

        return search_table(data, halve(data, samples, judge_all), judge_all)


def _search_on_ray(
    data: SearchData, space: dict[str, SearchAxis], run: RunConfig, stage: Stage, quiet: bool
) -> pl.DataFrame:
    import ray

    from orchestrator.cluster.placement import n_cores
    from orchestrator.cluster.session import session

    samples = _draw(space, run)
    with (
        session(run.how, stage.store) as cluster,
        Progress("probe search", None, "fits", quiet=quiet, about=stage.digest) as progress,
    ):
        cpus = max(1.0, cluster.cpus / n_cores()) if len(cluster.nodes) == 1 and not cluster.limits else 1.0
        patience = cluster.patient(run.how).no_progress_timeout_s
        task = ray.remote(num_cpus=cpus, max_retries=run.how.max_retries)(_judge_task)
        shared = ray.put(data)

        def judge_all(evaluations: list[Evaluation]) -> list[float]:
            places = {task.remote(shared, evaluation): i for i, evaluation in enumerate(evaluations)}
            skills: dict[int, float] = {}
            pending = list(places)
            while pending:
                ready, pending = ray.wait(pending, timeout=patience)
                if not ready:
                    raise StageError(f"probe search: nothing finished for {patience:g} s (how.no_progress_timeout_s)")
                for reference in ready:
                    try:
                        skills[places[reference]] = ray.get(reference)
                    except ray.exceptions.RayError as error:
                        reason = str(getattr(error, "cause", error)).strip().splitlines()[-1]
                        raise StageError(
                            f"probe search: {evaluations[places[reference]].settings}: {reason}"
                        ) from error
                    _advance(progress, evaluations[places[reference]], skills[places[reference]])
            return [skills[i] for i in range(len(evaluations))]

        return search_table(data, halve(data, samples, judge_all), judge_all)


def _judge_task(data: SearchData, evaluation: Evaluation) -> float:
    import torch

    torch.set_num_threads(1)
    return evaluate(data, evaluation)


def search_table(
    data: SearchData, sampled: Sequence[Trial], judge_all: Callable[[list[Evaluation]], list[float]]
) -> pl.DataFrame:
    """Table `probe_search`: the study's own settings as trial 0, then the samples.

    Trial 0 and the best trial are refitted on all training images and scored on the held-out ones, by `judge_all`.
    """
    trials = [Trial({}, data.config.mlp_steps, judge_all([Evaluation({})])[0]), *sampled]
    best = max(range(len(trials)), key=lambda i: np.nan_to_num(trials[i].skill, nan=-np.inf))
    shown = sorted({0, best})
    held_out = dict(zip(shown, judge_all([Evaluation(trials[i].settings, held_out=True) for i in shown]), strict=True))
    config = data.config
    study_settings = {"solver": "study", "positions": "all", "standardise": config.standardise}
    study_settings |= {name: getattr(config, f"mlp_{name}") for name in NET_SETTINGS}
    rows = []
    for i, trial in enumerate(trials):
        row = {**study_settings, **trial.settings}
        is_net = "mlp" in configured(config, trial.settings).solvers
        rows.append(
            {
                "trial": i,
                **{name: row.get(name) for name in ("solver", "positions", "standardise", "penalty")},
                **{name: row.get(name) if is_net else None for name in NET_SETTINGS},
                "steps": trial.steps,
                "stopped": trial.steps < config.mlp_steps,
                "skill": trial.skill,
                "held_out": held_out.get(i),
                "best": i == best,
            }
        )
    return check_table(pl.DataFrame(rows, infer_schema_length=None), "probe_search")
