"""Where the time from the command to the first finished shard of a capture goes. Imports neither torch nor ray."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import pairwise

from orchestrator.capture.shard_job import ShardStats

FIRST_SHARD = "first_shard_s"
"""Entry of the stage's summary: seconds from the command to the first finished shard, by part."""
PARTS = ("before the stage", "ray and preparation", "worker start", "model", "first images")
"""The parts in order: imports and checks of the command and its earlier stages; the session and the list of work; a
worker's process; its weights, and what it checks; loading, passes and writing of its first shard."""


def command_start() -> float:
    """When this process began, s since the epoch."""
    import psutil

    return float(psutil.Process().create_time())


@dataclass
class FirstShard:
    """Times of a capture, all in s since the epoch; clocks of nodes are taken to agree."""

    command: float = field(default_factory=command_start)
    stage: float = field(default_factory=time.time)
    asked: float = 0.0
    """When the first shard was asked for."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Part -> s, and their sum as `total`; empty until a shard is finished."""

    def ask(self) -> None:
        """Work is about to be handed out."""
        self.asked = time.time()

    def finished(self, stats: ShardStats) -> None:
        """A shard is finished; only the first counts."""
        if self.seconds or not stats.worker_ready:
            return
        ends = (self.command, self.stage, self.asked, stats.worker_started, stats.worker_ready, time.time())
        parts = [max(0.0, end - start) for start, end in pairwise(ends)]
        named = dict(zip(PARTS, parts, strict=True))
        self.seconds = {name: round(value, 2) for name, value in {**named, "total": sum(parts)}.items()}
