"""Rank correlations of every pair of attributes of a set of images, with the role of each attribute.

Roles: `factor` (drawn independently by a design), `derived` (depends on several factors), `measured` (any other).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

from orchestrator.data.sample import Source

MIN_IMAGES = 3


@dataclass(frozen=True)
class Pair:
    """Spearman's rho of two attributes over the images with both values."""

    first: str
    second: str
    first_role: str
    second_role: str
    rho: float
    n: int


def roles_of(source: Source) -> Mapping[str, str]:
    """Role of each attribute of a source."""
    roles: Mapping[str, str] = getattr(source, "attribute_roles", {})
    return {name: roles.get(name, "measured") for name in source.attribute_kinds}


def associations(columns: Mapping[str, Sequence[Any]], roles: Mapping[str, str]) -> list[Pair]:
    """Pairs of numeric columns, strongest first; without constant columns and pairs of fewer than `MIN_IMAGES`
    images."""
    values = {name: np.array(column, dtype=np.float64) for name, column in columns.items()}
    pairs = []
    for first, second in itertools.combinations(values, 2):
        finite = np.isfinite(values[first]) & np.isfinite(values[second])
        pair = values[first][finite], values[second][finite]
        if finite.sum() >= MIN_IMAGES and all(np.ptp(column) > 0 for column in pair):
            rho = float(scipy.stats.spearmanr(*pair).statistic)
            ends = (roles.get(first, "measured"), roles.get(second, "measured"))
            pairs.append(Pair(first, second, *ends, rho, int(finite.sum())))
    return sorted(pairs, key=lambda entry: -abs(entry.rho))


def strongest(pairs: Sequence[Pair], *roles: str) -> Pair | None:
    """The strongest of the (sorted) pairs whose two attributes have these roles, in either order."""
    return next((p for p in pairs if sorted((p.first_role, p.second_role)) == sorted(roles)), None)
