"""Probe targets: attribute columns as label arrays, with a reason for each attribute that cannot be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from orchestrator.data.clusters import CLUSTER
from orchestrator.errors import ConfigError, DataError, did_you_mean

KIND_TO_TASK = {"count": "regression", "continuous": "regression", "categorical": "classification"}


@dataclass(frozen=True)
class Target:
    """One attribute as labels of n images.

    Args:
        name: attribute.
        task: `classification` or `regression`.
        values: (n,) float64 numbers, or int64 class codes 0..C-1; 0 where `valid` is false.
        valid: (n,) bool; false for a missing value or an image of a rare class.
        classes: class names in code order; empty for regression.
        n_left_out: number of images excluded because their class is rare.
        reason: why no probe can be fitted, else None.
    """

    name: str
    task: str
    values: np.ndarray
    valid: np.ndarray
    classes: tuple[str, ...] = ()
    n_left_out: int = 0
    reason: str | None = None


def make_target(name: str, kind: str, column: np.ndarray | pl.Series | Sequence, min_class_count: int = 8) -> Target:
    """Labels of one attribute; classes with fewer than `min_class_count` images are excluded and counted.

    A missing value (null, NaN, infinite) makes its image invalid for this attribute only.

    Raises:
        DataError: `kind` is unknown, or a number cannot be read from a `count` or `continuous` column.
    """
    if kind not in KIND_TO_TASK:
        raise DataError(f"attribute {name}: unknown kind {kind!r}.{did_you_mean(kind, KIND_TO_TASK)}")
    series = column if isinstance(column, pl.Series) else pl.Series(name, column, strict=False)
    return _numbers(name, series) if KIND_TO_TASK[kind] == "regression" else _classes(name, series, min_class_count)


def subset_of(target: Target, rows: np.ndarray) -> Target:
    """Labels of some of the images."""
    values, valid = target.values[rows], target.valid[rows]
    reason = target.reason
    if reason is None and len(np.unique(values[valid])) < 2:
        reason = "the images that have this position hold one value"
    return replace(target, values=values, valid=valid, reason=reason)


def _numbers(name: str, series: pl.Series) -> Target:
    try:
        values = series.cast(pl.Float64).to_numpy().astype(np.float64)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"attribute {name}: expected numbers, found {series.dtype}: {error}") from error
    valid = np.isfinite(values)
    values = np.where(valid, values, 0.0)
    reason = None
    if not valid.any():
        reason = "no image has a value"
    elif np.ptp(values[valid]) == 0:
        reason = f"constant: every image has the value {values[valid][0]:g}"
    return Target(name, "regression", values, valid, reason=reason)


def _classes(name: str, series: pl.Series, min_class_count: int) -> Target:
    labels = series.fill_nan(None) if series.dtype.is_float() else series
    labels = labels.cast(pl.String)
    present = labels.is_not_null().to_numpy()
    names, counts = np.unique(labels.drop_nulls().to_numpy().astype(str), return_counts=True)
    kept = names[counts >= min_class_count]
    codes = {label: code for code, label in enumerate(kept)}
    values = np.array([codes.get(label, -1) for label in labels.to_list()], dtype=np.int64)
    valid = values >= 0
    reason = None
    if not present.any():
        reason = "no image has a value"
    elif len(kept) == 1:
        reason = f"one class: {str(kept[0])!r} alone has >= {min_class_count} images"
    elif len(kept) == 0:
        reason = f"no class has >= {min_class_count} images: {len(names)} classes, {int(present.sum())} images"
    return Target(
        name,
        "classification",
        np.where(valid, values, 0),
        valid,
        tuple(map(str, kept)),
        n_left_out=int((present & ~valid).sum()),
        reason=reason,
    )


def make_targets(
    images: pl.DataFrame, kinds: Mapping[str, str], attributes: Sequence[str] | None = None, min_class_count: int = 8
) -> list[Target]:
    """Labels of `attributes` (None: all of `kinds` except the cluster) from table `images`, in the given order.

    Raises:
        ConfigError: an attribute that the source does not have.
        DataError: an attribute the source declares but the table lacks.
    """
    names = [name for name in kinds if name != CLUSTER] if attributes is None else list(attributes)
    for name in names:
        if name not in kinds:
            raise ConfigError(f"probe.attributes: unknown attribute {name!r}.{did_you_mean(name, kinds)}")
        if name not in images.columns:
            raise DataError(f"table images: no column for attribute {name!r}.{did_you_mean(name, images.columns)}")
    return [make_target(name, kinds[name], images[name], min_class_count) for name in names]
