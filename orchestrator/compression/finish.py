"""What is left of Gram metrics once the large matrices are gone: eigenproblems of side 8, on the host, in float64.

A GPU solves such problems slowly and its host would have to wait for it; with the other results of a pass they are a
copy of a few hundred kilobytes. On a CPU it is the same code.

Shapes: R rows, b columns of a leading block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64

TOP = 5
"""Directions compared: the studied paper's top-5 singular subspaces."""
ABSENT = 3e-8
"""Share of the largest squared singular value below which float32 does not tell a direction from rounding noise."""


@dataclass(frozen=True)
class Ritz:
    """Eigenvalues `values` (R, b) of a leading block, from large to small, and `directions` (R, b, TOP).

    Directions are coefficients in the block's columns that give orthonormal vectors in the space of the tokens; those
    that the row does not have are zero. `present` (R,) counts the others.
    """

    values: Float64[np.ndarray, "R b"]
    directions: Float64[np.ndarray, "R b k"]
    present: Int64[np.ndarray, " R"]


def solve(
    ritz: Float[np.ndarray, "R b b"], metric: Float[np.ndarray, "R b b"], most: Int64[np.ndarray, " R"] | None = None
) -> Ritz:
    """Solve the blocks of `gram.Leading`. Rows that are not finite give NaN values and no direction.

    Args:
        ritz, metric: as there.
        most: directions that a row can have: its tokens, less one where they are centred. Rounding noise may exceed
            `ABSENT` in the direction that centring leaves empty.
    """
    finite = np.isfinite(ritz).all((1, 2))
    inside = np.where(finite[:, None, None], ritz, 0.0).astype(np.float64)
    values, vectors = np.linalg.eigh((inside + inside.swapaxes(1, 2)) / 2)
    values, vectors = values[:, ::-1], vectors[:, :, ::-1][:, :, :TOP]
    there = (values[:, :TOP] > ABSENT * values[:, :1]) & finite[:, None] & (values[:, :1] > 0)
    if most is not None:
        there &= np.arange(there.shape[1]) < most[:, None]
    lengths = np.einsum("rik,rij,rjk->rk", vectors, np.where(finite[:, None, None], metric, 0.0), vectors)
    scale = np.where(there, 1 / np.sqrt(np.where(there & (lengths > 0), lengths, 1.0)), 0.0)
    values = np.where(finite[:, None], values.clip(min=0), np.nan)
    return Ritz(values, vectors * scale[:, None, :], there.sum(1))


def overlap(a: Ritz, b: Ritz, cross: Float[np.ndarray, "R b b"]) -> Float64[np.ndarray, " R"]:
    """|V_a^T V_b|_F^2 / m, the mean squared cosine of the principal angles; m the smaller number of directions.

    Args:
        a, b: solved blocks of the two sides.
        cross: basis_a^T basis_b of their bases.

    Returns:
        In [0, 1]; 1 for the same subspace, NaN where one side has no direction.
    """
    products = a.directions.swapaxes(1, 2) @ np.nan_to_num(cross.astype(np.float64)) @ b.directions
    fewer = np.minimum(a.present, b.present)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(fewer > 0, np.minimum((products**2).sum((1, 2)) / fewer, 1.0), np.nan)


def chance(a: Ritz, b: Ritz, width: int) -> Float64[np.ndarray, " R"]:
    """Expectation of `overlap` for two independent random subspaces of `width` dimensions."""
    fewer, more = np.minimum(a.present, b.present), np.maximum(a.present, b.present)
    return np.where(fewer > 0, more / width, np.nan)
