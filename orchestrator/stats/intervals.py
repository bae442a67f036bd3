"""Intervals of means over seeds and of shares of right answers, with and without questions that share an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

CONFIDENCE = 0.95
MIN_SEEDS = 3
"""Fewer seeds give no interval: with two the t quantile is 12.7."""


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; `low` and `high` are None where there is none. `n` units (seeds, questions)."""

    value: float
    low: float | None
    high: float | None
    n: int
    n_clusters: int | None = None
    """Images that the questions are about; None where they were taken as independent."""


def student_interval(values: Sequence[float] | NDArray, confidence: float = CONFIDENCE) -> Estimate:
    """Mean over seeds with Student's t interval; none for fewer than `MIN_SEEDS` finite values."""
    x = np.asarray(values, dtype=np.float64)
    x = x[np.isfinite(x)]
    mean = float(x.mean()) if len(x) else float("nan")
    if len(x) < MIN_SEEDS:
        return Estimate(mean, None, None, len(x))
    half = scipy.stats.t.ppf((1 + confidence) / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    return Estimate(mean, float(mean - half), float(mean + half), len(x))


def wilson(k: float, n: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson score interval of a share k / n of independent answers (Wilson 1927); k and n may be effective counts."""
    return _wilson(k / n, n, float(scipy.stats.norm.ppf((1 + confidence) / 2)))


def _wilson(p: float, n: float, z: float) -> tuple[float, float]:
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = centre - half, centre + half
    return (0.0 if p == 0 else float(max(0.0, low))), (1.0 if p == 1 else float(min(1.0, high)))


def clustered_share(
    correct: Sequence[float] | NDArray, clusters: Sequence[Any] | NDArray, confidence: float = CONFIDENCE
) -> Estimate:
    """Share of right answers whose questions are clustered by image: Wilson's interval at the effective sample size.

    The variance between images gives the design effect (Kish 1965; never below 1), n over it the effective sample
    size, and t the quantile (Dean and Pagano 2015, "Wilson" for surveys), with one degree of freedom fewer than there
    would be images of equal weight. Where all answers are equal, no design effect can be seen: the effective size is
    then that number of images.

    Args:
        correct: 0 or 1 (or a share right over seeds) of each question.
        clusters: image of each question.
    """
    y = np.asarray(correct, dtype=np.float64)
    _, codes = np.unique(np.asarray(clusters), return_inverse=True)
    n, n_clusters = len(y), int(codes.max(initial=-1)) + 1
    if not n:
        raise ValueError("clustered_share: no answers; expected at least one")
    p = float(y.mean())
    if n_clusters < 2:
        return Estimate(p, None, None, n, n_clusters)
    if n_clusters == n:
        low, high = wilson(y.sum(), n, confidence)
        return Estimate(p, low, high, n, n_clusters)
    low, high = _wilson(p, effective_size(y, codes), cluster_quantile(codes, confidence))
    return Estimate(p, low, high, n, n_clusters)


def effective_clusters(codes: NDArray) -> float:
    """Number of clusters of equal weight that a mean over clusters of unequal size rests on."""
    sizes = np.bincount(codes)
    return len(codes) ** 2 / float((sizes**2).sum())


def cluster_quantile(codes: NDArray, confidence: float = CONFIDENCE) -> float:
    """Quantile of Student's t for a mean over clusters (Satterthwaite's degrees of freedom for unequal sizes)."""
    return float(scipy.stats.t.ppf((1 + confidence) / 2, max(1.0, effective_clusters(codes) - 1)))


def effective_size(values: NDArray, codes: NDArray) -> float:
    """Number of independent values whose mean varies as much as that of `values`, which come in clusters.

    Between n and the smallest size that perfectly alike clusters leave; that smallest size where nothing varies. The
    variance between clusters is the jackknife's (CR3 of Bell and McCaffrey 2002: each cluster against the mean of the
    others), which few clusters do not make too small.
    """
    n = len(values)
    smallest = effective_clusters(codes)
    spread = float(values.var())
    if spread <= 0:
        return smallest
    share = np.bincount(codes) / n
    used = share > 0
    totals = np.bincount(codes, values - values.mean())[used] / (1 - share[used])
    between = float((totals**2).sum()) / n**2
    return float(np.clip(spread / between if between > 0 else n, min(2.0, smallest), n))
