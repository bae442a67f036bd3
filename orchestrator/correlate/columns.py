"""Tables as named columns of numbers, and the rows that two sets of columns both have values in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from orchestrator.compression.registry import ERRORS
from orchestrator.errors import DataError

KEYS = ("tap", "layer", "group")


@dataclass(frozen=True)
class Columns:
    """Values (n, C) with a name each."""

    names: list[tuple[str, ...]]
    values: NDArray


def wide(layer_metrics: pl.DataFrame, image_ids: pl.Series) -> Columns:
    """One row an image and one column a (tap, layer, group, metric), NaN where there is no value."""
    metrics = [c for c in layer_metrics.columns if c not in (*KEYS, "image_id", "n_tokens", *ERRORS)]
    names: list[tuple[str, ...]] = []
    parts = []
    for key, frame in layer_metrics.sort(KEYS).group_by(KEYS, maintain_order=True):
        joined = image_ids.to_frame().join(frame, on="image_id", how="left", maintain_order="left")
        parts.append(matrix(joined, metrics))
        names += [(*(str(k) for k in key), metric) for metric in metrics]
    if not parts:
        raise DataError("table layer_metrics has no rows to correlate")
    return Columns(names, np.concatenate(parts, axis=1))


def matrix(frame: pl.DataFrame, columns: Sequence[str]) -> NDArray:
    values = [frame[c].cast(pl.Float64).fill_null(float("nan")).to_numpy() for c in columns]
    matrix = np.stack(values, axis=1) if values else np.empty((frame.height, 0))
    return np.where(np.isfinite(matrix), matrix, np.nan)


def patterns(values: NDArray) -> Iterator[tuple[NDArray, NDArray]]:
    """(rows, columns) of equal missingness: columns that have values in exactly the same rows."""
    present = np.isfinite(values)
    if not values.shape[1]:
        return
    patterns, which = np.unique(present, axis=1, return_inverse=True)
    for k in range(patterns.shape[1]):
        yield np.flatnonzero(patterns[:, k]), np.flatnonzero(which.ravel() == k)


def blocks(x: Columns, y: Columns) -> Iterator[tuple[NDArray, NDArray, NDArray]]:
    """Rows that both have values in, columns of x, columns of y."""
    for rows_y, columns_y in patterns(y.values):
        for rows, columns in patterns(x.values[rows_y]):
            yield rows_y[rows], columns, columns_y


def take(columns: Columns, rows: NDArray, which: NDArray) -> Columns:
    return Columns([columns.names[i] for i in which], columns.values[np.ix_(rows, which)])
