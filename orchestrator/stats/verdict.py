"""Verdicts: one rule for every statement, with a smallest effect of interest in the effect's own unit.

* supported: the 95 % interval lies above the smallest effect;
* contradicted: it lies below minus the smallest effect (the effect runs the other way);
* equivalent to nothing: the 90 % interval lies within plus and minus the smallest effect (two one-sided tests at 5 %
  each: Schuirmann 1987);
* undecided: anything else. Too few units end here.

Each wrong verdict has at most 5 % for an effect at the border, less for one beyond it.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import scipy
from numpy.typing import NDArray

from orchestrator.stats.multiplicity import benjamini_hochberg

Verdict = Literal["supported", "contradicted", "equivalent to nothing", "undecided"]
VERDICTS: tuple[Verdict, ...] = ("supported", "contradicted", "equivalent to nothing", "undecided")

_INNER = 0.8392
"""Half-width of a normal 90 % interval over that of a 95 % one; larger than the ratio for t, so never too narrow."""


def verdict(
    effect: float | None,
    low: float | None,
    high: float | None,
    smallest: float,
    *,
    equivalence: tuple[float, float] | None = None,
) -> Verdict:
    """The verdict on a statement whose effect is positive where it holds.

    Args:
        effect, low, high: estimate with its 95 % interval (wider where multiplicity is paid).
        smallest: smallest effect of interest, above 0, same unit.
        equivalence: 90 % interval; from the 95 % one, shrunk towards the estimate, when absent.
    """
    if smallest <= 0:
        raise ValueError(f"verdict: smallest effect of interest {smallest!r}; expected a number above 0")
    if effect is None or low is None or high is None or not np.isfinite([effect, low, high]).all():
        return "undecided"
    if low > smallest:
        return "supported"
    if high < -smallest:
        return "contradicted"
    inner = equivalence or (effect - _INNER * (effect - low), effect + _INNER * (high - effect))
    return "equivalent to nothing" if -smallest < inner[0] and inner[1] < smallest else "undecided"


def non_inferiority(low: float | None, high: float | None, margin: float) -> Verdict:
    """Whether a difference stays above minus the margin: the 95 % interval against it (one-sided at 2.5 %).

    supported: at most `margin` is lost; contradicted: more is lost; undecided else. `margin` may be 0.
    """
    if low is None or high is None or not np.isfinite([low, high]).all():
        return "undecided"
    return "supported" if low > -margin else "contradicted" if high < -margin else "undecided"


def exceeds(low: float | None, high: float | None, threshold: float) -> Verdict:
    """Whether a quantity lies above a threshold: supported, contradicted (below it) or undecided."""
    if low is None or high is None or not np.isfinite([low, high]).all():
        return "undecided"
    return "supported" if low > threshold else "contradicted" if high < threshold else "undecided"


def family_verdicts(
    effects: NDArray, lows: NDArray, highs: NDArray, smallest: float, *, bound: float | None = None
) -> list[Verdict]:
    """Verdicts on a named family of effects, multiplicity paid: each of the rule's tests by Benjamini and Hochberg.

    Standard errors come from the 95 % intervals; a correlation is judged on Fisher's scale (`bound` = 1).

    Args:
        effects, lows, highs: estimates with 95 % intervals; NaN gives undecided.
        smallest: smallest effect of interest.
    """
    scale = (lambda v: np.arctanh(np.clip(v, -1 + 1e-9, 1 - 1e-9))) if bound else (lambda v: v)
    effect, low, high = (scale(np.asarray(part, dtype=np.float64)) for part in (effects, lows, highs))
    error = np.maximum((high - low) / (2 * scipy.stats.norm.ppf(0.975)), 1e-12)
    limit = float(scale(np.asarray(smallest)))
    above = scipy.stats.norm.sf((effect - limit) / error)
    below = scipy.stats.norm.sf((-effect - limit) / error)
    inside = np.maximum(scipy.stats.norm.sf((effect + limit) / error), scipy.stats.norm.sf((limit - effect) / error))
    q = [benjamini_hochberg(p) for p in (above, below, inside)]
    verdicts: list[Verdict] = []
    for k in range(len(effect)):
        over, under, within = (values[k] < level for values, level in zip(q, (0.025, 0.025, 0.05), strict=True))
        verdicts.append(
            "supported" if over else "contradicted" if under else "equivalent to nothing" if within else "undecided"
        )
    return verdicts
