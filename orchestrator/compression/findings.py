"""What a study found, as ranked statements with a verdict that may be no.

Each statement has an effect, a percentile bootstrap interval over images and a verdict by one rule: `supported` where
the whole interval lies beyond the smallest effect that matters, `contradicted` where the whole interval lies below it
(the effect is absent, trivial or reversed, and we can tell), `undecided` where the interval is too wide to tell. Too
few images thus end in `undecided`, never in `contradicted`.

First the studied paper's three claims, then every attribute, those whose relation is surest first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from jaxtyping import Float

from orchestrator.compression import ranks
from orchestrator.compression.consensus import (
    MEMBERS,
    SIGNIFICANT,
    compression_scores,
    main_tap,
    nan_mean,
    norm_members,
    with_thirds,
)
from orchestrator.compression.depth import THIRDS
from orchestrator.schema import TABLES

Verdict = Literal["supported", "contradicted", "undecided"]

SMALLEST_RHO = 0.1
"""Rank correlations nearer to 0 than this do not matter (Cohen 1988: a small effect)."""
SMALLEST_SHIFT = 0.2
"""Differences between thirds of depth below this many standard deviations do not matter (Cohen 1988: small)."""
MIN_IMAGES = 10
N_BOOTSTRAP = 1000
CONFIDENCE = 0.95
COCO_DRIVERS = ("n_categories", "area_spread")
"""Category diversity and spread of object sizes: what the studied paper found to dominate on COCO."""


@dataclass(frozen=True)
class Finding:
    """One statement about one model on one source. `effect` has the unit named in `effect_name`."""

    claim: str
    """`depth`, `objects`, `coco_drivers` (the paper's), or `attribute`."""
    statement: str
    holds: Verdict
    group: str
    where: str
    """early, middle, late, or all of the depth."""
    attribute: str | None
    effect_name: str
    effect: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    agreement: float | None
    """Share of (metric, layer) pairs whose own correlation is significant (q < 0.05) and has the effect's sign."""


def verdict(low: float, high: float, smallest: float) -> Verdict:
    """The rule of this module for an interval of an effect that is claimed to be positive."""
    if not (np.isfinite(low) and np.isfinite(high)):
        return "undecided"
    return "supported" if low > smallest else "contradicted" if high < smallest else "undecided"


def find(
    images: pl.DataFrame, layer_metrics: pl.DataFrame, correlations: pl.DataFrame, *, source: str, seed: int = 0
) -> list[Finding]:
    """Ranked findings of one study.

    Args:
        images, layer_metrics, correlations: the tables of `schema.py`.
        source: `scenes`, `coco` or `folder`; the claim about COCO is judged on COCO alone.
        seed: of the bootstrap.
    """
    images = images.sort("image_id")
    found: list[Finding] = []
    tap = main_tap(layer_metrics, "vision")
    if tap is not None:
        found.append(_depth(layer_metrics, images["image_id"], tap, seed))
    relations = [
        relation
        for group in ("vision", "text")
        if (at := main_tap(layer_metrics, group)) is not None
        for relation in _relations(images, layer_metrics, correlations, at, group, seed)
    ]
    overall = [r for r in relations if r.group == "vision" and r.where == "all"]
    found += [_objects(r) for r in overall if r.attribute == "n_objects"]
    if source == "coco" and tap is not None:
        # Resamples of different attributes are paired by image, so all must rest on the same images.
        complete = images.drop_nulls(_attributes(images))
        paired = _relations(complete, layer_metrics, correlations, tap, "vision", seed)
        found.append(_coco_drivers([r for r in paired if r.where == "all"], complete.height))
    best: dict[tuple[str, str], _Relation] = {}
    for relation in relations:
        key = (relation.group, relation.attribute)
        if relation.where != "all" and (key not in best or relation.sureness > best[key].sureness):
            best[key] = relation
    ranked = sorted(best.values(), key=lambda r: r.sureness, reverse=True)
    return found + [_attribute(relation) for relation in ranked] + _categories(correlations, layer_metrics)


# ---------------------------------------------------------------- claim 1: spread, concentrate, spread


def _depth(layer_metrics: pl.DataFrame, image_ids: pl.Series, tap: str, seed: int) -> Finding:
    statement = "Over depth, vision tokens' energy is spread, then concentrated, then spread again"
    scores = _norm_scores(layer_metrics, image_ids, tap)
    if len(scores) < MIN_IMAGES:
        return _undecided("depth", statement, len(scores), "SD, middle above the nearer of early and late")
    gains = scores[:, 1:2] - scores[:, [0, 2]]
    weights = ranks.resample_weights(len(gains), N_BOOTSTRAP, seed)
    weakest = (weights @ gains / len(gains)).min(axis=1)
    low, high = ranks.interval(weakest, CONFIDENCE)
    early, late = gains.mean(axis=0)
    return Finding(
        "depth",
        f"{statement} (middle against early {early:+.2f} SD, against late {late:+.2f} SD)",
        verdict(float(low), float(high), SMALLEST_SHIFT),
        "vision",
        "all",
        None,
        "SD, middle above the nearer of early and late",
        float(gains.mean(axis=0).min()),
        float(low),
        float(high),
        len(gains),
        None,
    )


def _norm_scores(layer_metrics: pl.DataFrame, image_ids: pl.Series, tap: str) -> Float[np.ndarray, "n 3"]:
    """Concentration of norms of each image in each third: mean of the norm metrics, + = concentrated, in SD."""
    rows = layer_metrics.filter((pl.col("tap") == tap) & (pl.col("group") == "vision"))
    rows = with_thirds(rows.filter(pl.col("image_id").is_in(image_ids.to_list())))
    metrics = norm_members(rows.columns)
    means = rows.group_by("image_id", "third").agg(pl.col(metrics).cast(pl.Float64).fill_nan(None).mean())
    if not metrics or set(means["third"]) != set(THIRDS):
        return np.empty((0, 3))
    aligned = []
    for metric in metrics:
        wide = means.pivot("third", index="image_id", values=metric).sort("image_id").select(THIRDS).to_numpy()
        spread = np.nanstd(wide)
        if np.isfinite(spread) and spread > 1e-9:
            aligned.append(MEMBERS[metric].direction * (wide - np.nanmean(wide)) / spread)
    if not aligned:
        return np.empty((0, 3))
    scores = nan_mean(np.stack(aligned), axis=0)
    return scores[np.isfinite(scores).all(axis=1)]


# ---------------------------------------------------------------- attributes


@dataclass(frozen=True)
class _Relation:
    """Spearman's rho of the consensus compression of images with an attribute, and its resamples."""

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


def _relations(
    images: pl.DataFrame, layer_metrics: pl.DataFrame, correlations: pl.DataFrame, tap: str, group: str, seed: int
) -> list[_Relation]:
    scores = compression_scores(layer_metrics, images["image_id"], tap, group)
    found = []
    rows = with_thirds(
        correlations.filter(
            (pl.col("tap") == tap) & (pl.col("group") == group) & (pl.col("statistic") == "spearman")
            & pl.col("metric").is_in(list(MEMBERS)) & pl.col("rho").is_not_null()
        )
    )  # fmt: skip
    scored: dict[bytes, np.ndarray] = {}
    for attribute in _attributes(images):
        values = images[attribute].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        known = np.isfinite(values) & np.isfinite(np.stack([*scores.values()])).all(axis=0)
        n = int(known.sum())
        if n < MIN_IMAGES or np.ptp(values[known]) == 0:
            continue
        weights = np.concatenate([np.ones((1, n), np.int64), ranks.resample_weights(n, N_BOOTSTRAP, seed)])
        if known.tobytes() not in scored:  # most attributes are known for all images
            columns = np.stack([score[known] for score in scores.values()], axis=1)
            scored = {known.tobytes(): ranks.rank_scores(ranks.Ordered.of(columns), weights, np.float32)}
        theirs = ranks.rank_scores(ranks.Ordered.of(values[known][:, None]), weights, np.float32)
        rho = ranks.spearman(scored[known.tobytes()], theirs)[..., 0].astype(np.float64)
        mine = rows.filter(pl.col("attribute") == attribute)
        for k, where in enumerate(scores):
            if np.isnan(rho[0, k]):
                continue
            low, high = (float(end) for end in ranks.interval(rho[1:, k], CONFIDENCE))
            agreement = _agreement(
                mine if where == "all" else mine.filter(pl.col("third") == where), np.sign(rho[0, k])
            )
            found.append(_Relation(group, where, attribute, float(rho[0, k]), rho[1:, k], low, high, n, agreement))
    return found


def _attributes(images: pl.DataFrame) -> list[str]:
    """Count and continuous attributes: numeric columns that the table `images` does not itself declare."""
    return [c for c, t in images.schema.items() if c not in TABLES["images"].columns and t.is_numeric()]


def _agreement(rows: pl.DataFrame, sign: float) -> float | None:
    if rows.is_empty():
        return None
    direction = pl.col("metric").replace_strict({n: m.direction for n, m in MEMBERS.items()}, return_dtype=pl.Int8)
    agrees = (pl.col("q") < SIGNIFICANT) & ((direction * pl.col("rho")).sign() == sign)
    return float(rows.select(agrees.mean()).item())


def _finding(claim: str, statement: str, holds: Verdict, r: _Relation, sign: float) -> Finding:
    """`sign` turns the effect so that what the statement claims is positive."""
    low, high = sorted((sign * r.low, sign * r.high))
    name = "Spearman's rho with " + ("more compression" if sign > 0 else "less compression")
    return Finding(
        claim, statement, holds, r.group, r.where, r.attribute, name, sign * r.rho, low, high, r.n, r.agreement
    )


def _objects(r: _Relation) -> Finding:
    holds = verdict(-r.high, -r.low, SMALLEST_RHO)
    return _finding("objects", "The more objects, the less compressed are vision tokens", holds, r, -1.0)


def _attribute(r: _Relation) -> Finding:
    sign = 1.0 if r.rho > 0 else -1.0
    low, high = sorted((sign * r.low, sign * r.high))
    where = f"{r.group} tokens in {r.where} layers"
    holds = verdict(low, high, SMALLEST_RHO)
    word = "more" if sign > 0 else "less"
    return _finding("attribute", f"Higher {r.attribute} goes with {word} compressed {where}", holds, r, sign)


def _coco_drivers(overall: list[_Relation], n: int) -> Finding:
    """Whether category diversity and size spread lower compression more than every other attribute does."""
    statement = "Category diversity and spread of object sizes lower compression of vision tokens the most"
    claimed = [r for r in overall if r.attribute in COCO_DRIVERS]
    others = [r for r in overall if r.attribute not in COCO_DRIVERS]
    name = "lowering of rho, weaker driver above strongest other attribute"
    if len(claimed) < len(COCO_DRIVERS) or not others or len({r.n for r in overall}) > 1:
        return _undecided("coco_drivers", statement, n, name)
    lead = np.min([-r.resampled for r in claimed], axis=0) - np.max([-r.resampled for r in others], axis=0)
    point = min(-r.rho for r in claimed) - max(-r.rho for r in others)
    low, high = (float(end) for end in ranks.interval(lead, CONFIDENCE))
    statement += f" (strongest other: {min(others, key=lambda r: r.rho).attribute})"
    holds = verdict(low, high, 0.0)
    n = claimed[0].n
    return Finding("coco_drivers", statement, holds, "vision", "all", None, name, point, low, high, n, None)


def _categories(correlations: pl.DataFrame, layer_metrics: pl.DataFrame) -> list[Finding]:
    """Categorical attributes: in how many (metric, layer) pairs of vision tokens compression differs by category."""
    rows = correlations.filter(
        (pl.col("statistic") == "epsilon_squared") & (pl.col("group") == "vision") & pl.col("rho").is_not_null()
        & (pl.col("tap") == main_tap(layer_metrics, "vision")) & pl.col("metric").is_in(list(MEMBERS))
    )  # fmt: skip
    found = []
    for (attribute,), part in rows.group_by(["attribute"], maintain_order=True):
        share = float((part["q"] < SIGNIFICANT).mean() or 0.0)  # type: ignore[arg-type]
        holds: Verdict = "supported" if share > 0.5 else "undecided"
        statement = f"Compression of vision tokens differs by {attribute}"
        low, middle, high = (_median(part[c]) for c in ("ci_low", "rho", "ci_high"))
        name = "epsilon squared, median over metrics and layers"
        n = int(part["n"].to_numpy().max())
        found.append(
            Finding("attribute", statement, holds, "vision", "all", attribute, name, middle, low, high, n, share)
        )
    return found


def _median(column: pl.Series) -> float | None:
    known = column.drop_nulls().to_numpy()
    return float(np.median(known)) if len(known) else None


def _undecided(claim: str, statement: str, n: int, effect_name: str) -> Finding:
    return Finding(claim, statement, "undecided", "vision", "all", None, effect_name, None, None, None, n, None)
