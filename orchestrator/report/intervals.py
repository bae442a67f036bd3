"""Means with bootstrap intervals over images, and per-layer summaries of the tables a report draws.

B resamples, n images, K columns.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from jaxtyping import Float

from orchestrator.compression.depth import third_expression
from orchestrator.correlate.consensus import main_tap
from orchestrator.report.model import PointResults
from orchestrator.store.tables.core import GROUPS

N_RESAMPLES = 1000
LEVEL = 0.95
_FIXED = ("image_id", "tap", "layer", "group", "n_tokens")


def mean_intervals(
    values: Float[np.ndarray, "n K"], seed: int = 0, n_resamples: int = N_RESAMPLES, level: float = LEVEL
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """Mean of each column over rows with its percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13).

    Args:
        values: float (n, K); NaN entries are left out. The same resamples of rows serve all columns.

    Returns:
        mean, lower and upper end, float64 (K,) each; NaN for a column without any value. With one row the interval
        has no width, as the bootstrap cannot know better.
    """
    n = values.shape[0]
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_resamples).astype(np.float64)
    there = np.isfinite(values)
    filled = np.where(there, values, 0.0).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        resampled = (counts @ filled) / (counts @ there)
        mean = filled.sum(0) / there.sum(0)
    low, high = np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    known = there.any(0)
    tail = (1 - level) / 2
    if known.any():
        low[known], high[known] = np.nanquantile(resampled[:, known], [tail, 1 - tail], axis=0)
    return mean, low, high


def layer_curves(layer_metrics: pl.DataFrame, seed: int = 0) -> pl.DataFrame:
    """Mean and 95 % bootstrap interval over images of every metric, by tap, layer and group.

    Returns:
        columns tap, layer, group, metric, mean, ci_low, ci_high (float64), n (images with a value).
    """
    metrics = [c for c in layer_metrics.columns if c not in _FIXED]
    parts = []
    for (tap, layer, group), part in layer_metrics.group_by("tap", "layer", "group", maintain_order=True):
        values = part.select(pl.col(metrics).cast(pl.Float64)).fill_null(float("nan")).to_numpy()
        mean, low, high = mean_intervals(values, seed)
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
    """`layer_curves` of a point, or None when nothing was captured."""
    if point.layer_metrics is None or point.layer_metrics.is_empty() or not point.metrics:
        return None
    return layer_curves(point.layer_metrics)


def depth_table(point: PointResults, metrics: list[str]) -> pl.DataFrame | None:
    """Mean and 95 % bootstrap interval over images of `metrics` by group and third of the decoder's depth.

    An image's value in a third is its mean over the third's layers.
    """
    if point.layer_metrics is None or not metrics or point.layer_metrics.is_empty():
        return None
    parts = []
    for group in GROUPS:
        tap = main_tap(point.layer_metrics, group)
        if tap is None:
            continue
        rows = point.layer_metrics.filter((pl.col("tap") == tap) & (pl.col("group") == group))
        n_points = int(rows["layer"].max() or 0) + 1  # type: ignore[arg-type]
        by_third = (
            rows.with_columns(third=third_expression(n_points))
            .group_by("image_id", "group", "third", maintain_order=True)
            .agg(pl.col(metrics).cast(pl.Float64).fill_nan(None).mean())
            .select("image_id", pl.col("third").alias("tap"), pl.lit(0, pl.Int32).alias("layer"), "group", *metrics)
        )
        parts.append(layer_curves(by_third).rename({"tap": "third"}).drop("layer"))
    return pl.concat(parts) if parts else None
