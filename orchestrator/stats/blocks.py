"""Blocks of images that are neighbours in their covariates, so that what depends on these hardly varies within one."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

BLOCK = 4
"""Images in a block of neighbours, at least."""


def neighbours(
    scaled: Float[np.ndarray, "n q"], size: int, strata: Int[np.ndarray, " n"] | None = None
) -> Int[np.ndarray, " n"]:
    """Block of each image: the covariates split at medians until fewer than `2 * size` images or one value are left.

    Images of equal covariates are never parted, those of different strata never joined.
    """
    blocks = np.zeros(len(scaled), dtype=np.intp)
    n_blocks = 0
    codes = np.zeros(len(scaled), dtype=int) if strata is None else strata
    stack = [np.flatnonzero(codes == code) for code in np.unique(codes)]
    while stack:
        rows = stack.pop()
        part = scaled[rows]
        parts: tuple[np.ndarray, np.ndarray] | None = None
        if len(rows) >= 2 * size:
            for column in np.argsort(-part.std(axis=0), kind="stable"):
                parts = _halves(part[:, column], rows, size)
                if parts is not None:
                    break
        if parts is None:
            blocks[rows] = n_blocks
            n_blocks += 1
        else:
            stack.extend(parts)
    return blocks


def _halves(values: Float[np.ndarray, " m"], rows: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray] | None:
    """`rows` split between two different values as near to the middle as leaves `size` on both sides."""
    order = np.argsort(values, kind="stable")
    cuts = np.flatnonzero(np.diff(values[order]) > 0) + 1
    cuts = cuts[(cuts >= size) & (cuts <= len(rows) - size)]
    if not len(cuts):
        return None
    cut = cuts[np.argmin(np.abs(cuts - len(rows) / 2))]
    return rows[order[:cut]], rows[order[cut:]]
