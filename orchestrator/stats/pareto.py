"""Pareto front of any number of objectives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float


def pareto_front(values: Float[np.ndarray, "N M"], directions: Sequence[int]) -> Bool[np.ndarray, " N"]:
    """Which of N points no other one beats: at least as good in every objective and better in one.

    Equal points are all on the front, or none is; a point with NaN is not on it and beats no other.

    Args:
        directions: +1 where larger is better, -1 where smaller is.
    """
    oriented = np.asarray(values, dtype=float) * np.asarray(directions)
    not_worse = (oriented[:, None, :] >= oriented[None, :, :]).all(-1)
    better = (oriented[:, None, :] > oriented[None, :, :]).any(-1)
    return ~(not_worse & better).any(0) & np.isfinite(oriented).all(-1)
