"""Per-layer summaries of compression tables: means with bootstrap intervals over images."""

from __future__ import annotations

import numpy as np
import polars as pl

from orchestrator.compression.depth import third_expression
from orchestrator.correlate.consensus import main_tap
from orchestrator.report.model import PointResults
from orchestrator.stats.resample import bootstrap_means
from orchestrator.store.tables.core import GROUPS

_FIXED = ("image_id", "tap", "layer", "group", "n_tokens")


def layer_curves(layer_metrics: pl.DataFrame) -> pl.DataFrame:
    """Mean and 95 % bootstrap interval over images of every metric, by tap, layer and group.

    Returns:
        columns tap, layer, group, metric, mean, ci_low, ci_high (float64), n (images with a value).
    """
    metrics = [c for c in layer_metrics.columns if c not in _FIXED]
    parts = []
    for (tap, layer, group), part in layer_metrics.group_by("tap", "layer", "group", maintain_order=True):
        values = part.select(pl.col(metrics).cast(pl.Float64)).fill_null(float("nan")).to_numpy()
        mean, low, high = bootstrap_means(values, 0)
        parts.append(
            pl.DataFrame(
                {
                    "tap": [tap] * len(metrics),
                    "layer": [layer] * len(metrics),
                    "group": [group] * len(metrics),
                    "metric": metrics,
                    "mean": mean,
                    "ci_low": low,
                    "ci_high": high,
                    "n": np.isfinite(values).sum(0),
                }
            )
        )
    return pl.concat(parts).sort("tap", "group", "metric", "layer")


def curves_of(point: PointResults) -> pl.DataFrame | None:
    """`layer_curves` of a point, or None without a capture."""
    if point.layer_metrics is None or point.layer_metrics.is_empty() or not point.metrics:
        return None
    return layer_curves(point.layer_metrics)


def depth_table(point: PointResults, metrics: list[str]) -> pl.DataFrame | None:
    """Mean and 95 % bootstrap interval over images of `metrics` by group and third of the decoder's depth."""
    values = third_values(point, metrics)
    return None if values is None else bootstrap_thirds(values)


def third_values(point: PointResults, metrics: list[str]) -> pl.DataFrame | None:
    """Each image's value of `metrics` by group and third of the decoder's depth: its mean over the third's layers."""
    if point.layer_metrics is None or not metrics or point.layer_metrics.is_empty():
        return None
    parts = []
    for group in GROUPS:
        tap = main_tap(point.layer_metrics, group)
        if tap is None:
            continue
        rows = point.layer_metrics.filter((pl.col("tap") == tap) & (pl.col("group") == group))
        n_points = int(rows["layer"].max() or 0) + 1  # type: ignore[arg-type]
        parts.append(
            rows.with_columns(third=third_expression(n_points))
            .group_by("image_id", "group", "third", maintain_order=True)
            .agg(pl.col(metrics).cast(pl.Float64).fill_nan(None).mean())
        )
    return pl.concat(parts) if parts else None


def bootstrap_thirds(values: pl.DataFrame) -> pl.DataFrame:
    """Mean and 95 % bootstrap interval over images of `third_values`, one row per group, third and metric."""
    metrics = [c for c in values.columns if c not in ("image_id", "group", "third")]
    parts = [
        layer_curves(
            part.select("image_id", pl.col("third").alias("tap"), pl.lit(0, pl.Int32).alias("layer"), "group", *metrics)
        )
        for _, part in values.group_by("group", maintain_order=True)
    ]
    return pl.concat(parts).rename({"tap": "third"}).drop("layer")
