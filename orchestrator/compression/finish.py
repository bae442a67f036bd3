"""The last step of Gram metrics: eigenproblems of side 8, on the host, in float64.

A GPU solves such small problems slowly and would have to be synchronized. Their matrices are copied with the other
results of a pass, a few hundred kilobytes. The CPU path is the same code.

Shapes: R rows, b columns of a leading block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64

TOP = 5
"""Number of directions compared: top-5 singular subspaces, as in the studied paper."""
ABSENT = 3e-8
"""Share of the largest squared singular value below which float32 cannot separate a direction from rounding noise."""


@dataclass(frozen=True)
class Ritz:
    """Eigenvalues `values` (R, b) of a leading block, in descending order, and `directions` (R, b, TOP).

    Directions are coefficients of the block's columns that give orthonormal vectors in the space of the tokens; absent
    ones are zero. `present` (R,) counts the others.
    """

    values: Float64[np.ndarray, "R b"]
    directions: Float64[np.ndarray, "R b k"]
    present: Int64[np.ndarray, " R"]


def solve(
    ritz: Float[np.ndarray, "R b b"],
    metric: Float[np.ndarray, "R b b"],
    max_directions: Int64[np.ndarray, " R"] | None = None,
) -> Ritz:
    """Solve the blocks of `leading.Leading`. Non-finite rows give NaN values and no direction.

    Args:
        ritz, metric: as in `leading.Leading`.
        max_directions: largest number of directions of a row: its tokens, less one if they are centred. Rounding noise
            may exceed `ABSENT` in the direction that centring removes.
    """
    finite = np.isfinite(ritz).all((1, 2))
    inside = np.where(finite[:, None, None], ritz, 0.0).astype(np.float64)
    values, vectors = np.linalg.eigh((inside + inside.swapaxes(1, 2)) / 2)
    values, vectors = values[:, ::-1], vectors[:, :, ::-1][:, :, :TOP]
    is_present = (values[:, :TOP] > ABSENT * values[:, :1]) & finite[:, None] & (values[:, :1] > 0)
    if max_directions is not None:
        is_present &= np.arange(is_present.shape[1]) < max_directions[:, None]
    rows = vectors.swapaxes(1, 2)
    lengths = ((rows @ np.where(finite[:, None, None], metric, 0.0).astype(np.float64)) * rows).sum(2)
    scale = np.where(is_present, 1 / np.sqrt(np.where(is_present & (lengths > 0), lengths, 1.0)), 0.0)
    values = np.where(finite[:, None], values.clip(min=0), np.nan)
    return Ritz(values, vectors * scale[:, None, :], is_present.sum(1))


def overlap(a: Ritz, b: Ritz, cross: Float[np.ndarray, "R b b"]) -> Float64[np.ndarray, " R"]:
    """|V_a^T V_b|_F^2 / m, the mean squared cosine of the principal angles; m the smaller number of directions.

    Args:
        a, b: solved blocks of the two sides.
        cross: basis_a^T basis_b of their bases.

    Returns:
        In [0, 1]; 1 for the same subspace, NaN if one side has no direction.
    """
    products = a.directions.swapaxes(1, 2) @ np.nan_to_num(cross.astype(np.float64)) @ b.directions
    fewer = np.minimum(a.present, b.present)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(fewer > 0, np.minimum((products**2).sum((1, 2)) / fewer, 1.0), np.nan)


def chance(a: Ritz, b: Ritz, width: int) -> Float64[np.ndarray, " R"]:
    """Expectation of `overlap` for two independent random subspaces of `width` dimensions."""
    fewer, more = np.minimum(a.present, b.present), np.maximum(a.present, b.present)
    return np.where(fewer > 0, more / width, np.nan)
