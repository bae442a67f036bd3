"""Labels of a target under a split: training, held-out, and shuffled for the control."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from orchestrator.probes.split import Split
from orchestrator.probes.targets import Target

MIN_HELD_OUT = 10
"""Minimum number of held-out images for a meaningful score."""


@dataclass(frozen=True)
class Labels:
    """Labels of one target on n training and m held-out images.

    Args:
        target: the labels' target.
        train: (n,) int64 codes, or float64 numbers standardised on valid training images.
        shuffled: `train` permuted among valid training images; labels of the control.
        valid: (n,) bool.
        test: (m,) true codes, or numbers on the same scale as `train`.
        test_valid: (m,) bool.
        reason: why no probe can be fitted or scored, else None.
    """

    target: Target
    train: np.ndarray
    shuffled: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    test_valid: np.ndarray
    reason: str | None = None

    @property
    def n_classes(self) -> int:
        return len(self.target.classes)

    @property
    def is_classification(self) -> bool:
        return self.target.task == "classification"


def make_labels(target: Target, split: Split, seed: int) -> Labels:
    """Divide `target` by `split`. The shuffle depends on (seed, attribute) only."""
    values, valid = target.values[split.train], target.valid[split.train]
    test, test_valid = target.values[split.test], target.valid[split.test]
    reason = target.reason
    if reason is None:
        reason = _unfit(target, values, valid, split) or _unscored(target, test, test_valid)
    if reason is None and target.task == "regression":
        mean, deviation = values[valid].mean(), values[valid].std()
        values, test = np.where(valid, (values - mean) / deviation, 0.0), (test - mean) / deviation
    shuffled = values.copy()
    random = np.random.default_rng([seed, zlib.crc32(target.name.encode())])
    shuffled[valid] = random.permutation(values[valid])
    return Labels(target, values, shuffled, valid, test, test_valid, reason)


def _unfit(target: Target, values: np.ndarray, valid: np.ndarray, split: Split) -> str | None:
    if valid.sum() < 2 * split.n_folds:
        return f"{int(valid.sum())} training images have a value; expected at least {2 * split.n_folds}"
    for k in range(split.n_folds):
        rest = values[valid & (split.fold != k)]
        if len(np.unique(rest)) < 2:
            label_kind = "class" if target.task == "classification" else "value"
            return f"training images outside inner fold {k} hold one {label_kind}"
    return None


def _unscored(target: Target, test: np.ndarray, test_valid: np.ndarray) -> str | None:
    if test_valid.sum() < MIN_HELD_OUT:
        return f"{int(test_valid.sum())} held-out images have a value; expected at least {MIN_HELD_OUT}"
    if target.task == "regression" and np.ptp(test[test_valid]) == 0:
        return "held-out images hold one value"
    return None
