"""Capture on Ray Data: loading tasks feed a pool of model actors; one row is one shard.

The actor that computed a shard writes it, under names that depend on the shard alone. Only its counts return to the
driver, and a shard that is computed twice is harmless.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import pyarrow as pa

from orchestrator import errors
from orchestrator.capture.loading import from_row, load_shard, to_row
from orchestrator.capture.shard_job import Job, ShardStats
from orchestrator.cluster.placement import Pool, n_cores
from orchestrator.config import RunConfig
from orchestrator.data.sample import Source
from orchestrator.errors import ResourceError, StageError, VtsweepError

MAX_TASKS = 4096
"""Upper limit of loading tasks of a run; beyond it a task loads several shards, to limit the driver's bookkeeping."""
HUB_TIMEOUT_S = 3600.0
"""No-progress limit, in s, when weights may have to be downloaded."""


class CaptureActor:
    """One model in one process; `__call__` captures the shard of a one-row table.

    A `VtsweepError` is returned as a row: Ray would keep its text and lose its type.
    """

    def __init__(self, job: Job, n_beside: float, gpus: float) -> None:
        self.job = job
        self.error: VtsweepError | None = None
        self.started = time.time()
        try:
            self.worker = job.make_worker(job, actor_threads(job.run, n_beside, gpus))
            self.ready = time.time()
        except VtsweepError as error:
            self.error = error

    def __call__(self, row: pa.Table) -> pa.Table:
        shard, images = from_row(row)
        if self.error is None:
            try:
                stats = self.job.finish(shard, self.worker, images)
                return _report(replace(stats, worker_started=self.started, worker_ready=self.ready))
            except VtsweepError as error:
                return _report(ShardStats(shard, 0, 0), error)
        return _report(ShardStats(shard, 0, 0), self.error)


def _report(stats: ShardStats, error: VtsweepError | None = None) -> pa.Table:
    """A shard's result as a one-row table: its counts, or the error's type and message."""
    columns = {name: pa.array([value]) for name, value in vars(stats).items()}
    kind, message = (type(error).__name__, str(error)) if error else ("", "")
    return pa.table({**columns, "error": pa.array([kind]), "message": pa.array([message])})


def _stats(row: dict[str, Any]) -> ShardStats:
    """The inverse of `_report`; raises the error it holds."""
    if row["error"]:
        raise getattr(errors, row["error"], StageError)(row["message"])
    return ShardStats(**{field.name: row[field.name] for field in fields(ShardStats)})


_source: tuple[str, Source] | None = None
_source_lock = threading.Lock()


def _load(rows: pa.Table, job: Job, source: Any) -> pa.Table:
    """Load one shard; the source is fetched once per process."""
    import ray

    global _source
    with _source_lock:
        if _source is None or _source[0] != source.hex():
            _source = source.hex(), ray.get(source)
    shard = rows["shard"][0].as_py()
    return to_row(shard, load_shard(_source[1], job.images_of(shard)))


def stream_ray(job: Job, source: Source, shards: Sequence[int], pool: Pool, n_nodes: int) -> Iterator[ShardStats]:
    """Capture `shards` on a running Ray session; yields in order of completion.

    Args:
        job: the work; `job.make_worker` runs once per actor.
        source: images; sent once to every node.
        shards: shard numbers still to do.
        pool: the actors. An actor with a GPU prepares and writes one shard while its model runs another.
        n_nodes: number of nodes over which the actors are spread.

    Raises:
        VtsweepError: as raised in a worker; `StageError` or `ResourceError` for a worker that was lost or hangs.
    """
    import ray

    n_actors = min(pool.n, len(shards))
    n_upper = min(pool.most or n_actors, len(shards))
    size: dict[str, int] = {"size": n_actors}
    if n_upper > n_actors:
        size = {"min_size": n_actors, "max_size": n_upper}
    overlap = pool.gpus > 0
    calls = 2 if overlap else 1
    with _data_context(job.run) as data:
        images = data.from_items(
            [{"shard": shard} for shard in shards], override_num_blocks=min(len(shards), MAX_TASKS)
        )
        captured = images.map_batches(
            _load,
            batch_size=1,
            batch_format="pyarrow",
            fn_kwargs={"job": job, "source": ray.put(source)},
            num_cpus=1,
            # Ray Data does not fuse a sized task pool into the actors: loading overlaps with the models.
            compute=data.TaskPoolStrategy(size=len(shards)),
        ).map_batches(
            CaptureActor,
            fn_constructor_kwargs={"job": job, "n_beside": math.ceil(n_actors / n_nodes), "gpus": pool.gpus},
            batch_size=1,
            batch_format="pyarrow",
            compute=data.ActorPoolStrategy(
                **size,
                max_tasks_in_flight_per_actor=calls + 1,
                max_concurrent_calls_per_actor=calls,
                enable_true_multi_threading=overlap,
            ),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
        )
        with _our_errors(job):
            for row in captured.iter_rows():
                yield _stats(row)


@contextlib.contextmanager
def _data_context(run: RunConfig) -> Iterator[Any]:
    """`ray.data` with the settings of this run; the previous ones are restored on exit."""
    import ray.data

    from orchestrator.models.catalogue import resolve

    context = ray.data.DataContext.get_current()
    downloads = resolve(run.model).folder is None
    settings = {
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        # Every shard becomes a separate block as soon as it is loaded, whatever its size.
        "target_max_block_size": 1,
        "execution_no_progress_timeout_s": max(run.how.no_progress_timeout_s, HUB_TIMEOUT_S if downloads else 0.0),
    }
    before = {name: getattr(context, name) for name in settings}
    logger = logging.getLogger("ray.data")
    level = logger.level
    try:
        logger.setLevel(logging.CRITICAL)  # errors are raised and reported once
        for name, value in settings.items():
            setattr(context, name, value)
        yield ray.data
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            setattr(context, name, value)


@contextlib.contextmanager
def _our_errors(job: Job) -> Iterator[None]:
    """Translate Ray's exceptions into errors of this run."""
    from ray.data.exceptions import ExecutionTimeoutError
    from ray.exceptions import RayError

    try:
        yield
    except ExecutionTimeoutError as error:
        limit = job.run.how.no_progress_timeout_s
        raise ResourceError(
            f"capture: no shard moved for {limit:g} s (how.no_progress_timeout_s); a worker hangs, the cluster has no "
            "resources for one, or other work holds its cores (workers have low priority unless RAY_worker_niceness=0)."
            " Finished shards are kept."
        ) from error
    except RayError as error:
        text = " ".join(str(error).split())
        raise StageError(
            f"capture: a worker failed: {text[-1500:]} Finished shards are kept; run the command again to resume."
        ) from error


def actor_threads(run: RunConfig, n_beside: float, gpus: float) -> int:
    """Torch threads of one actor: the cores of the node on which it runs, divided by the actors there.

    Called in the actor: nodes of a cluster differ in their cores, and the driver's node is often the smallest.

    Args:
        n_beside: actors of a node without GPUs.
        gpus: GPUs of an actor; with some, as many actors share the node as its GPUs hold.
    """
    if run.how.torch_threads is not None:
        return run.how.torch_threads
    return max(1, int(n_cores() // max(1.0, gpus_of_this_node() / gpus if gpus else n_beside)))


def gpus_of_this_node() -> float:
    """GPUs of the node on which this worker runs."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return next((node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["NodeID"] == here), 0.0)
