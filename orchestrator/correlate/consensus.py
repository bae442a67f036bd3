"""What the metrics of one family say together: one sign-aligned number (+ = more compressed), by third of depth.

Families (norm, spectrum, similarity) are never added up: concentration of norms and loss of rank are different things,
and where they run apart that is a finding. Within a family every metric counts by its registered direction. Trimmed
variants and metrics without a direction are left out; of `participation_ratio` only the share counts.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import polars as pl
import scipy
from jaxtyping import Float

from orchestrator.compression.declaration import Metric
from orchestrator.compression.depth import third_expression
from orchestrator.compression.registry import METRICS

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
) -> dict[str, dict[str, Float[np.ndarray, " n"]]]:
    """Family -> third of depth, and `all` of it -> how compressed each image is among the others.

    Within each layer each metric is ranked over images, scaled to mean 0 and variance 1, and turned so that + is more
    compressed; then averaged within the family and over the layers of a third. NaN for an image without values; empty
    where no metric of the consensus was captured.
    """
    rows = layer_metrics.filter((pl.col("tap") == tap) & (pl.col("group") == group))
    metrics = [m for m in MEMBERS if m in rows.columns]
    if not metrics or rows.is_empty():
        return {}
    oriented: dict[str, dict[str, list[np.ndarray]]] = {}
    for (third, _), frame in with_thirds(rows).group_by(["third", "layer"], maintain_order=True):
        joined = image_ids.to_frame().join(frame, on="image_id", how="left", maintain_order="left")
        families: dict[str, list[np.ndarray]] = {}
        for m in metrics:
            ranked = MEMBERS[m].direction * _scaled_ranks(joined[m].cast(pl.Float64).to_numpy())
            families.setdefault(MEMBERS[m].family, []).append(ranked)
        for family, columns in families.items():
            oriented.setdefault(family, {}).setdefault(str(third), []).append(nan_mean(np.stack(columns)))
    return {
        family: {
            **{third: nan_mean(np.stack(scores)) for third, scores in thirds.items()},
            "all": nan_mean(np.stack([s for scores in thirds.values() for s in scores])),
        }
        for family, thirds in oriented.items()
    }


def nan_mean(values: np.ndarray) -> np.ndarray:
    """Mean of the finite values over the first axis; NaN, without a warning, if there is none."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(0) / known.sum(0)


def _scaled_ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    ranks = np.full(len(values), np.nan)
    known = np.isfinite(values)
    if known.sum() > 1:
        ranked = scipy.stats.rankdata(values[known])
        spread = ranked.std()
        if spread > 0:
            ranks[known] = (ranked - ranked.mean()) / spread
    return ranks


def norm_members(columns: Iterable[str]) -> list[str]:
    """The norm metrics of the consensus among `columns`."""
    return [name for name in columns if name in MEMBERS and MEMBERS[name].family == "norm"]
