"""Where the vision tokens of a batch's images lie, as one tensor; `several.py` has those of one row."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Int
from torch import Tensor, nn

from orchestrator.models.geometry import NOWHERE


def join_grids(grids: Sequence[Int[Tensor, "V 3"]]) -> Int[Tensor, "B V 3"]:
    """Return the images' grids as one tensor, padded with -1."""
    return nn.utils.rnn.pad_sequence(list(grids), batch_first=True, padding_value=NOWHERE)
