"""Association of two columns with covariates held fixed: cross-fitted curves, then a test within neighbours.

A linear partial correlation removes a straight line and calls what is left of a hump a finding. Here

1. both sides are ranked and each is fitted by a flexible curve of the covariates: splines of several resolutions with a
   ridge penalty, the combination with the least leave-one-out error for each column; residuals are leave-one-out. Jumps
   that are beyond doubt are taken off before, for no block may hold one;
2. images are put into blocks of neighbours in the covariates (equal values together), and residuals are compared
   *within* blocks, where what a curve has missed is nearly constant. The test is the stratified permutation test of
   Mantel (1963) in closed form: it is exact in its first two moments under any dependence on the covariates that is
   constant within a block, its variance included (Kim et al. 2022, "Local permutation tests");
3. the variance is that of the permutations or of the products of residuals (as in the generalised covariance measure of
   Shah and Peters 2020), the larger, corrected for the degrees of freedom that the curves take.

Shapes: n images, C and A columns, q covariates, S smoothers, B blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
from jaxtyping import Float, Int

from orchestrator.stats.curves import Curves, Fitted

MIN_IMAGES = 20
"""Fewer images leave nothing to compare within blocks."""
_ALLOWANCE = 1.12
"""Least factor on the variance (see docs/statistics.md for the size with it)."""


@dataclass(frozen=True)
class Association:
    """Conditional rank correlation of each pair of columns; NaN where covariates determine one of them."""

    rho: Float[np.ndarray, "C A"]
    low: Float[np.ndarray, "C A"]
    high: Float[np.ndarray, "C A"]
    p: Float[np.ndarray, "C A"]
    explained_x: Float[np.ndarray, " C"]
    """Share of the ranks' variance that the covariates explain, leave-one-out; below 0 becomes 0."""
    explained_y: Float[np.ndarray, " A"]
    n: int


def conditional_association(
    x: Float[np.ndarray, "n C"],
    y: Float[np.ndarray, "n A"],
    covariates: Float[np.ndarray, "n q"],
    confidence: float = 0.95,
    strata: Int[np.ndarray, " n"] | None = None,
) -> Association:
    """Rank correlation of every column of x with every column of y within images of like covariates.

    Args:
        x, y, covariates: finite values; covariates that are constant hold nothing fixed.
        strata: code of each image's category (question family, answer); images are compared within one alone.

    Raises:
        ValueError: a value is not finite, or the rows differ in number.
    """
    for name, part in (("x", x), ("y", y), ("covariates", covariates)):
        if part.ndim != 2 or len(part) != len(x) or not np.isfinite(part).all():
            raise ValueError(f"conditional_association: {name} {part.shape}; expected finite ({len(x)}, columns)")
    n = len(x)
    if n < MIN_IMAGES:
        blank = np.full((x.shape[1], y.shape[1]), np.nan)
        return Association(blank, blank, blank, blank, np.full(x.shape[1], np.nan), np.full(y.shape[1], np.nan), n)
    curves = Curves.of(covariates, strata)
    left, right = curves.fit(x), curves.fit(y)
    return _within_blocks(curves, left, right, confidence)


def _within_blocks(curves: Curves, x: Fitted, y: Fitted, confidence: float) -> Association:
    a, b = x.residuals, y.residuals
    share = 1.0 / np.maximum(curves.sizes - 1, 1)
    spread_a, spread_b = curves.sums(a**2), curves.sums(b**2)
    n = len(curves.blocks)
    dof = max(3.0, n - len(curves.sizes) - 1.0)
    # allows for the choice of the curves and for what they miss, which their degrees of freedom do not count
    inflation = curves.dispersion[np.ix_(x.smoother, y.smoother)] * max((dof + 4) / dof, _ALLOWANCE)
    sums = a.T @ b
    permuted = (spread_a * share[:, None]).T @ spread_b
    # products vary more than under permutation where images differ in spread for both sides beyond their covariates
    variance = np.maximum(permuted, (a**2).T @ b**2 * (n / dof)) * inflation
    total_a, total_b = spread_a.sum(0), spread_b.sum(0)
    gone = x.determined[:, None] | y.determined[None, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        rho = np.where(gone, np.nan, np.clip(sums / np.sqrt(total_a[:, None] * total_b[None, :]), -1, 1))
        z = np.where(gone, np.nan, sums / np.sqrt(variance))
        p = 2 * scipy.stats.t.sf(np.abs(z), dof)
        # influence of each image on rho (delta method), from normalised residuals
        u, v = a / np.sqrt(total_a), b / np.sqrt(total_b)
        square = (u**2).T @ v**2 - rho * ((u**3).T @ v + u.T @ v**3)
        square += rho**2 / 4 * ((u**4).sum(0)[:, None] + (v**4).sum(0)[None, :] + 2 * (u**2).T @ v**2)
        error = np.sqrt(np.maximum(square * inflation * n / dof, 0))
        half = scipy.stats.t.ppf((1 + confidence) / 2, dof) * error / np.maximum(1 - rho**2, 1e-6)
        centre = np.arctanh(np.clip(rho, -1 + 1e-9, 1 - 1e-9))
    return Association(rho, np.tanh(centre - half), np.tanh(centre + half), p, x.explained, y.explained, n)


def residual_columns(
    columns: Float[np.ndarray, "n C"], covariates: Float[np.ndarray, "n q"]
) -> tuple[Float[np.ndarray, "n C"], Float[np.ndarray, " C"]]:
    """Leave-one-out residuals of ranked columns on a flexible curve of the covariates, and the share explained."""
    fitted = Curves.of(covariates).fit(columns)
    return fitted.residuals, fitted.explained
