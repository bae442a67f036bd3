"""One tiny random model of each of the 13 classes, with three prompts whose images and texts differ in size."""

import os
from functools import cache

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from orchestrator.models.adapter import Adapter
from orchestrator.models.batching import Batch
from orchestrator.models.random_models import FAMILIES, random_adapter, random_example
from tests.models.molmo_stand_in import molmo_adapter, molmo_example

CLASSES = (*FAMILIES, "molmo")
RESIDUAL = tuple(family for family in CLASSES if family != "mllama")
SIZES = (((1, 1), 6, 1), ((2, 2), 4, 2), ((1, 2), 9, 3))


def fresh(family: str) -> Adapter:
    return molmo_adapter() if family == "molmo" else random_adapter(family)


adapter = cache(fresh)


@cache
def examples(family: str) -> list[Batch]:
    make = molmo_example if family == "molmo" else random_example
    return [make(adapter(family), *size) for size in SIZES]


def batch(family: str, n: int = 3) -> Batch:
    return adapter(family).collate(examples(family)[:n])


def some(batch_of: Batch, family: str, share: float = 0.5, seed: int = 0) -> torch.Tensor:
    """A random choice of vision tokens to keep, at least one of each image."""
    n = adapter(family).n_vision(batch_of)
    keep = torch.rand(len(n), int(n.max()), generator=torch.Generator().manual_seed(seed)) < share
    keep[:, 0] = True
    return keep


def same_answer(of_batch: torch.Tensor, alone: torch.Tensor) -> bool:
    """Whether a row of generated ids is the single one's, with padding after its end."""
    n = alone.shape[0]
    return torch.equal(of_batch[:n], alone) and not of_batch[n:].any()


def last(logits: torch.Tensor, n: int = 3) -> torch.Tensor:
    """Logits at the last positions, which are text in every row."""
    return logits[:, -n:]
