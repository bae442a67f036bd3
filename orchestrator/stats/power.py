"""Power of paired contrasts over seeds, before and after a sweep. Effects in standard deviations of the differences."""

from __future__ import annotations

from functools import cache

import numpy as np
import scipy

REFERENCE_EFFECT = 1.0
"""Effect that a plan states the power for: about what half of complex examples does to the compression of vision tokens
of `reference-joint` (power 9, 18, 39 and 79 % at 2, 3, 5 and 10 seeds)."""

_LARGEST = 40.0
"""Effect beyond which scipy's noncentral t overflows."""

_WRONG_SIDE = 6.0
"""Shift from which the wrong tail holds less than 1e-9; from 8 on scipy gives NaN for it here and there."""


def paired_power(effect: float, n_pairs: int, alpha: float = 0.05) -> float:
    """Power of the two-sided paired t test: noncentral t with n - 1 degrees of freedom; 0 for fewer than two pairs."""
    if n_pairs < 2:
        return 0.0
    shift, dof = abs(effect) * np.sqrt(n_pairs), n_pairs - 1
    critical = scipy.stats.t.ppf(1 - alpha / 2, dof)
    with np.errstate(all="ignore"):
        power = scipy.stats.nct.sf(critical, dof, shift)
        if shift < _WRONG_SIDE:
            power += scipy.stats.nct.cdf(-critical, dof, shift)
    return float(power) if np.isfinite(power) else 1.0  # scipy gives NaN where nothing is left of 1 - power


@cache
def detectable_effect(n_pairs: int, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """Smallest effect, in deviations of the paired differences, seen with `power`; None for fewer than two pairs."""
    if n_pairs < 2:
        return None
    return float(scipy.optimize.brentq(lambda d: paired_power(d, n_pairs, alpha) - power, 0.0, _LARGEST))


def correlation_detectable(n: int, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """Smallest absolute correlation that n images show with `power` (Fisher's z); None for fewer than five."""
    if n < 5:
        return None
    return float(np.tanh((scipy.stats.norm.ppf(1 - alpha / 2) + scipy.stats.norm.ppf(power)) / np.sqrt(n - 3)))
