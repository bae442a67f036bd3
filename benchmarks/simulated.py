"""A stand-in for a model: real tensors of real size after a fixed time, and nothing that depends on chance."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.capture.loading import Loaded
from orchestrator.capture.shard_job import Job
from orchestrator.capture.shard_result import ShardResult
from orchestrator.capture.tables import images_table, metrics_table, rejected_table

METRICS = ("gini", "stable_rank")


@dataclass(frozen=True)
class Simulation:
    """Makes workers (`run_capture(make_worker=...)`) whose model takes `seconds` an image and holds no core."""

    seconds: float = 0.0
    n_layers: int = 4
    n_positions: int = 8
    width: int = 64

    def __call__(self, job: Job, threads: int | None) -> SimulatedWorker:
        return SimulatedWorker(job, self)


class SimulatedWorker:
    """Captures images of a shard: every value follows from the image's own pixels."""

    def __init__(self, job: Job, simulation: Simulation) -> None:
        self.job, self.simulation = job, simulation
        shape = (simulation.n_layers, simulation.n_positions, simulation.width)
        self.states = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)

    def shard(self, images: Sequence[Loaded]) -> ShardResult:
        rejected = {one.index: one.reason or "no image" for one in images if one.image is None}
        good = [one for one in images if one.image is not None]
        size = self.job.run.how.batch_size
        for start in range(0, len(good), size):
            time.sleep(self.simulation.seconds * len(good[start : start + size]))
        means = np.array([one.image.mean() / 255 for one in good if one.image is not None], dtype=np.float32)
        metrics = []
        for one, mean in zip(good, means, strict=True):
            values = np.array([mean, 1 + mean], dtype=np.float32)
            metrics.append(
                (one.image_id, {("decoder", k, "vision"): (64, values * k) for k in range(self.simulation.n_layers)})
            )
        features = (means[:, None, None, None] * self.states[None]).astype(np.float16)
        names = [f"vision_{k:02d}" for k in range(self.simulation.n_positions)]
        described = {"decoder": {"layers": list(range(self.simulation.n_layers)), "positions": names, "scaled": False}}
        tables = {
            "images": images_table(good, self.job.run.data.source, self.job.attribute_kinds),
            "layer_metrics": metrics_table(metrics, METRICS),
            "rejected": rejected_table(images, rejected),
        }
        return ShardResult(tables, {"features/decoder": features}, {"features": described}, len(good), len(rejected))
