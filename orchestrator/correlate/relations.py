"""How the consensus compression of images relates to what is in them: effect, bootstrap interval, agreement of metrics.

One number an image (`consensus.compression_scores`) stands for all metrics and layers, so that no effect is the best of
many. `S` resamples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float

from orchestrator.compression.depth import THIRDS
from orchestrator.correlate.consensus import MEMBERS, SIGNIFICANT, compression_scores, with_thirds
from orchestrator.stats import ranks
from orchestrator.store.tables.core import TABLES

MIN_IMAGES = 10
N_BOOTSTRAP = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Relation:
    """Effect of an attribute on the compression of a group's tokens, and its resamples.

    `rho` is Spearman's rho (+ = more compressed with more of it), or epsilon squared for a categorical attribute. The
    interval of a third of the depth is one of three that hold together (Bonferroni): findings pick one of them.
    """

    group: str
    where: str
    attribute: str
    rho: float
    resampled: Float[np.ndarray, " S"]
    low: float
    high: float
    n: int
    agreement: float | None

    @property
    def sureness(self) -> float:
        """The end of the interval that is nearer to 0, as a distance; negative where it includes 0."""
        return max(self.low, -self.high)


def relations(
    images: pl.DataFrame, layer_metrics: pl.DataFrame, correlations: pl.DataFrame, tap: str, group: str, seed: int
) -> list[Relation]:
    """Relations with count and continuous attributes, in each third of the depth and over `all` of it."""
    scores = compression_scores(layer_metrics, images["image_id"], tap, group)
    found: list[Relation] = []
    if not scores:
        return found
    rows = with_thirds(_rows(correlations, "spearman", tap, group))
    scored: dict[bytes, np.ndarray] = {}
    for attribute in numeric_attributes(images):
        values = images[attribute].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        known = np.isfinite(values) & np.isfinite(np.stack([*scores.values()])).all(axis=0)
        n = int(known.sum())
        if n < MIN_IMAGES or np.ptp(values[known]) == 0:
            continue
        weights = _weights(n, seed)
        if known.tobytes() not in scored:  # most attributes are known for all images
            columns = np.stack([score[known] for score in scores.values()], axis=1)
            scored = {known.tobytes(): ranks.rank_scores(ranks.Ordered.of(columns), weights, np.float32)}
        theirs = ranks.rank_scores(ranks.Ordered.of(values[known][:, None]), weights, np.float32)
        rho = ranks.spearman(scored[known.tobytes()], theirs)[..., 0].astype(np.float64)
        mine = rows.filter(pl.col("attribute") == attribute)
        for k, where in enumerate(scores):
            if np.isnan(rho[0, k]):
                continue
            confidence = CONFIDENCE if where == "all" else 1 - (1 - CONFIDENCE) / len(THIRDS)
            low, high = (float(end) for end in ranks.interval(rho[1:, k], confidence))
            agreement = _agreement(
                mine if where == "all" else mine.filter(pl.col("third") == where), np.sign(rho[0, k])
            )
            found.append(Relation(group, where, attribute, float(rho[0, k]), rho[1:, k], low, high, n, agreement))
    return found


def category_relations(
    images: pl.DataFrame, layer_metrics: pl.DataFrame, correlations: pl.DataFrame, tap: str, group: str, seed: int
) -> Iterator[Relation]:
    """Relations with categorical attributes over the whole depth."""
    score = compression_scores(layer_metrics, images["image_id"], tap, group).get("all")
    if score is None:
        return
    rows = _rows(correlations, "epsilon_squared", tap, group)
    for attribute in (name for name in _attributes(images) if images[name].dtype == pl.String):
        known = images[attribute].is_not_null().to_numpy() & np.isfinite(score)
        n = int(known.sum())
        _, codes = np.unique(images[attribute].to_numpy()[known], return_inverse=True)
        n_categories = int(codes.max(initial=-1)) + 1
        if n < MIN_IMAGES or not 1 < n_categories < n or np.ptp(score[known]) == 0:
            continue
        weights = _weights(n, seed)
        ranked = ranks.rank_scores(ranks.Ordered.of(score[known][:, None]), weights, np.float32)
        shares = ranks.share_between(ranked, weights, codes)[:, 0].astype(np.float64)
        point, once = (ranks.epsilon_squared(part, n, n_categories) for part in (shares[0], shares[1:]))
        resampled = ranks.epsilon_squared(once, n, n_categories)
        low, high = (float(end) for end in ranks.interval(resampled, CONFIDENCE))
        mine = rows.filter(pl.col("attribute") == attribute)
        agreement = None if mine.is_empty() else float(mine.select((pl.col("q") < SIGNIFICANT).mean()).item())
        yield Relation(group, "all", attribute, float(point), resampled, low, high, n, agreement)


def numeric_attributes(images: pl.DataFrame) -> list[str]:
    """Count and continuous attributes."""
    return [name for name in _attributes(images) if images[name].dtype.is_numeric()]


def _attributes(images: pl.DataFrame) -> list[str]:
    """Columns that the table `images` does not itself declare."""
    return [name for name in images.columns if name not in TABLES["images"].columns]


def _weights(n: int, seed: int) -> np.ndarray:
    """The images as they are, then the resamples of them."""
    return np.concatenate([np.ones((1, n), np.int64), ranks.resample_weights(n, N_BOOTSTRAP, seed)])


def _rows(correlations: pl.DataFrame, statistic: str, tap: str, group: str) -> pl.DataFrame:
    return correlations.filter(
        (pl.col("tap") == tap) & (pl.col("group") == group) & (pl.col("statistic") == statistic)
        & pl.col("metric").is_in(list(MEMBERS)) & pl.col("rho").is_not_null()
    )  # fmt: skip


def _agreement(rows: pl.DataFrame, sign: float) -> float | None:
    if rows.is_empty():
        return None
    direction = pl.col("metric").replace_strict({n: m.direction for n, m in MEMBERS.items()}, return_dtype=pl.Int8)
    agrees = (pl.col("q") < SIGNIFICANT) & ((direction * pl.col("rho")).sign() == sign)
    return float(rows.select(agrees.mean()).item())
