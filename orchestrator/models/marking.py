"""A batch marked with what a pass shall delete of its vision tokens: chosen before, or by a reduction in the pass."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from orchestrator.errors import ModelError
from orchestrator.models.batching import Batch
from orchestrator.models.reduction import Reduction


def marked(batch: Batch, keep: Bool[Tensor, "B V"], layer: int, counts: Int[Tensor, " B"], n_layers: int) -> Batch:
    """Return the batch with `keep` and `keep_layer`; see `Adapter.drop`.

    Args:
        counts: vision tokens of each image.
        n_layers: decoder layers.

    Raises:
        ModelError: if `keep` does not fit the batch or there is no such layer.
    """
    rows, longest = len(counts), int(counts.max())
    if keep.dtype != torch.bool or keep.ndim != 2 or keep.shape[0] != rows or keep.shape[1] < longest:
        found = f"{keep.dtype} {tuple(keep.shape)}"
        raise ModelError(f"drop: `keep` is {found}; expected torch.bool ({rows}, {longest}).")
    if not 0 <= layer < n_layers:
        raise layer_error("drop", layer, n_layers - 1)
    inside = torch.arange(keep.shape[1])[None] < counts[:, None]
    return {**batch, "keep": keep.cpu() & inside, "keep_layer": torch.tensor(layer)}


def marked_to_reduce(batch: Batch, reduction: Reduction, n_layers: int) -> Batch:
    """Return the batch with a reduction on it; see `Adapter.reduce`.

    Raises:
        ModelError: there is no such layer, or the batch has labels.
    """
    for layer in reduction.layers:
        if not 0 <= layer < n_layers:
            raise layer_error("reduce", layer, n_layers - 1)
    if "labels" in batch:
        raise ModelError("reduce: the batch has labels; a reduction is for answers, `drop` also for a loss.")
    on_batch: Any = reduction
    return {**batch, "reduction": on_batch}


def layer_error(place: str, layer: int, last: int) -> ModelError:
    """Return the error for a decoder layer that is not there."""
    return ModelError(f"{place}: layer {layer}; expected 0 to {last}.")
