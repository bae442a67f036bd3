"""Held-out scores with bootstrap intervals, and the trivial baselines to compare them with.

Shapes: m held-out images, S score columns (probes), R bootstrap resamples.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from orchestrator.stats.resample import percentile_interval


def accuracy(
    right: Bool[np.ndarray, "m S"], valid: Bool[np.ndarray, " m"], counts: Float[np.ndarray, "R m"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Accuracy on valid images: (S,) score, low and high end of the 95 % interval (NaN if R = 0)."""
    scores = right[valid].mean(0)
    counts = counts[:, valid]
    return scores, *percentile_interval(counts @ right[valid] / np.maximum(counts.sum(1, keepdims=True), 1.0))


def r2(
    prediction: Float[np.ndarray, "m S"],
    truth: Float[np.ndarray, " m"],
    valid: Bool[np.ndarray, " m"],
    counts: Float[np.ndarray, "R m"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficient of determination on valid images, relative to their own mean (as scikit-learn's `r2_score`)."""
    y = truth[valid]
    error = np.square(prediction[valid] - y[:, None])
    scores = 1.0 - error.sum(0) / np.square(y - y.mean()).sum()
    counts = counts[:, valid]
    n = np.maximum(counts.sum(1), 1.0)
    centred = y - y.mean()
    spread = counts @ np.square(centred) - np.square(counts @ centred) / n
    drawn = counts[spread > 0]
    return scores, *percentile_interval(1.0 - (drawn @ error) / spread[spread > 0, None])


def balanced_accuracy(
    predicted: Int[np.ndarray, "m S"], truth: Int[np.ndarray, " m"], valid: Bool[np.ndarray, " m"]
) -> Float[np.ndarray, " S"]:
    """Balanced accuracy: mean recall over the classes present among valid held-out images."""
    recalls = [(predicted[valid & (truth == c)] == c).mean(0) for c in np.unique(truth[valid])]
    return np.mean(recalls, axis=0)
