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
        rejected = {image.index: image.reason or "no image" for image in images if image.image is None}
        readable = [image for image in images if image.image is not None]
        size = self.job.run.how.batch_size
        for start in range(0, len(readable), size):
            time.sleep(self.simulation.seconds * len(readable[start : start + size]))
        means = np.array([image.image.mean() / 255 for image in readable if image.image is not None], dtype=np.float32)
        metrics = []
        for image, mean in zip(readable, means, strict=True):
            values = np.array([mean, 1 + mean], dtype=np.float32)
            metrics.append(
                (image.image_id, {("decoder", k, "vision"): (64, values * k) for k in range(self.simulation.n_layers)})
            )
        features = (means[:, None, None, None] * self.states[None]).astype(np.float16)
        names = [f"vision_{k:02d}" for k in range(self.simulation.n_positions)]
        described = {"decoder": {"layers": list(range(self.simulation.n_layers)), "positions": names, "scaled": False}}
        tables = {
            "images": images_table(readable, self.job.run.data.source, self.job.attribute_kinds),
            "layer_metrics": metrics_table(metrics, METRICS),
            "rejected": rejected_table(images, rejected),
        }
        return ShardResult(
            tables, {"features/decoder": features}, {"features": described}, len(readable), len(rejected)
        )
