"""Ray around the probes: the grid as tasks, one a (tap, layer), and Ray Tune over the probes' own settings.

A task reads its tap point's features once and fits every probe on them; its shard is the unit of resume. A Tune trial
fits many probes in one call, on features that all trials share through the object store.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from orchestrator.config import RunConfig, SearchAxis
from orchestrator.config.probe_search import configured
from orchestrator.config.search_space import draw
from orchestrator.errors import StageError
from orchestrator.probes.probe_stage import (
    Work,
    block_progress,
    finish,
    fit_block,
    fit_missing,
    open_probes,
    probe_stage,
)
from orchestrator.probes.search import (
    LEVELS,
    SearchData,
    check_space,
    groups,
    judge,
    load_search_data,
    rungs,
)
from orchestrator.progress import Progress
from orchestrator.store.stage_folder import Stage, Storage
from orchestrator.store.tables.core import check_table

PREFIX = "probe."
NET_SETTINGS = ("width", "depth", "learning_rate")
Asked = tuple[dict[str, Any], bool]
QUARTERS = "quarters"
"""Reported by a trial beside its steps: how far it is through a whole training run, for the scheduler."""


def default_space(data: SearchData) -> dict[str, SearchAxis]:
    """What is searched unless the study says otherwise."""
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
    run: RunConfig,
    storage: Storage,
    capture: Stage,
    *,
    search: Mapping[str, SearchAxis] | None = None,
    quiet: bool = False,
) -> Stage:
    """The probe stage: the grid, then the search where one is asked for. Does nothing when the stage is done.

    Args:
        search: `probe.` + setting (`config.probe_search.SETTINGS`) -> space; the default space when absent.

    Raises:
        ConfigError: the space reaches settings no trial could use.
        StageError: blocks failed; the others are kept, and the same call resumes.
    """
    stage = probe_stage(run, storage, capture)
    if stage.is_done():
        return stage
    stage, capture = _absolute(stage), _absolute(capture)
    work, local = open_probes(run, stage, capture, quiet=quiet), run.how.backend == "local"
    given = {key.removeprefix(PREFIX): axis for key, axis in (search or {}).items() if key.startswith(PREFIX)}
    if run.probe.search_trials:
        check_space(work, given)
    if work.missing():
        fit_missing(work, run, quiet=quiet) if local else _fit_on_ray(work, run, quiet)
    if not run.probe.search_trials:
        return finish(work)
    data = load_search_data(work)
    space = given or default_space(data)
    table = _search_here(data, space, run, quiet) if local else _search_on_ray(data, space, run, stage.store, quiet)
    stage.write_shard(len(work.blocks), {"probe_search": table})
    best = table.filter("best").row(0, named=True)
    return finish(work, {"search": {key: value for key, value in best.items() if value is not None}})


def _absolute(stage: Stage) -> Stage:
    """The stage with a storage that means the same in a worker's folder."""
    uri = stage.storage.path("") if stage.storage.is_local else stage.storage.uri
    return Stage(Storage(uri), stage.name, stage.what, stage.inputs)


# ---------------------------------------------------------------- the grid


def _fit_on_ray(work: Work, run: RunConfig, quiet: bool) -> None:
    import ray

    from orchestrator.cluster.session import Pool, n_cores, session

    how = run.how
    with session(how, work.stage.storage) as cluster:
        cores = n_cores() if len(cluster.nodes) == 1 else cluster.cpus
        cpus = max(1.0, cluster.cpus / cores) * (how.torch_threads or 1)  # a local Ray may count more CPUs than cores
        gpus = min(1.0, how.gpus_per_actor if how.gpus_per_actor is not None else float(cluster.gpus > 0))
        cluster.check([Pool("probe tasks", 1, cpus, gpus)])
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=how.max_retries)(_fit_task)
        shared = ray.put(work)
        names = {task.remote(shared, i, how.torch_threads or 1, gpus > 0): work.name(i) for i in work.missing()}
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
                        f"{len(pending)} are left, what was finished is kept"
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


def _fit_task(work: Work, index: int, threads: int, on_gpu: bool) -> None:
    import torch

    torch.set_num_threads(threads)
    fit_block(work, index, "cuda" if on_gpu else "cpu")


# ---------------------------------------------------------------- the search


@dataclass(frozen=True)
class Trial:
    """Settings tried, the steps of the longest training run judged, and the skill it reached on validation images."""

    settings: dict[str, Any]
    steps: int
    skill: float


def _search_here(data: SearchData, space: dict[str, SearchAxis], run: RunConfig, quiet: bool) -> pl.DataFrame:
    random = np.random.default_rng(run.probe.seed)
    trials: list[Trial] = []
    with Progress("probe search", run.probe.search_trials, "trials", quiet=quiet) as progress:
        for _ in range(run.probe.search_trials):
            settings = {name: draw(axis, random) for name, axis in space.items()}
            *_, (steps, skill) = rungs(data, settings)
            trials.append(Trial(settings, steps, skill))
            progress.advance()
    return search_table(data, trials, lambda asked: [judge(data, settings, held_out=h) for settings, h in asked])


def _search_on_ray(
    data: SearchData, space: dict[str, SearchAxis], run: RunConfig, store: Storage, quiet: bool
) -> pl.DataFrame:
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    import ray
    from ray import tune

    from orchestrator.cluster.session import n_cores, session

    # Samples are drawn here, so that the local backend and every cluster try the same settings.
    random = np.random.default_rng(run.probe.seed)
    samples = [{name: draw(axis, random) for name, axis in space.items()} for _ in range(run.probe.search_trials)]
    with session(run.how, store) as cluster:
        cpus = max(1.0, cluster.cpus / n_cores()) if len(cluster.nodes) == 1 else 1.0
        with Progress("probe search", len(samples), "trials", quiet=quiet) as progress:
            tuner = tune.Tuner(
                tune.with_resources(tune.with_parameters(_search_trial, data=data), {"cpu": cpus}),
                param_space={"sample": tune.grid_search(list(enumerate(samples)))},
                tune_config=tune.TuneConfig(
                    metric="skill", mode="max", reuse_actors=True, scheduler=search_scheduler()
                ),
                run_config=tune.RunConfig(
                    name="probe_search",
                    storage_path=store.path("tune") if store.is_local else f"{store.uri}/tune",
                    failure_config=tune.FailureConfig(max_failures=run.how.max_retries),
                    callbacks=[_callback(progress)],
                    verbose=0,
                ),
            )
            results = tuner.fit()
        trials: dict[int, Trial] = {}
        for i in range(len(results)):
            metrics = results[i].metrics or {}
            if "skill" not in metrics:
                raise StageError(f"probe search: a trial failed: {str(results[i].error).strip().splitlines()[-1]}")
            number, settings = (results[i].config or {})["sample"]
            trials[number] = Trial(settings, metrics["steps"], metrics["skill"])
        task = ray.remote(num_cpus=cpus, max_retries=run.how.max_retries)(_judge_task)
        shared = ray.put(data)

        sampled = [trials[number] for number in sorted(trials)]
        table = search_table(data, sampled, lambda asked: ray.get([task.remote(shared, one) for one in asked]))
    store.fs.rm(store.path("tune"), recursive=True)
    return table


def _judge_task(data: SearchData, asked: Asked) -> float:
    import torch

    torch.set_num_threads(1)
    return judge(data, asked[0], held_out=asked[1])


def search_scheduler() -> Any:
    """ASHA over quarters of a whole training run: it halves the nets at a quarter and at a half.

    In steps its rungs would be multiples of a rounded quarter, which `LEVELS` of most numbers of steps just miss.
    """
    from ray.tune.schedulers import ASHAScheduler

    return ASHAScheduler(time_attr=QUARTERS, max_t=round(4 * LEVELS[-1]), grace_period=1, reduction_factor=2)


def _callback(progress: Progress) -> Any:
    from ray.tune import Callback

    class Shown(Callback):
        def __init__(self, *shown: Progress) -> None:
            self.shown = shown

        def __getstate__(self) -> dict[str, Any]:  # Tune pickles its callbacks; a terminal cannot be
            return {"shown": ()}

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            for one in self.shown:
                one.advance()

    return Shown(progress)


def _search_trial(config: dict[str, Any], data: SearchData) -> None:
    import torch
    from ray import tune

    torch.set_num_threads(1)
    for steps, skill in rungs(data, config["sample"][1]):
        tune.report({"steps": steps, QUARTERS: round(4 * steps / data.config.mlp_steps), "skill": skill})


def search_table(
    data: SearchData, sampled: Sequence[Trial], judge_all: Callable[[list[Asked]], list[float]]
) -> pl.DataFrame:
    """Table `probe_search`: the study's own settings as trial 0, then the samples.

    Trial 0 and the best are fitted anew on all training images and judged on the held-out ones, by `judge_all`.
    """
    trials = [Trial({}, data.config.mlp_steps, judge_all([({}, False)])[0]), *sampled]
    best = max(range(len(trials)), key=lambda i: np.nan_to_num(trials[i].skill, nan=-np.inf))
    shown = sorted({0, best})
    held_out = dict(zip(shown, judge_all([(trials[i].settings, True) for i in shown]), strict=True))
    config = data.config
    own = {"solver": "study", "positions": "all", "standardise": config.standardise}
    own |= {name: getattr(config, f"mlp_{name}") for name in NET_SETTINGS}
    rows = []
    for i, trial in enumerate(trials):
        row = {**own, **trial.settings}
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
