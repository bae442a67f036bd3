"""Smallest sufficient ratio: the one rule of the project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.stats.intervals import Estimate, student_interval
from orchestrator.stats.multiplicity import familywise_confidence

ENOUGH = 0.9
"""Share of the best gain that a sufficient ratio reaches."""


def paired_gains(by_ratio: Mapping[float, Mapping[int, float]], confidence: float = 0.95) -> dict[float, Estimate]:
    """Gain of each ratio over the smallest one, over the seeds that both have (Student; none below three seeds).

    Args:
        by_ratio: ratio -> seed -> outcome.
        confidence: of each interval by itself.
    """
    first = min(by_ratio)
    gains = {}
    for ratio in sorted(by_ratio):
        seeds = sorted(set(by_ratio[ratio]) & set(by_ratio[first]))
        gains[ratio] = student_interval([by_ratio[ratio][s] - by_ratio[first][s] for s in seeds], confidence)
    return gains


@dataclass(frozen=True)
class Sufficient:
    """Whether the outcome rises, and the smallest ratio that is enough; None for `ratio` where it cannot be told."""

    rises: bool | None
    """Whether the largest gain exceeds chance, paid for having been picked (Bonferroni); None below three seeds."""
    ratio: float | None
    n_seeds: int
    """Fewest pairs of seeds of any ratio."""


def sufficient_ratio(by_ratio: Mapping[float, Mapping[int, float]]) -> Sufficient:
    """The smallest ratio that reaches the share `ENOUGH` of the best gain, where the best gain exceeds chance."""
    if len(by_ratio) < 2:
        return Sufficient(None, None, 0)
    gains = paired_gains(by_ratio, familywise_confidence(len(by_ratio) - 1))
    ratios = sorted(gains)
    others = [gains[r] for r in ratios[1:]]
    n_seeds = min(g.n for g in others)
    known = [g for g in others if g.low is not None]
    if not known:
        return Sufficient(None, None, n_seeds)
    best = max(known, key=lambda g: g.value)
    rises = best.low is not None and best.low > 0
    values = [0.0, *(g.value if np.isfinite(g.value) else -np.inf for g in others)]
    return Sufficient(rises, smallest_sufficient(ratios, values) if rises else None, n_seeds)


def smallest_sufficient(
    ratios: Sequence[float], means: Sequence[float] | NDArray, enough: float = ENOUGH
) -> float | None:
    """Smallest ratio with at least `enough` of the gain from the first ratio to the best; None without a gain."""
    gain = np.asarray(means, dtype=np.float64) - means[0]
    if not gain.max() > 0:
        return None
    return float(ratios[int(np.argmax(gain >= enough * gain.max() - 1e-12))])
