"""What a compression metric declares of itself. Importing this module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Invariance = Literal["rotation", "scale", "permutation", "duplication"]
Family = Literal["norm", "spectrum", "similarity", "alignment"]
Needs = Literal["norms", "gram", "spectrum", "estimate"]
"""Class of cost: one pass over the tokens; one Gram matrix; all its eigenvalues; an estimate from some of them."""
Spectrum = Literal["none", "exact", "estimate"]
"""Which metrics of the full spectrum the default set includes."""


@dataclass(frozen=True)
class Metric:
    """One column of `layer_metrics`. `direction`: +1 if larger means more compressed, -1 if less, 0 if neither."""

    name: str
    family: Family
    title: str
    formula: str
    range: str
    direction: Literal[1, -1, 0]
    source: str
    cost: str
    misleads: str
    high: str
    low: str
    invariances: frozenset[Invariance]
    needs: Needs = "norms"
    base: str = ""
    centred: bool = False
    trimmed: bool = False

    @property
    def expected(self) -> str:
        """What a larger value means, in words."""
        return {1: "larger = more compressed", -1: "larger = less compressed", 0: "no direction"}[self.direction]
