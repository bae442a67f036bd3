"""How capture scales with workers and with images, on a model that takes a fixed time and real tensors.

    python -m benchmarks.scale [--quick]

Each worker stands for a GPU: it waits a fixed time a batch, then hands back and writes tensors of real size. What is
measured is therefore everything else: loading, scheduling, writing, the driver's bookkeeping, resume.

    workers     1, 2 and 4 on the same images: throughput and efficiency against one worker
    images      500, 5,000 and 50,000 with 4 workers: throughput, memory of driver and object store, overhead an image
    resume      the same call on the finished stage, and on one whose `_SUCCESS` is gone (every shard is checked)

The last line is one JSON object: `efficiency_4`, `memory_50000_over_500` (driver), `resume_seconds` (every shard
checked), `overhead_ms_per_image` (4 workers, most images).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.simulated import Simulation
from orchestrator.capture.capture_stage import run_capture
from orchestrator.cluster.session import session
from orchestrator.config import HowConfig, RunConfig, ScenesConfig
from orchestrator.store.filesystem import Storage
from orchestrator.store.stage_folder import SUCCESS
from orchestrator.study.resolve import resolve_run

SECONDS_PER_IMAGE = 0.04
"""A 7B model on one GPU captures about 25 images a second."""
BATCH, SHARD = 16, 64


def make_run(n_images: int, n_actors: int) -> RunConfig:
    how = HowConfig(batch_size=BATCH, shard_size=SHARD, n_actors=n_actors, cpus_per_actor=0.25)
    # Small images: on this machine all simulated GPUs share the cores that load them.
    data = ScenesConfig(n_images=n_images, n_objects=(1, 3), width=64, height=64, seed=n_actors)
    return RunConfig(data=data, how=how)


@dataclass
class Watch:
    """Peak memory of this process and of the object store while a block runs, bytes."""

    driver: int = 0
    store: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watch:
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        import ray

        process = psutil.Process()
        while not self._stop.wait(0.5):
            self.driver = max(self.driver, process.memory_full_info().uss)
            total = ray.cluster_resources().get("object_store_memory", 0.0)
            free = ray.available_resources().get("object_store_memory", 0.0)
            self.store = max(self.store, int(total - free))

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@dataclass(frozen=True)
class Result:
    seconds: float
    steady: float
    """Seconds from the first finished shard to the last, scaled to all images."""
    driver: int
    store: int


def measure(n_images: int, n_actors: int, storage: Storage, seconds: float = SECONDS_PER_IMAGE) -> Result:
    """Capture `n_images` with simulated models; Ray is running."""
    from orchestrator.capture.capture_stage import make_job
    from orchestrator.capture.ray import stream_ray
    from orchestrator.capture.shard_job import Tally
    from orchestrator.cluster.placement import capture_pool
    from orchestrator.cluster.session import resources
    from orchestrator.data.source import make_source

    run = make_run(n_images, n_actors)
    source = make_source(run.data)
    point = resolve_run(run, storage, "capture")
    stage = point.stages["capture"]
    plan = stage.open({"n_images": n_images, "shard_size": SHARD})
    job = make_job(point, plan, Simulation(seconds))
    tally = Tally(job)
    cluster = resources()
    started = time.perf_counter()
    times: list[float] = []
    with Watch() as watch:
        for stats in stream_ray(job, source, tally.resume(), capture_pool(run.how, cluster.nodes), 1):
            tally.add(stats)
            times.append(time.perf_counter())
    tally.close()
    stage.mark_done({**plan, "n_captured": tally.n_images, "n_rejected": 0, "n_shards": job.n_shards})
    # The first shards of all workers end together; what follows is the steady part.
    first = min(n_actors, len(times) - 1)
    steady = (times[-1] - times[first - 1]) / (len(times) - first) * len(times)
    return Result(times[-1] - started, steady, watch.driver, watch.store)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the images")
    quick = parser.parse_args().quick
    for_workers = 1024 if quick else 4096
    series = (128, 1280, 5120) if quick else (500, 5_000, 50_000)
    with (
        tempfile.TemporaryDirectory(prefix="vtsweep-scale-") as folder,
        session(HowConfig(object_store_gb=1.0)),
    ):
        storage = Storage(folder)
        measure(2 * SHARD, 4, storage)  # starts Ray's processes
        print(f"{'workers':>8} {'images':>8} {'images/s':>9} {'efficiency':>11}", flush=True)
        rates: dict[int, float] = {}
        for n_actors in (1, 2, 4):
            rates[n_actors] = for_workers / measure(for_workers, n_actors, storage).steady
            efficiency = rates[n_actors] / (n_actors * rates[1])
            print(f"{n_actors:>8} {for_workers:>8} {rates[n_actors]:>9.1f} {efficiency:>11.3f}", flush=True)
        print(f"{'images':>8} {'images/s':>9} {'driver MB':>10} {'store MB':>9} {'overhead ms/image':>18}", flush=True)
        results: dict[int, Result] = {}
        overhead = 0.0
        for n_images in series:
            result = results[n_images] = measure(n_images, 4, Storage(f"{folder}/series"), SECONDS_PER_IMAGE / 4)
            overhead = 1e3 * (result.steady / n_images - SECONDS_PER_IMAGE / 16)
            print(
                f"{n_images:>8} {n_images / result.steady:>9.1f} {result.driver / 1e6:>10.0f} "
                f"{result.store / 1e6:>9.0f} {overhead:>18.3f}",
                flush=True,
            )
        point = resolve_run(make_run(series[-1], 4), Storage(f"{folder}/series"), "capture")
        started = time.perf_counter()
        run_capture(point, quiet=True)
        finished = time.perf_counter() - started
        Path(point.stages["capture"].store.path(SUCCESS)).unlink()
        started = time.perf_counter()
        run_capture(point, quiet=True)
        checked = time.perf_counter() - started
        print(f"resume of {series[-1]} images: finished {finished:.2f} s, every shard checked {checked:.2f} s")
    summary = {
        "efficiency_4": rates[4] / (4 * rates[1]),
        "memory_50000_over_500": results[series[-1]].driver / results[series[0]].driver,
        "resume_seconds": checked,
        "overhead_ms_per_image": overhead,
    }
    print(json.dumps({name: round(value, 3) for name, value in summary.items()}))


if __name__ == "__main__":
    main()
