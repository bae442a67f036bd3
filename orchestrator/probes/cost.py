"""Placement of the blocks of a probe grid: CPU cores or actors with a GPU, by the shorter estimated time.

Measured (26 November 2026; ten attributes, ridge and logistic): a block of 27 positions, 400 images and width 128 takes
2.8 s on one core and 1.0 s on an H200, one of 128 images and width 4,096 takes 9.4 and 2.8 s; a position of 2,000
images and width 3,584 takes 0.5 s on the H200. A process with a GPU needs 8 s before its first block. The
logistic solver was another one then; with the present one both take less, a GPU by more (not measured).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CORE = (0.077, 5.2e-7)
"""Seconds per position on one core: constant term, and factor of images x width."""
GPU = (0.03, 7e-8)
"""The same on a GPU."""
GPU_START = 8.0
"""Start-up time of a process with a GPU, s."""
MLP_FACTOR = {"core": 4.0, "gpu": 1.5}
"""Factor of a block's time with MLP probes."""


@dataclass(frozen=True)
class Placement:
    """Estimated wall time, s, on all cores and on all GPUs, and the choice."""

    on_gpu: bool
    core_seconds: float
    gpu_seconds: float

    @property
    def words(self) -> str:
        """One line for the plan."""
        chosen = "actors with a GPU" if self.on_gpu else "processor cores"
        gpus = f", {self.gpu_seconds:.0f} s on GPUs" if math.isfinite(self.gpu_seconds) else ""
        return f"{chosen} (about {self.core_seconds:.0f} s on cores{gpus})"


def place(
    blocks: Sequence[tuple[int, int, int]], cores: float, gpu_places: int, *, mlp: bool, requested: float | None = None
) -> Placement:
    """Choose cores or GPUs by the estimated time.

    Args:
        blocks: positions, images and width of each remaining block.
        cores: number of blocks fitted at a time on CPU cores.
        gpu_places: number of actors that the GPUs hold at a time; 0 without a GPU.
        mlp: whether MLPs are among the probes.
        requested: `how.gpus_per_actor`, which overrides the estimate if set.
    """
    core = _wall(blocks, CORE, cores) * (MLP_FACTOR["core"] if mlp else 1.0)
    if not gpu_places:
        return Placement(False, core, math.inf)
    gpu = GPU_START + _wall(blocks, GPU, gpu_places) * (MLP_FACTOR["gpu"] if mlp else 1.0)
    return Placement(gpu < core if requested is None else requested > 0, core, gpu)


def _wall(blocks: Sequence[tuple[int, int, int]], rate: tuple[float, float], at_once: float) -> float:
    """Wall time, s, of all blocks: their sum divided by the workers, at least the longest block."""
    seconds = [positions * (rate[0] + rate[1] * images * width) for positions, images, width in blocks]
    return max([sum(seconds) / max(1.0, at_once), *seconds], default=0.0)
