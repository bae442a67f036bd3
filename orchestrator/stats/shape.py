"""Shape before sign: is a relation monotone, and if not, where does it turn and how strong are its two branches?

One rank correlation over a hump says nothing. The statistic is the best of several turning points: at each, how surely
does the left branch go one way *and* the right branch the other (the lesser of the two z values, after Simonsohn's
two-lines test, 2018)? Under the least favourable monotone relation one branch is beyond doubt and the other flat, so
the best turning point is compared with the largest of the flat branches' z values, which overlap; both directions are
tried and paid for. Within a branch only ranks count.

Shapes: n images, C columns, T candidate turning points.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy
from jaxtyping import Float

MIN_BRANCH = 10
"""Fewest images in a branch."""
_CANDIDATES = 12
"""Turning points tried, spread over the ranks of the attribute."""
_DRAWS = 20_000


@dataclass(frozen=True)
class Shape:
    """Monotonicity of each column in one attribute. NaN where it was not tested."""

    p: Float[np.ndarray, " C"]
    """p value of monotonicity: small where the relation turns."""
    turning_point: Float[np.ndarray, " C"]
    """Value of the attribute at the best turning point: the last of the left branch."""
    rho_below: Float[np.ndarray, " C"]
    rho_above: Float[np.ndarray, " C"]


def monotonicity(columns: Float[np.ndarray, "n C"], attribute: Float[np.ndarray, " n"]) -> Shape:
    """Test each column for a turn as the attribute rises, and measure both branches at the best turning point.

    Args:
        columns, attribute: finite values.
    """
    n, n_columns = columns.shape
    values = np.unique(attribute)
    below = np.searchsorted(np.sort(attribute), values, side="right")  # images up to each value
    allowed = np.flatnonzero((below >= MIN_BRANCH) & (n - below >= MIN_BRANCH))
    blank = np.full(n_columns, np.nan)
    if not len(allowed):
        return Shape(blank, blank, blank, blank)
    targets = np.quantile(below[allowed], np.linspace(0, 1, _CANDIDATES), method="nearest")
    places = np.unique([allowed[np.argmin(np.abs(below[allowed] - t))] for t in targets])
    rho = np.empty((2, len(places), n_columns))
    z = np.empty_like(rho)
    for t, place in enumerate(places):
        left = attribute <= values[place]
        for side, rows in enumerate((left, ~left)):
            rho[side, t], z[side, t] = _spearman(columns[rows], attribute[rows])
    sizes = tuple(int(below[k]) for k in places)
    turn = np.stack([np.minimum(z[0], -z[1]), np.minimum(-z[0], z[1])])  # hump, trough: (2, T, C)
    best = turn.max(axis=1)  # (2, C)
    direction = best.argmax(axis=0)
    at = turn[direction, :, np.arange(n_columns)].argmax(axis=1)
    tail = _largest_flat(sizes, n)
    p = np.minimum(1.0, 2 * (1 + len(tail) - np.searchsorted(tail, best.max(axis=0), side="left")) / (1 + len(tail)))
    known = np.isfinite(best.max(axis=0)) & (np.ptp(columns, axis=0) > 0)
    where = [np.where(known, rho[side, at, np.arange(n_columns)], np.nan) for side in (0, 1)]
    return Shape(np.where(known, p, np.nan), np.where(known, values[places][at], np.nan), where[0], where[1])


def _spearman(columns: Float[np.ndarray, "m C"], attribute: Float[np.ndarray, " m"]) -> tuple[np.ndarray, np.ndarray]:
    """Spearman's rho of each column with the attribute, and its z value (0 where either is constant)."""
    m = len(attribute)
    ranks = scipy.stats.rankdata(columns, axis=0) - (m + 1) / 2
    other = scipy.stats.rankdata(attribute) - (m + 1) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        rho = (other @ ranks) / np.sqrt((other**2).sum() * (ranks**2).sum(0))
    rho = np.clip(np.where(np.isfinite(rho), rho, 0.0), -1, 1)
    t = rho * np.sqrt((m - 2) / np.maximum(1 - rho**2, 1e-12))
    return rho, np.sign(t) * np.minimum(scipy.stats.norm.isf(scipy.stats.t.sf(np.abs(t), m - 2)), 37.0)


@lru_cache(maxsize=256)
def _largest_flat(sizes: tuple[int, ...], n: int) -> np.ndarray:
    """Sorted draws of the largest z value of nested flat branches, the worse of left and right ones.

    z values of a branch of m images and of a longer one of M that holds it correlate by (m / M)^(3/2).
    """
    rng = np.random.default_rng(0)
    draws = []
    for branch in (np.array(sizes, dtype=float), n - np.array(sizes, dtype=float)):
        small, large = np.minimum.outer(branch, branch), np.maximum.outer(branch, branch)
        covariance = (small / large) ** 1.5
        draws.append(np.sort(rng.multivariate_normal(np.zeros(len(branch)), covariance, _DRAWS, method="eigh").max(1)))
    return np.maximum(*draws)
