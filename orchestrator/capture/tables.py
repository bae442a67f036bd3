"""Builds the tables of a shard from its loaded images and captured values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from orchestrator.capture.loading import Loaded
from orchestrator.store.tables.core import check_table

DTYPES: dict[str, type[pl.DataType]] = {"count": pl.Int64, "continuous": pl.Float64, "categorical": pl.String}
"""Column dtype of each attribute kind; the same in every shard, even if all values are missing."""

MetricKey = tuple[str, int, str]
"""(tap, layer, group)."""


def images_table(images: Sequence[Loaded], source: str, kinds: Mapping[str, str]) -> pl.DataFrame:
    """Table `images`: one row per captured image, with its attributes."""
    loaded = [(item, item.image) for item in images if item.image is not None]
    columns: dict[str, Any] = {
        "image_id": [item.image_id for item, _ in loaded],
        "source": [source] * len(loaded),
        "index": [item.index for item, _ in loaded],
        "width": [image.shape[1] for _, image in loaded],
        "height": [image.shape[0] for _, image in loaded],
    }
    schema: dict[str, Any] = {"image_id": pl.String, "source": pl.String}
    schema |= dict.fromkeys(("index", "width", "height"), pl.Int32)
    for name, kind in kinds.items():
        columns[name] = [item.attributes.get(name) for item, _ in loaded]
        schema[name] = DTYPES[kind]
    return check_table(pl.DataFrame(columns, schema=schema), "images")


def rejected_table(images: Sequence[Loaded], reasons: Mapping[int, str]) -> pl.DataFrame:
    """Table `rejected`: the images whose index has a reason."""
    rejected = [image for image in images if image.index in reasons]
    columns: dict[str, Any] = {
        "image_id": [image.image_id for image in rejected],
        "index": [image.index for image in rejected],
        "reason": [reasons[image.index] for image in rejected],
    }
    schema: dict[str, Any] = {"image_id": pl.String, "index": pl.Int32, "reason": pl.String}
    return check_table(pl.DataFrame(columns, schema=schema), "rejected")


def metrics_table(
    images: Sequence[tuple[str, Mapping[MetricKey, tuple[int, np.ndarray]]]], metrics: Sequence[str]
) -> pl.DataFrame:
    """Table `layer_metrics`: a row for each image, tap, layer and group, in that order.

    Args:
        images: image id and, for each tap point and group, number of tokens and values (n_metrics,), NaN where a
            metric is undefined (a single token, no energy); NaN becomes null in the table.
        metrics: names of the values.
    """
    rows = [(image_id, key, *values_of[key]) for image_id, values_of in images for key in sorted(values_of)]
    columns: dict[str, Any] = {
        "image_id": [image_id for image_id, *_ in rows],
        "tap": [tap for _, (tap, _, _), *_ in rows],
        "layer": [layer for _, (_, layer, _), *_ in rows],
        "group": [group for _, (_, _, group), *_ in rows],
        "n_tokens": [n for *_, n, _ in rows],
    }
    values = np.array([v for *_, v in rows], dtype=np.float32).reshape(len(rows), len(metrics))
    columns |= {name: values[:, index] for index, name in enumerate(metrics)}
    schema: dict[str, Any] = {"image_id": pl.String, "tap": pl.String, "layer": pl.Int32, "group": pl.String}
    schema |= {"n_tokens": pl.Int32} | dict.fromkeys(metrics, pl.Float32)
    return check_table(
        pl.DataFrame(columns, schema=schema).with_columns(pl.col(metrics).fill_nan(None)), "layer_metrics"
    )
