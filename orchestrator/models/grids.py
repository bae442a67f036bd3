"""Where images' vision tokens lie, (row, column, tile) of each, as tensors: of one row, and of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from orchestrator.models.batching import Batch
from orchestrator.models.geometry import NOWHERE, placeholder_grid


def join_grids(grids: Sequence[Int[Tensor, "V 3"]]) -> Int[Tensor, "B V 3"]:
    """Return the images' grids as one tensor, padded with -1."""
    return nn.utils.rnn.pad_sequence(list(grids), batch_first=True, padding_value=NOWHERE)


def row_sizes(batch: Batch, row: int) -> dict[str, Any]:
    """Return one row of the image sizes that a processor reports."""
    return {key: batch[key][row].tolist() for key in ("image_sizes", "image_grid_thw", "image_grids") if key in batch}


def grid_of_row(config: Any, batch: Batch, row: int, n_placeholders: int) -> Int[Tensor, "P 3"]:
    """Return (row, column, tile) of each placeholder of one row, -1 for separators."""
    return torch.from_numpy(placeholder_grid(config, n_placeholders, row_sizes(batch, row)))
