"""The capture stage: images in; tables `images`, `layer_metrics`, `rejected` and arrays `features/TAP` out.

A shard of images is the unit of work and of resume. Whatever the backend, it is loaded, captured and written by the
same code, so that the tables do not depend on how the work was done.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from orchestrator.capture.loading import load_shard
from orchestrator.capture.shard_job import Job, MakeWorker, ShardStats, Tally, Worker
from orchestrator.compression.registry import ENTRY_POINT_GROUP, chosen_names
from orchestrator.config import RunConfig
from orchestrator.data.sample import Source
from orchestrator.data.source import make_source
from orchestrator.models.catalogue import fingerprint
from orchestrator.plugins import registered_by
from orchestrator.progress import Progress
from orchestrator.store.filesystem import Storage
from orchestrator.store.stage_folder import Stage

VERSION = 5
"""Raised whenever the same configuration gives other tables; part of the digest."""


def capture_stage(run: RunConfig, storage: Storage) -> Stage:
    """The stage's directory, from fingerprints alone."""
    return _stage(run, storage, make_source(run.data))


def _stage(run: RunConfig, storage: Storage, source: Source) -> Stage:
    capture = run.capture.model_dump(mode="json")
    capture["metrics"] = list(chosen_names(run.capture.metrics, run.capture.spectrum))
    what = {
        "version": VERSION,
        "model": fingerprint(run.model),
        "dtype": run.model.dtype,
        "data": source.fingerprint(),
        "capture": capture,
    }
    if packages := registered_by(ENTRY_POINT_GROUP, capture["metrics"]):
        what["metrics_of"] = packages
    return Stage(storage, "capture", what)


def make_model_worker(job: Job, threads: int | None) -> Worker:
    """The worker of a real run."""
    from orchestrator.capture.shard_worker import CaptureWorker

    return CaptureWorker(job.run, job.attribute_kinds, threads=threads)


def run_capture(
    run: RunConfig, storage: Storage, *, quiet: bool = False, make_worker: MakeWorker = make_model_worker
) -> Stage:
    """Capture every image of `run.data`; shards that an earlier run finished are not computed again.

    Args:
        run: the point's configuration.
        storage: where stages lie.
        quiet: show no progress.
        make_worker: makes what computes a shard; a benchmark may simulate a model.

    Raises:
        VtsweepError: what stopped it. Finished shards are kept, and the same call goes on from them.
    """
    source = make_source(run.data)
    stage = _stage(run, storage, source)
    if stage.is_done():
        return stage
    with _backend(run, storage) as backend:
        dtype = backend.dtype if run.model.dtype == "auto" else run.model.dtype
        plan = stage.open({"n_images": len(source), "shard_size": run.how.shard_size, "dtype": dtype})
        job = make_job(run, stage, plan, source, make_worker)
        tally = Tally(job)
        todo = tally.resume()
        done = tally.n_images + tally.n_rejected
        with Progress(f"capture {run.model.name}", len(source), "images", done=done, quiet=quiet) as progress:
            for stats in backend.stream(job, source, todo) if todo else ():
                tally.add(stats)
                progress.advance(stats.n_images + stats.n_rejected, _note(tally))
    tally.close()
    stage.mark_done({**plan, "n_shards": job.n_shards, "n_captured": tally.n_images, "n_rejected": tally.n_rejected})
    return stage


def make_job(
    run: RunConfig, stage: Stage, plan: Mapping[str, Any], source: Source, make_worker: MakeWorker = make_model_worker
) -> Job:
    """The job of a stage as its first run planned it: a resumed run keeps the shards and the precision."""
    model = run.model.model_copy(update={"dtype": plan["dtype"]})
    return Job(
        run.model_copy(update={"model": model}),
        stage,
        plan["n_images"],
        plan["shard_size"],
        dict(source.attribute_kinds),
        make_worker,
    )


def _note(tally: Tally) -> str:
    return f"{tally.n_rejected} rejected" if tally.n_rejected else ""


# ---------------------------------------------------------------- backends


class Backend(NamedTuple):
    """How shards are captured: `dtype` is what `model.dtype: auto` means there."""

    dtype: str
    stream: Callable[[Job, Source, Sequence[int]], Iterator[ShardStats]]


@contextlib.contextmanager
def _backend(run: RunConfig, storage: Storage) -> Iterator[Backend]:
    if run.how.backend == "local":
        from orchestrator.capture.shard_worker import pick_device

        yield Backend("bfloat16" if pick_device() == "cuda" else "float32", stream_local)
        return
    from orchestrator.capture.ray import stream_ray
    from orchestrator.cluster.placement import capture_pool, reader_pool
    from orchestrator.cluster.session import session

    with session(run.how, storage) as cluster:
        pool = capture_pool(run.how, cluster.nodes, cluster.limits)
        cluster.check([pool, reader_pool()])

        def stream(job: Job, source: Source, shards: Sequence[int]) -> Iterator[ShardStats]:
            return stream_ray(job, source, shards, pool, len(cluster.nodes))

        yield Backend("bfloat16" if pool.gpus else "float32", stream)


def stream_local(job: Job, source: Source, shards: Sequence[int]) -> Iterator[ShardStats]:
    """Capture `shards` in this process, in order; the next one's images are loaded meanwhile."""
    worker = job.make_worker(job, job.run.how.torch_threads)
    with ThreadPoolExecutor(1, "loading") as ahead:
        waiting = ahead.submit(load_shard, source, job.images_of(shards[0]))
        for place, shard in enumerate(shards):
            images = waiting.result()
            if place + 1 < len(shards):
                waiting = ahead.submit(load_shard, source, job.images_of(shards[place + 1]))
            yield job.finish(shard, worker, images)
