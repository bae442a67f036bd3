"""Data-parallel training of one trial: each process computes a share of a step's micro-batches; gradients are summed.

The sum over processes equals the gradient of a single process (`train` divides by the answer tokens of the whole
step), so that every process takes the same optimiser step and holds the same weights. Only gradients of trained
parameters are exchanged, in one all-reduce per step: megabytes for LoRA.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import distributed, nn

T = TypeVar("T")


@dataclass(frozen=True)
class ProcessGroup:
    """Rank and world size of this process; one process without `torch.distributed`."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process (rank 0) writes checkpoints, evaluates the questions and stores the results."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """The items of this process: every `size`-th."""
        return items[self.rank :: self.size]

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """All-reduce: replace each gradient by its sum over processes; a missing gradient counts as zero."""
        if self.size == 1:
            return
        trained = list(parameters)
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])
        distributed.all_reduce(flat)
        for p, grad in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
            p.grad = grad.view_as(p)

    def sum(self, value: float, device: torch.device) -> float:
        """The sum of a number over processes."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=device)
        distributed.all_reduce(total)
        return float(total)


def current_process_group() -> ProcessGroup:
    """The process group of this process."""
    if distributed.is_available() and distributed.is_initialized():
        return ProcessGroup(distributed.get_rank(), distributed.get_world_size())
    return ProcessGroup()
