"""The bootstrap of the project: weights of resamples, and percentile intervals of what they give.

`n` rows (images, questions), `S` resamples. A resample is a row of weights: how often each row was drawn.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray


def resample_weights(n: int, n_resamples: int, seed: int) -> Int[np.ndarray, "S n"]:
    """How often each of n rows is drawn in each bootstrap resample of n."""
    drawn = np.random.default_rng(seed).integers(n, size=(n_resamples, n)) if n_resamples else np.empty((0, n), int)
    drawn += n * np.arange(n_resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=n_resamples * n).reshape(n_resamples, n)


def percentile_interval(resampled: NDArray, confidence: float = 0.95) -> tuple[NDArray, NDArray]:
    """Percentile interval over the first axis; NaN (a resample without a value) is left out, NaN where all are."""
    tail = (1 - confidence) / 2
    if not len(resampled):
        return np.full(resampled.shape[1:], np.nan), np.full(resampled.shape[1:], np.nan)
    missing = np.isnan(resampled)
    if not missing.any():
        low, high = np.quantile(resampled, [tail, 1 - tail], axis=0)
        return low, high
    never = missing.all(axis=0)
    low, high = np.nanquantile(np.where(never, 0.0, resampled), [tail, 1 - tail], axis=0)
    return np.where(never, np.nan, low), np.where(never, np.nan, high)


def bootstrap_means(
    values: Float[np.ndarray, "n K"], seed: int = 0, n_resamples: int = 1000, confidence: float = 0.95
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """Mean of each column over rows with its percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13).

    Args:
        values: float (n, K); NaN entries are left out. The same resamples of rows serve all columns.

    Returns:
        mean, lower and upper end, float64 (K,) each; NaN for a column without any value. One row gives no interval
        (NaN ends): its spread is not known.
    """
    there = np.isfinite(values)
    filled = np.where(there, values, 0.0).astype(np.float64)
    weights = resample_weights(len(values), n_resamples, seed).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = filled.sum(0) / there.sum(0)
        low, high = percentile_interval((weights @ filled) / (weights @ there), confidence)
    few = there.sum(0) < 2
    return mean, np.where(few, np.nan, low), np.where(few, np.nan, high)
