"""Ablation cells in Ray actors, each of which loads the model and prepares the questions once.

The actor that runs a cell writes its shard: a lost actor costs its current cell, and finished shards are not repeated.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.ablate.ablate_stage import finish, open_ablation, run_ablate, unfinished, work
from orchestrator.ablate.cells import Cell
from orchestrator.cluster.placement import Pool, n_cores, place
from orchestrator.cluster.session import Cluster, session
from orchestrator.config import RunConfig
from orchestrator.errors import StageError, VtsweepError
from orchestrator.progress import Progress
from orchestrator.store.resolved_point import ResolvedPoint
from orchestrator.store.stage_folder import Stage


def run_ablate_stage(point: ResolvedPoint, *, quiet: bool = False) -> Stage:
    """Run an ablation with the backend `how.backend`; does nothing if it is done.

    Raises:
        ResourceError: the cluster could never hold the actors.
        StageError: a cell failed repeatedly, or no cell finished within `how.no_progress_timeout_s`.
    """
    run, stage = point.run, point.stages["ablate"]
    if stage.is_done() or run.how.backend == "local":
        return run_ablate(point, quiet=quiet)
    cells = open_ablation(run, stage)
    pending = unfinished(stage, cells)
    n_done = len(cells) - len(pending)
    title, about = f"ablate {run.model.label}", stage.digest
    with Progress(title, len(cells), "cells", done=n_done, quiet=quiet, about=about) as progress:
        if pending:
            with session(run.how, point.storage) as cluster:
                _run_cells(run, stage, cells, pending, cluster, progress)
    return finish(run, stage, cells)


class AblateWorker:
    """One process that asks cells of one model."""

    def __init__(self, run: dict[str, Any], folder: str) -> None:
        if Path(folder).is_dir():  # relative paths of models and data mean what they meant to the driver
            os.chdir(folder)
        self.run = RunConfig.model_validate(run)
        self.ablation: Any = None

    def cell(self, stage: Stage, index: int, cell: Cell) -> str | None:
        """Run a cell and write its shard, unless a lost actor already did; returns the message of an error, if any."""
        from orchestrator.ablate.runner import Ablation, load_model

        if stage.read_shard(index) is not None:
            return None
        try:
            if self.ablation is None:
                self.ablation = Ablation(load_model(self.run), self.run)
            work(self.ablation, stage, index, cell)
        except VtsweepError as error:
            return str(error)
        return None


def ablate_pool(run: RunConfig, cluster: Cluster, n_cells: int) -> tuple[Pool, int]:
    """Actors and threads per actor: one per GPU, else one per core, since small models gain little from threads."""
    how = run.how
    cores = n_cores() if len(cluster.nodes) == 1 and not cluster.limits else int(cluster.cpus)
    at_once = int(cores // max(how.cpus_per_actor, how.torch_threads or 1))
    pool = place("ablation actors", how, cluster.nodes, cluster.limits, otherwise=at_once)
    pool = replace(pool, n=min(pool.n, n_cells))
    return pool, how.torch_threads or max(1, cores // pool.n)


def _run_cells(
    run: RunConfig, stage: Stage, cells: Sequence[Cell], pending: Sequence[int], cluster: Cluster, progress: Progress
) -> None:
    import ray

    pool, threads = ablate_pool(run, cluster, len(pending))
    cluster.check([pool])
    how = cluster.patient(run.how).model_copy(update={"torch_threads": threads})
    settings = run.model_copy(update={"how": how}).model_dump(mode="json")
    remote = ray.remote(AblateWorker).options(
        num_cpus=pool.cpus, num_gpus=pool.gpus, max_restarts=how.max_retries, max_task_retries=how.max_retries
    )
    actors = [remote.remote(settings, str(Path.cwd())) for _ in range(pool.n)]
    queue, running = list(pending), {}

    def give(actor: Any) -> None:
        if queue:
            index = queue.pop(0)
            running[actor.cell.remote(stage, index, cells[index])] = (actor, index)

    try:
        for actor in actors:
            give(actor)
        while running:
            ready, _ = ray.wait(list(running), timeout=how.no_progress_timeout_s)
            if not ready:
                waiting = ", ".join(cells[index].label for _, index in running.values())
                raise StageError(
                    f"ablate: nothing finished for {how.no_progress_timeout_s:g} s; waiting for {waiting}."
                )
            for reference in ready:
                actor, index = running.pop(reference)
                give(actor)
                problem = _result(ray, reference)
                if problem:
                    raise StageError(f"ablate: {cells[index].label}: {problem} What was finished is kept.")
                progress.advance(note=cells[index].label)
    finally:
        for actor in actors:
            ray.kill(actor)  # type: ignore[arg-type]


def _result(ray: Any, reference: Any) -> str | None:
    """Message of a cell's error; None without one."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayActorError as error:
        return f"its actor was lost too often ({str(error).splitlines()[0]})."
    except ray.exceptions.RayTaskError as error:
        return f"{type(error.cause).__name__}: {error.cause}"
