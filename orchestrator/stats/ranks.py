"""Rank statistics of many columns at once, with a bootstrap that ranks anew within each resample.

`n` images, `C` columns, `A` attributes, `K` categories, `S` resamples. A resample is a row of weights w (how often each
image was drawn). The average rank of image i in it needs no sorting: with the images ordered by value once and F the
running sum of weights in that order, it is (F(values < x_i) + F(values <= x_i) + 1) / 2. The plain statistic is the
resample whose weights are all 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
from jaxtyping import Float, Int
from numpy.typing import DTypeLike


@dataclass(frozen=True)
class Ordered:
    """Columns prepared for ranking: the order of images by value, and how many values lie below and up to each."""

    order: Int[np.ndarray, "C n"]
    below: Int[np.ndarray, "C n"]
    up_to: Int[np.ndarray, "C n"]

    @classmethod
    def of(cls, columns: Float[np.ndarray, "n C"]) -> Ordered:
        """Order the columns; values must be finite."""
        values = np.ascontiguousarray(columns.T)
        return cls(
            np.argsort(values, axis=1, kind="stable"),
            scipy.stats.rankdata(values, method="min", axis=1).astype(np.intp) - 1,
            scipy.stats.rankdata(values, method="max", axis=1).astype(np.intp),
        )

    def part(self, columns: slice) -> Ordered:
        """Some of the columns."""
        return Ordered(self.order[columns], self.below[columns], self.up_to[columns])


def rank_scores(
    columns: Ordered, weights: Int[np.ndarray, "S n"], dtype: DTypeLike = np.float64
) -> Float[np.ndarray, "S C n"]:
    """Centred ranks in each resample, times sqrt(weight), scaled to norm 1; NaN where a resample is constant.

    The inner product of two such vectors is Spearman's rho with average ranks for ties.
    """
    (n_resamples, n), n_columns = weights.shape, len(columns.order)
    weights = weights.astype(dtype)
    sums = np.zeros((n_resamples, n_columns, n + 1), dtype)
    np.cumsum(np.take(weights, columns.order, axis=1), axis=2, out=sums[..., 1:])
    sums, first = sums.reshape(n_resamples, -1), (np.arange(n_columns) * (n + 1))[:, None]
    scores = np.take(sums, first + columns.below, axis=1)  # unlike an index, `take` lets other threads work
    scores += np.take(sums, first + columns.up_to, axis=1)
    scores *= 0.5
    scores -= n / 2  # rank minus the mean rank (n + 1) / 2, which weights leave as it is
    scores *= np.sqrt(weights)[:, None, :]
    norms = np.linalg.norm(scores, axis=2, keepdims=True)
    norms[norms <= 1e-3] = np.nan
    scores /= norms
    return scores


def spearman(x: Float[np.ndarray, "S C n"], y: Float[np.ndarray, "S A n"]) -> Float[np.ndarray, "S C A"]:
    """Spearman's rho of each pair of columns in each resample, from `rank_scores`."""
    return np.clip(x @ y.transpose(0, 2, 1), -1, 1)


def share_between(
    x: Float[np.ndarray, "S C n"], weights: Int[np.ndarray, "S n"], codes: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "S C"]:
    """Share of the ranks' variance that lies between categories: Kruskal-Wallis H, corrected for ties, over n - 1.

    Args:
        x: rank scores (norm 1, times sqrt(weight)).
        weights: the resamples' weights.
        codes: category of each image, 0 to k - 1.
    """
    member = np.eye(codes.max() + 1, dtype=x.dtype)[codes]
    sums = (x * np.sqrt(weights)[:, None, :]) @ member
    sizes = weights @ member
    with np.errstate(invalid="ignore", divide="ignore"):
        parts = np.where(sizes[:, None, :] > 0, sums**2 / sizes[:, None, :], 0.0)
    return np.clip(parts.sum(2), 0, 1)


def epsilon_squared(share: Float[np.ndarray, "*A"], n: int, n_categories: int) -> Float[np.ndarray, "*A"]:
    """Epsilon squared (Kelley 1935, PNAS 21(9)) of ranks: `share_between` less what is between k categories by chance.

    (H - k + 1) / (n - k) of Kruskal and Wallis' H: eta squared of H in Tomczak and Tomczak (2014), who call H/(n - 1),
    which grows with the number of categories, epsilon squared. By chance the share is (k - 1) / (n - 1). A resample has
    this twice, from its images and from the draw: resampled shares go through here twice, and so spread around the
    population's value, not above it. Not below 0.
    """
    return np.clip(1 - (1 - share) * (n - 1) / (n - n_categories), 0, 1)


def weakest_interval(resampled: Float[np.ndarray, "S K"], confidence: float) -> tuple[float, float]:
    """Interval of the smallest of K effects, which the smallest of each resample would place too low.

    It lies above `low` if every effect does (intersection-union test: each at its own level). It lies below `high` if
    any does, which with K effects is K chances to err: their upper ends share the tail (Bonferroni).
    """
    tail = (1 - confidence) / 2
    known = resampled[np.isfinite(resampled).all(axis=1)]
    if not len(known):
        return np.nan, np.nan
    low = np.quantile(known, tail, axis=0).min()
    return float(low), float(np.quantile(known, 1 - tail / known.shape[1], axis=0).min())
