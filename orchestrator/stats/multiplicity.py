"""Corrections for several tests of one named family."""

from __future__ import annotations

import numpy as np
import scipy
from jaxtyping import Float


def benjamini_hochberg(p: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """q values of one family (Benjamini and Hochberg 1995); NaN stays NaN and is not counted."""
    p = np.asarray(p, dtype=np.float64)
    q = np.full(p.shape, np.nan)
    known = np.isfinite(p)
    if known.any():
        q[known] = scipy.stats.false_discovery_control(p[known])
    return q


def familywise_confidence(n_tests: int, confidence: float = 0.95) -> float:
    """Confidence of each of `n_tests` intervals that hold together at `confidence` (Bonferroni)."""
    return 1 - (1 - confidence) / max(1, n_tests)
