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
PictureKey = tuple[int, str, int]
"""(number of the image, tap, layer)."""


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
    keys = {"tap": pl.String, "layer": pl.Int32, "group": pl.String}
    return _measured("layer_metrics", keys, images, metrics)


def picture_table(
    images: Sequence[tuple[str, Mapping[PictureKey, tuple[int, np.ndarray]]]], metrics: Sequence[str]
) -> pl.DataFrame:
    """Table `picture_metrics`: a row for each image of a question about several, tap and layer; see `metrics_table`."""
    keys = {"picture": pl.Int32, "tap": pl.String, "layer": pl.Int32}
    return _measured("picture_metrics", keys, images, metrics)


def _measured(
    table: str,
    keys: Mapping[str, Any],
    images: Sequence[tuple[str, Mapping[Any, tuple[int, np.ndarray]]]],
    metrics: Sequence[str],
) -> pl.DataFrame:
    rows = [(image_id, key, *found[key]) for image_id, found in images for key in sorted(found)]
    columns: dict[str, Any] = {"image_id": [image_id for image_id, *_ in rows]}
    columns |= {name: [key[place] for _, key, *_ in rows] for place, name in enumerate(keys)}
    columns["n_tokens"] = [n for *_, n, _ in rows]
    values = np.array([v for *_, v in rows], dtype=np.float32).reshape(len(rows), len(metrics))
    columns |= {name: values[:, place] for place, name in enumerate(metrics)}
    schema: dict[str, Any] = {"image_id": pl.String, **keys, "n_tokens": pl.Int32} | dict.fromkeys(metrics, pl.Float32)
    return check_table(pl.DataFrame(columns, schema=schema).with_columns(pl.col(metrics).fill_nan(None)), table)
