"""Paired differences of shares of right answers, with an interval that has width without discordant pairs.

n questions, each answered twice (all tokens, and under a policy). A bootstrap of pairs that never disagree has no
width; the score interval has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from orchestrator.stats.intervals import CONFIDENCE, Estimate, cluster_quantile, effective_size


def tango_interval(gained: float, lost: float, n: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Score interval of a difference of paired shares (Tango 1998, Statistics in Medicine 17:891).

    Args:
        gained, lost: pairs right only after and right only before; may be fractional (shares over seeds, effective
            counts), which makes the interval wider, never narrower.
        n: pairs.
    """
    z = float(scipy.stats.norm.ppf((1 + confidence) / 2))

    def score(delta: float) -> float:
        """Tango's statistic: (b - c - n delta) over its deviation under that difference."""
        a = 2.0 * n
        b = -gained - lost + (2 * n - gained + lost) * delta
        c = -lost * delta * (1 - delta)
        q = (np.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)  # probability of a loss under delta
        variance = n * (2 * q + delta * (1 - delta))
        return float((gained - lost - n * delta) / np.sqrt(max(variance, 1e-12)))

    point = (gained - lost) / n
    edge = 1 - 1e-9
    low = -1.0 if point <= -edge else scipy.optimize.brentq(lambda d: score(d) - z, -edge, point)
    high = 1.0 if point >= edge else scipy.optimize.brentq(lambda d: score(d) + z, point, edge)
    return float(low), float(high)


def paired_difference(
    after: Sequence[float] | NDArray,
    before: Sequence[float] | NDArray,
    clusters: Sequence[Any] | NDArray | None = None,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Mean of `after - before` over questions with Tango's interval; counts are scaled to the effective sample size.

    Args:
        after, before: right (1) or wrong (0) of each question, or shares right over seeds.
        clusters: image of each question; independent questions when None.
    """
    change = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    n = len(change)
    if not n:
        raise ValueError("paired_difference: no pairs; expected at least one")
    scale, n_clusters = 1.0, None
    if clusters is not None:
        _, codes = np.unique(np.asarray(clusters), return_inverse=True)
        n_clusters = int(codes.max()) + 1
        if n_clusters < 2:
            return Estimate(float(change.mean()), None, None, n, n_clusters)
        if n_clusters < n:
            scale = effective_size(change, codes) / n
            # few clusters: the quantile of t widens the interval, as fewer pairs do
            normal = scipy.stats.norm.ppf((1 + confidence) / 2)
            scale *= float((normal / cluster_quantile(codes, confidence)) ** 2)
    gained, lost = (scale * float(np.clip(sign * change, 0, None).sum()) for sign in (1, -1))
    low, high = tango_interval(gained, lost, scale * n, confidence)
    return Estimate(float(change.mean()), low, high, n, n_clusters)
