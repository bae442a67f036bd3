"""The capture stage: images in; tables `images`, `layer_metrics`, `rejected` and arrays `features/TAP` out.

A shard of images is the unit of work and of resume. Whatever the backend, it is loaded, captured and written by the
same code, so that the tables do not depend on how the work was done.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from orchestrator.capture.loading import load_shard
from orchestrator.capture.shard_job import Job, MakeWorker, ShardStats, Tally, Worker
from orchestrator.compression.registry import chosen_names
from orchestrator.data.sample import Source
from orchestrator.data.source import make_source
from orchestrator.progress import Progress
from orchestrator.store.resolved_point import ResolvedPoint
from orchestrator.store.stage_folder import Stage

VERSION = 5
"""Raised whenever the same configuration gives other tables; part of the digest."""


def capture_stage(point: ResolvedPoint) -> Stage:
    """The directory of a capture, without work."""
    config = point.run.capture
    capture = {**config.model_dump(mode="json"), "metrics": list(chosen_names(config.metrics, config.spectrum))}
    what = {"version": VERSION, "model": point.model, "data": point.data, "capture": capture}
    if packages := point.packages_of("metrics", capture["metrics"]):
        what["metrics_of"] = packages
    return Stage(point.storage, "capture", what)


def make_model_worker(job: Job, threads: int | None) -> Worker:
    """The worker of a real run."""
    from orchestrator.capture.shard_worker import CaptureWorker

    return CaptureWorker(job.run, job.attribute_kinds, threads=threads)


def run_capture(point: ResolvedPoint, *, quiet: bool = False, make_worker: MakeWorker = make_model_worker) -> Stage:
    """Capture every image of the point's data; shards that an earlier run finished are not computed again.

    Args:
        quiet: show no progress.
        make_worker: makes what computes a shard; a benchmark may simulate a model.

    Raises:
        VtsweepError: what stopped it. Finished shards are kept, and the same call goes on from them.
    """
    run, stage = point.run, point.stages["capture"]
    if stage.is_done():
        return stage
    with _backend(point) as stream:
        source = make_source(run.data)
        plan = stage.open({"n_images": point.n_images, "shard_size": run.how.shard_size})
        job = make_job(point, plan, make_worker)
        tally = Tally(job)
        todo = tally.resume()
        done = tally.n_images + tally.n_rejected
        title, about = f"capture {run.model.name}", stage.digest
        with Progress(title, len(source), "images", done=done, quiet=quiet, about=about) as progress:
            for stats in stream(job, source, todo) if todo else ():
                tally.add(stats)
                progress.advance(stats.n_images + stats.n_rejected, _note(tally))
    tally.close()
    stage.mark_done({**plan, "n_shards": job.n_shards, "n_captured": tally.n_images, "n_rejected": tally.n_rejected})
    return stage


def make_job(point: ResolvedPoint, plan: Mapping[str, Any], make_worker: MakeWorker = make_model_worker) -> Job:
    """The job of a stage as its first run planned it: a resumed run keeps the shards."""
    stage, kinds = point.stages["capture"], dict(point.attribute_kinds)
    return Job(point.run, stage, plan["n_images"], plan["shard_size"], kinds, make_worker)


def _note(tally: Tally) -> str:
    return f"{tally.n_rejected} rejected" if tally.n_rejected else ""


# ---------------------------------------------------------------- backends


Stream = Callable[[Job, Source, Sequence[int]], Iterator[ShardStats]]
"""Captures shards and says what came of each."""


@contextlib.contextmanager
def _backend(point: ResolvedPoint) -> Iterator[Stream]:
    """Where shards are captured: in this process, or on a Ray of this length."""
    how = point.run.how
    if how.backend == "local":
        yield stream_local
        return
    from orchestrator.capture.ray import stream_ray
    from orchestrator.cluster.placement import capture_pool, reader_pool
    from orchestrator.cluster.session import session

    with session(how, point.storage) as cluster:
        pool = capture_pool(how, cluster.nodes, cluster.limits)
        cluster.check([pool, reader_pool()])

        def stream(job: Job, source: Source, shards: Sequence[int]) -> Iterator[ShardStats]:
            return stream_ray(job, source, shards, pool, len(cluster.nodes))

        yield stream


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
