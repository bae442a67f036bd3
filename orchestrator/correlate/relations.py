"""How the compression of images relates to what is in them: one relation a metric family and attribute.

One number an image and family (`consensus.compression_scores`, all of the depth) stands for its metrics and layers, so
that no effect is the best of many. What is held fixed (the number of objects) is taken off both sides by flexible
curves (`stats.conditional`); the shape is tested on what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import scipy

from orchestrator.correlate.consensus import MEMBERS, SIGNIFICANT, compression_scores
from orchestrator.stats import ranks
from orchestrator.stats.conditional import MIN_IMAGES, conditional_association, residual_columns
from orchestrator.stats.resample import percentile_interval, resample_weights
from orchestrator.stats.shape import monotonicity
from orchestrator.store.tables.core import TABLES

N_BOOTSTRAP = 1000
CONFIDENCE = 0.95

__all__ = ["MIN_IMAGES", "Relation", "category_relations", "numeric_attributes", "relations"]


@dataclass(frozen=True)
class Relation:
    """Effect of an attribute on the compression of a group's tokens, by one family of metrics.

    `rho` is the rank correlation (+ = more compressed with more of it) with `given` held fixed, or epsilon squared for
    a categorical attribute.
    """

    group: str
    family: str
    attribute: str
    given: tuple[str, ...]
    rho: float
    low: float
    high: float
    n: int
    agreement: float | None
    """Share of the family's (metric, layer) rows that are significant (q < 0.05) with the effect's sign."""
    shape_p: float = float("nan")
    """p of monotonicity."""
    turning_point: float = float("nan")
    rho_below: float = float("nan")
    rho_above: float = float("nan")
    n_below: int = 0


def relations(
    images: pl.DataFrame,
    layer_metrics: pl.DataFrame,
    correlations: pl.DataFrame,
    tap: str,
    group: str,
    hold_fixed: Sequence[str] = (),
) -> list[Relation]:
    """Relations with count and continuous attributes over the whole depth; what is held fixed is related plainly."""
    measured: list[Relation] = []
    scores = {f: s["all"] for f, s in compression_scores(layer_metrics, images["image_id"], tap, group).items()}
    for attribute in numeric_attributes(images):
        given = tuple(name for name in hold_fixed if name in images.columns)
        given = () if attribute in given else given
        values, covariates = column(images, attribute), _columns(images, given)
        for family, score in scores.items():
            known = np.isfinite(values) & np.isfinite(score) & np.isfinite(covariates).all(axis=1)
            if known.sum() < MIN_IMAGES or np.ptp(values[known]) == 0 or np.ptp(score[known]) == 0:
                continue
            x, y, z = score[known, None], values[known, None], covariates[known]
            held = z if given else np.zeros((len(x), 1))
            effect = conditional_association(x, y, held, CONFIDENCE)
            if not np.isfinite(effect.rho[0, 0]):
                continue
            left = residual_columns(x, held)[0] if given else x
            shape = monotonicity(left, y[:, 0])
            rho = float(effect.rho[0, 0])
            statistic = "conditional_spearman" if given else "spearman"
            agreement = _agreement(_rows(correlations, statistic, tap, group, family, attribute), np.sign(rho))
            turn = float(shape.turning_point[0])
            measured.append(
                Relation(
                    group, family, attribute, given, rho, float(effect.low[0, 0]), float(effect.high[0, 0]), len(x),
                    agreement, float(shape.p[0]), turn, float(shape.rho_below[0]), float(shape.rho_above[0]),
                    int((y[:, 0] <= turn).sum()),
                )
            )  # fmt: skip
    return measured


def category_relations(
    images: pl.DataFrame,
    layer_metrics: pl.DataFrame,
    correlations: pl.DataFrame,
    tap: str,
    group: str,
    hold_fixed: Sequence[str] = (),
    seed: int = 0,
) -> list[Relation]:
    """Relations with categorical attributes over the whole depth: epsilon squared of what the covariates leave over."""
    given = tuple(name for name in hold_fixed if name in images.columns)
    covariates = _columns(images, given)
    measured = []
    for family, scores in compression_scores(layer_metrics, images["image_id"], tap, group).items():
        score = scores["all"]
        for attribute in (name for name in attributes(images) if images[name].dtype == pl.String):
            known = images[attribute].is_not_null().to_numpy() & np.isfinite(score)
            known &= np.isfinite(covariates).all(axis=1)
            n = int(known.sum())
            _, codes = np.unique(images[attribute].to_numpy()[known], return_inverse=True)
            n_categories = int(codes.max(initial=-1)) + 1
            if n < MIN_IMAGES or not 1 < n_categories < n or np.ptp(score[known]) == 0:
                continue
            left = residual_columns(score[known, None], covariates[known])[0] if given else score[known, None]
            weights = np.concatenate([np.ones((1, n), np.int64), resample_weights(n, N_BOOTSTRAP, seed)])
            ranked = ranks.rank_scores(ranks.Ordered.of(left), weights, np.float32)
            shares = ranks.share_between(ranked, weights, codes)[:, 0].astype(np.float64)
            point, once = (ranks.epsilon_squared(part, n, n_categories) for part in (shares[0], shares[1:]))
            low, high = percentile_interval(ranks.epsilon_squared(once, n, n_categories), CONFIDENCE)
            agreement = _agreement(_rows(correlations, "epsilon_squared", tap, group, family, attribute))
            measured.append(
                Relation(group, family, attribute, given, float(point), float(low), float(high), n, agreement)
            )
    return measured


def branch_interval(rho: float, n: int) -> tuple[float, float]:
    """95 % interval of Spearman's rho in one branch of n images (Fisher's z with the variance of Bonett and Wright)."""
    if n < 5 or not np.isfinite(rho):
        return float("nan"), float("nan")
    half = scipy.stats.norm.ppf(0.975) * np.sqrt((1 + rho**2 / 2) / (n - 3))
    centre = np.arctanh(np.clip(rho, -1 + 1e-9, 1 - 1e-9))
    return float(np.tanh(centre - half)), float(np.tanh(centre + half))


def numeric_attributes(images: pl.DataFrame) -> list[str]:
    """Count and continuous attributes."""
    return [name for name in attributes(images) if images[name].dtype.is_numeric()]


def attributes(images: pl.DataFrame) -> list[str]:
    """Columns that the table `images` does not itself declare."""
    return [name for name in images.columns if name not in TABLES["images"].columns]


def column(images: pl.DataFrame, name: str) -> np.ndarray:
    """A numeric column as float64, NaN where it is null."""
    return images[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()


def _columns(images: pl.DataFrame, names: Sequence[str]) -> np.ndarray:
    return np.stack([column(images, n) for n in names], axis=1) if names else np.empty((images.height, 0))


def _rows(
    correlations: pl.DataFrame, statistic: str, tap: str, group: str, family: str, attribute: str
) -> pl.DataFrame:
    members = [name for name, metric in MEMBERS.items() if metric.family == family]
    return correlations.filter(
        (pl.col("tap") == tap) & (pl.col("group") == group) & (pl.col("statistic") == statistic)
        & pl.col("metric").is_in(members) & pl.col("rho").is_not_null() & (pl.col("attribute") == attribute)
    )  # fmt: skip


def _agreement(rows: pl.DataFrame, sign: float | None = None) -> float | None:
    """Share of the rows that have a q whose relation is significant, and of that sign; None where no row has a q."""
    tested = rows.drop_nulls("q")
    agrees = pl.col("q") < SIGNIFICANT
    if sign is not None:
        direction = pl.col("metric").replace_strict({n: m.direction for n, m in MEMBERS.items()}, return_dtype=pl.Int8)
        agrees &= (direction * pl.col("rho")).sign() == sign
    return None if tested.is_empty() else float(tested.select(agrees.mean()).item())
