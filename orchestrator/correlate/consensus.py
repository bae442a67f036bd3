"""What metrics say together: one sign-aligned number (+ = more compressed), by third of depth.

Every metric counts by its registered direction, and families (norm, spectrum, similarity) count equally, so that five
ways to measure concentration of norms do not outvote the rank. Trimmed variants and metrics without a direction are
left out; of `participation_ratio` only the share counts.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import polars as pl
from jaxtyping import Float
from scipy.stats import rankdata

from orchestrator.compression.depth import third_expression
from orchestrator.compression.registry import METRICS, Metric

MEMBERS: dict[str, Metric] = {
    name: metric
    for name, metric in METRICS.items()
    if metric.direction and not metric.trimmed and name not in ("participation_ratio", "massive_share")
}
"""Metrics that form the consensus."""

SIGNIFICANT = 0.05
"""q below which a single correlation counts as found."""


def with_thirds(rows: pl.DataFrame) -> pl.DataFrame:
    """`rows` with a column `third` of the depth of their tap, which reaches from layer 0 to its last one in `rows`."""
    parts = [
        part.with_columns(third=third_expression(int(part["layer"].max()) + 1))  # type: ignore[arg-type]
        for part in rows.partition_by("tap")
    ]
    return pl.concat(parts) if parts else rows.with_columns(third=pl.lit(None, pl.String))


def main_tap(layer_metrics: pl.DataFrame, group: str = "vision") -> str | None:
    """The tap that stands for a group over depth: `decoder` where it holds the group, else (cross_kv) `cross_v`.

    Never `cross_k` beside it: a norm per head has made its tokens' norms equal, so that they tell of no energy. Without
    either, the tap of the most layers.
    """
    taps = layer_metrics.filter(pl.col("group") == group).group_by("tap").agg(pl.col("layer").n_unique())
    for tap in ("decoder", "cross_v"):
        if tap in taps["tap"]:
            return tap
    return taps.sort("layer", "tap", descending=[True, False])["tap"][0] if taps.height else None


def compression_scores(
    layer_metrics: pl.DataFrame, image_ids: pl.Series, tap: str, group: str
) -> dict[str, Float[np.ndarray, " n"]]:
    """How compressed each image is among the others, by third of depth and over `all` of it.

    Within each layer each metric is ranked over images, scaled to mean 0 and variance 1, and turned so that + is more
    compressed; then averaged within families, over families, and over the layers of a third. NaN for an image without
    values; empty where no metric of the consensus was captured.
    """
    rows = layer_metrics.filter((pl.col("tap") == tap) & (pl.col("group") == group))
    metrics = [m for m in MEMBERS if m in rows.columns]
    if not metrics:
        return {}
    by_third: dict[str, list[np.ndarray]] = {}
    for (third, _), frame in with_thirds(rows).group_by(["third", "layer"], maintain_order=True):
        joined = image_ids.to_frame().join(frame, on="image_id", how="left", maintain_order="left")
        values = {m: MEMBERS[m].direction * _scaled_ranks(joined[m].cast(pl.Float64).to_numpy()) for m in metrics}
        by_third.setdefault(str(third), []).append(_family_mean(values))
    layers = {third: np.stack(scores) for third, scores in by_third.items()}
    layers["all"] = np.concatenate(list(layers.values())) if layers else np.empty((0, len(image_ids)))
    return {third: nan_mean(scores, axis=0) for third, scores in layers.items() if len(scores)}


def nan_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean of the values that are there; NaN, without a warning, where none is."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(axis) / known.sum(axis)


def _scaled_ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    ranks = np.full(len(values), np.nan)
    known = np.isfinite(values)
    if known.sum() > 1:
        found = rankdata(values[known])
        spread = found.std()
        if spread > 0:
            ranks[known] = (found - found.mean()) / spread
    return ranks


def _family_mean(values: dict[str, Float[np.ndarray, " n"]]) -> Float[np.ndarray, " n"]:
    families: dict[str, list[np.ndarray]] = {}
    for metric, column in values.items():
        families.setdefault(MEMBERS[metric].family, []).append(column)
    return nan_mean(np.stack([nan_mean(np.stack(columns), axis=0) for columns in families.values()]), axis=0)


def norm_members(columns: Iterable[str]) -> list[str]:
    """The norm metrics of the consensus among `columns`."""
    return [name for name in columns if name in MEMBERS and MEMBERS[name].family == "norm"]
