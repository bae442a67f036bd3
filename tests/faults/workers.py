"""Workers with faults, in a module that Ray's processes can import."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.simulated import SimulatedWorker, Simulation
from orchestrator.capture.capture_stage import make_model_worker
from orchestrator.capture.loading import Loaded
from orchestrator.capture.shard_job import Job
from orchestrator.capture.shard_result import ShardResult
from orchestrator.capture.shard_worker import CaptureWorker
from orchestrator.errors import StorageError
from orchestrator.store.stage_folder import Stage


@dataclass(frozen=True)
class Watched(Simulation):
    """Leaves in `folder` the process id of every worker, and a line for every shard it begins."""

    folder: str = ""

    def __call__(self, job: Job, threads: int | None) -> SimulatedWorker:
        return WatchedWorker(job, self)


class WatchedWorker(SimulatedWorker):
    simulation: Watched

    def __init__(self, job: Job, simulation: Watched) -> None:
        super().__init__(job, simulation)
        (Path(simulation.folder) / f"{os.getpid()}.pid").touch()

    def shard(self, images: Sequence[Loaded]) -> ShardResult:
        with (Path(self.simulation.folder) / "begun").open("a") as log:
            log.write(f"{images[0].index // self.job.shard_size}\n")
        with (Path(self.simulation.folder) / f"begun.{os.getpid()}").open("a") as log:
            log.write(f"{images[0].index // self.job.shard_size}\n")
        return super().shard(images)


@dataclass(frozen=True)
class SlowNode(Watched):
    """The first worker to come up takes twenty times as long as the others."""

    def __call__(self, job: Job, threads: int | None) -> SimulatedWorker:
        worker = WatchedWorker(job, self)
        try:
            with (Path(self.folder) / "slow").open("x") as slow:
                slow.write(str(os.getpid()))
        except FileExistsError:
            return worker
        worker.simulation = SlowNode(self.seconds * 20, self.n_layers, self.n_positions, self.width, self.folder)
        return worker


@dataclass(frozen=True)
class DiskFills(Simulation):
    """No shard is written once `room` of them are there."""

    room: int = 0

    def __call__(self, job: Job, threads: int | None) -> SimulatedWorker:
        write = Stage.write_shard

        def write_shard(stage: Stage, *args: object) -> None:
            if len(stage.written_shards()) >= self.room:
                raise StorageError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(stage, *args)  # type: ignore[arg-type]

        Stage.write_shard = write_shard  # type: ignore[assignment, method-assign]  # in this actor's process alone
        return super().__call__(job, threads)


class LittleMemory:
    """The real worker on a device that holds two images at a time."""

    def __call__(self, job: Job, threads: int | None) -> CaptureWorker:
        worker = make_model_worker(job, threads)
        assert isinstance(worker, CaptureWorker)
        run = worker.adapter.run

        def run_in_little_memory(batch: dict[str, torch.Tensor], **options: object) -> object:
            if len(batch["input_ids"]) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
            return run(batch, **options)

        worker.adapter.run = run_in_little_memory  # type: ignore[method-assign]
        return worker
