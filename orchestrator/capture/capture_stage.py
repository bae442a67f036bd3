"""The capture stage: reads images; writes tables `images`, `layer_metrics`, `rejected` and arrays `features/TAP`.

A shard of images is the unit of work and of resume. Every backend loads, captures and writes a shard by the same code,
so that the tables do not depend on the backend.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from orchestrator.capture.first_shard import FIRST_SHARD, FirstShard
from orchestrator.capture.loading import load_shard
from orchestrator.capture.shard_job import Job, MakeWorker, ShardStats, Tally, Worker
from orchestrator.compression.registry import chosen_names
from orchestrator.data.sample import Source
from orchestrator.data.source import make_source
from orchestrator.progress import Progress
from orchestrator.store.resolved_point import ResolvedPoint
from orchestrator.store.stage_folder import Stage

VERSION = 6
"""Incremented whenever the same configuration gives different tables; part of the digest."""


def capture_stage(point: ResolvedPoint) -> Stage:
    """The stage (directory and digest) of a capture; computes nothing."""
    config = point.run.capture
    capture = {**config.model_dump(mode="json"), "metrics": list(chosen_names(config.metrics, config.spectrum))}
    inputs = {"version": VERSION, "model": point.model, "data": point.data, "capture": capture}
    if packages := point.packages_of("metrics", capture["metrics"]):
        inputs["metrics_of"] = packages
    return Stage(point.storage, "capture", inputs)


def make_model_worker(job: Job, threads: int | None) -> Worker:
    """A worker that runs the model; the default of `run_capture`."""
    from orchestrator.capture.shard_worker import CaptureWorker

    return CaptureWorker(job.run, job.attribute_kinds, threads=threads)


def run_capture(point: ResolvedPoint, *, quiet: bool = False, make_worker: MakeWorker = make_model_worker) -> Stage:
    """Capture every image of the point's data; finished shards of an earlier run are skipped.

    Args:
        quiet: show no progress.
        make_worker: builds the worker that computes a shard; benchmarks pass a simulated model.

    Raises:
        VtsweepError: the run stopped. Finished shards are kept; the same call resumes after them.
    """
    run, stage = point.run, point.stages["capture"]
    if stage.is_done():
        return stage
    first = FirstShard()
    with _backend(point) as stream:
        source = make_source(run.data)
        plan = stage.open({"n_images": point.n_images, "shard_size": run.how.shard_size})
        job = make_job(point, plan, make_worker)
        tally = Tally(job)
        todo = tally.resume()
        done = tally.n_images + tally.n_rejected
        title, about = f"capture {run.model.label}", stage.digest
        with Progress(title, len(source), "images", done=done, quiet=quiet, about=about) as progress:
            first.ask()
            for stats in stream(job, source, todo) if todo else ():
                first.finished(stats)
                tally.add(stats)
                progress.advance(stats.n_images + stats.n_rejected, _note(tally))
    tally.close()
    counts = {"n_shards": job.n_shards, "n_captured": tally.n_images, "n_rejected": tally.n_rejected}
    stage.mark_done({**plan, **counts, **({FIRST_SHARD: first.seconds} if first.seconds else {})})
    return stage


def make_job(point: ResolvedPoint, plan: Mapping[str, Any], make_worker: MakeWorker = make_model_worker) -> Job:
    """The job with the sharding of the first run (`plan`), so that a resumed run has the same shards."""
    stage, kinds = point.stages["capture"], dict(point.attribute_kinds)
    return Job(point.run, stage, plan["n_images"], plan["shard_size"], kinds, make_worker)


def _note(tally: Tally) -> str:
    return f"{tally.n_rejected} rejected" if tally.n_rejected else ""


# ---------------------------------------------------------------- backends


Stream = Callable[[Job, Source, Sequence[int]], Iterator[ShardStats]]
"""Captures shards and yields the counts of each."""


@contextlib.contextmanager
def _backend(point: ResolvedPoint) -> Iterator[Stream]:
    """The `Stream` of the configured backend: this process, or a Ray session that ends with the context."""
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
            patient = replace(job, run=job.run.model_copy(update={"how": cluster.patient(how)}))
            return stream_ray(patient, source, shards, pool, len(cluster.nodes))

        yield stream


def stream_local(job: Job, source: Source, shards: Sequence[int]) -> Iterator[ShardStats]:
    """Capture `shards` in this process, in order; a thread reads the images of the first while the model is loaded, and
    those of each later one while the model runs."""
    with ThreadPoolExecutor(1, "loading") as executor:
        prefetched = executor.submit(load_shard, source, job.images_of(shards[0]))
        started = time.time()
        worker = job.make_worker(job, job.run.how.torch_threads)
        ready = time.time()
        for position, shard in enumerate(shards):
            images = prefetched.result()
            if position + 1 < len(shards):
                prefetched = executor.submit(load_shard, source, job.images_of(shards[position + 1]))
            yield replace(job.finish(shard, worker, images), worker_started=started, worker_ready=ready)
