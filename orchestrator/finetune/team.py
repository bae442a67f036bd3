"""The processes that train one trial together: each takes its share of a step's micro-batches, gradients are summed.

The sum of all processes' gradients is that of one process (`train` divides by the answer tokens of the whole step), so
every process takes the same optimiser step and holds the same weights. Only trained parameters are exchanged, once a
step, in one piece: megabytes for LoRA.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import distributed, nn

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """This process's place among those of the trial; alone without `torch.distributed`."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes checkpoints, asks the questions and stores the results."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's items: every `size`-th."""
        return items[self.rank :: self.size]

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over the team; a process without one adds zeros."""
        if self.size == 1:
            return
        trained = list(parameters)
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])
        distributed.all_reduce(flat)
        for p, grad in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
            p.grad = grad.view_as(p)

    def sum(self, value: float, device: torch.device) -> float:
        """A number summed over the team."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=device)
        distributed.all_reduce(total)
        return float(total)


def this_team() -> Team:
    """The team of this process."""
    if distributed.is_available() and distributed.is_initialized():
        return Team(distributed.get_rank(), distributed.get_world_size())
    return Team()
