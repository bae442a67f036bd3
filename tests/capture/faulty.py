"""Workers that fail on purpose; a module of its own, so that Ray's processes can import it."""

from __future__ import annotations

import errno
import os

from benchmarks.simulated import SimulatedWorker, Simulation
from orchestrator.capture.shard_job import Job
from orchestrator.errors import ModelError, StorageError
from orchestrator.store.stage_folder import Stage


class FullDisk(Simulation):
    """Workers whose storage is full."""

    def __call__(self, job: Job, threads: int | None) -> SimulatedWorker:
        def write_shard(*_: object) -> None:
            raise StorageError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        Stage.write_shard = write_shard  # in the actor's process alone
        return super().__call__(job, threads)


class NoModel(Simulation):
    """Workers whose model does not load."""

    def __call__(self, job: Job, threads: int | None) -> SimulatedWorker:
        raise ModelError("reference-joint cannot be loaded")
