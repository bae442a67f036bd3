"""The capture job sent to every process, and the tally of finished shards. Imports neither torch nor ray."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import polars as pl

from orchestrator.capture.loading import Loaded, shard_range
from orchestrator.capture.shard_result import ShardResult
from orchestrator.config import RunConfig
from orchestrator.errors import StageError
from orchestrator.store.stage_folder import Stage


@dataclass(frozen=True)
class ShardStats:
    """Counts of a shard that has been written."""

    shard: int
    n_images: int
    n_rejected: int
    worker_started: float = 0.0
    """When construction of the shard's worker began, s since the epoch; 0 if not known."""
    worker_ready: float = 0.0
    """When its model was loaded."""


class Worker(Protocol):
    """A model with taps (`shard_worker.CaptureWorker`), or a simulated one in a benchmark."""

    def shard(self, images: Sequence[Loaded]) -> ShardResult: ...


@dataclass(frozen=True)
class Job:
    """One capture run; small when pickled."""

    run: RunConfig
    stage: Stage
    n_images: int
    shard_size: int
    attribute_kinds: Mapping[str, str]
    make_worker: MakeWorker
    """Called once per process with the job and the number of torch threads."""

    @property
    def n_shards(self) -> int:
        return -(-self.n_images // self.shard_size)

    def images_of(self, shard: int) -> range:
        return shard_range(shard, self.shard_size, self.n_images)

    def finish(self, shard: int, worker: Worker, images: Sequence[Loaded]) -> ShardStats:
        """Capture and write one shard."""
        result = worker.shard(images)
        self.stage.write_shard(shard, result.tables, result.arrays, result.extra)
        return ShardStats(shard, result.n_images, result.n_rejected)


MakeWorker = Callable[[Job, int | None], Worker]


@dataclass
class Tally:
    """Counts the images of finished shards; raises when too many are rejected."""

    job: Job
    n_images: int = 0
    n_rejected: int = 0
    finished: set[int] = field(default_factory=set)

    @property
    def limit(self) -> int:
        """Largest allowed number of rejected images."""
        # 0.29 * 100 is slightly less than 29 in floating point.
        return math.floor(self.job.run.data.max_rejected_fraction * self.job.n_images + 1e-9)

    def resume(self) -> list[int]:
        """Count the complete shards of earlier runs; returns the numbers of the remaining shards, ascending.

        If too many images were rejected before, shards with rejected images are computed again: the files may have
        been repaired since.
        """
        counts: dict[int, tuple[int, int]] = {}
        for shard, record in self.job.stage.finished_shards().items():
            counts[shard] = record["tables"]["images"], record["tables"]["rejected"]
        if sum(rejected for _, rejected in counts.values()) > self.limit:
            counts = {shard: (n, rejected) for shard, (n, rejected) in counts.items() if not rejected}
        for shard, (n_images, n_rejected) in counts.items():
            self.add(ShardStats(shard, n_images, n_rejected))
        return [shard for shard in range(self.job.n_shards) if shard not in self.finished]

    def add(self, stats: ShardStats) -> None:
        """Count a shard; a shard that is reported again is ignored.

        Raises:
            StageError: more than `data.max_rejected_fraction` of all images are rejected.
        """
        if stats.shard in self.finished:
            return
        self.finished.add(stats.shard)
        self.n_images += stats.n_images
        self.n_rejected += stats.n_rejected
        if self.n_rejected > self.limit:
            raise StageError(self._too_many())

    def _too_many(self) -> str:
        table = self.job.stage.scan("rejected").collect()
        reasons = (
            table.group_by("reason")
            .agg(n=pl.len(), example=pl.col("image_id").first())
            .sort("n", "reason", descending=[True, False])
        )
        lines = [f"  {row['n']} x {row['reason']} (first: {row['example']})" for row in reasons.head(10).to_dicts()]
        more = f"\n  and {reasons.height - 10} other reasons" if reasons.height > 10 else ""
        return (
            f"capture: {self.n_rejected} of {self.job.n_images} images are rejected; data.max_rejected_fraction="
            f"{self.job.run.data.max_rejected_fraction:g} allows {self.limit}:\n" + "\n".join(lines) + more
        )

    def close(self) -> None:
        """Verify that all shards exist and that captured + rejected equals `n_images`.

        Raises:
            StageError: a shard is missing, or the counts do not add up.
        """
        written = self.finished.intersection(self.job.stage.written_shards())
        missing = sorted(set(range(self.job.n_shards)) - written)
        if missing:
            raise StageError(
                f"capture: {len(missing)} of {self.job.n_shards} shards are not in {self.job.stage.storage.uri} "
                f"(first: {missing[0]}). If the nodes do not share that storage, use a shared one; then run again."
            )
        if self.n_images + self.n_rejected != self.job.n_images:
            raise StageError(
                f"capture: {self.n_images} captured and {self.n_rejected} rejected images do not add up to "
                f"{self.job.n_images}"
            )
