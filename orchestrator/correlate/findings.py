"""What a study found, as ranked statements with a verdict that may be no.

Each statement has an effect, a percentile bootstrap interval over images and a verdict by one rule: `supported` where
the whole interval lies beyond the smallest effect that matters, `contradicted` where the whole interval lies below it
(the effect is absent, trivial or reversed, and we can tell), `undecided` where the interval is too wide to tell. Too
few images thus end in `undecided`, never in `contradicted`.

First the studied paper's three claims, then every attribute, those whose relation is surest first.

Choices that could make chance look like a finding are paid for: an effect is that of all metrics and layers together; a
claim that is as strong as its weakest part has the interval of the weakest (`ranks.weakest_interval`); the third of the
depth that is told of an attribute is the surest of three, whose intervals hold together. What is left is the number of
attributes: each interval holds for its own, so of twenty attributes without a relation one interval may miss 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from jaxtyping import Float

from orchestrator.compression.depth import THIRDS
from orchestrator.correlate.consensus import MEMBERS, main_tap, nan_mean, norm_members, with_thirds
from orchestrator.correlate.relations import (
    CONFIDENCE,
    MIN_IMAGES,
    N_BOOTSTRAP,
    Relation,
    category_relations,
    numeric_attributes,
    relations,
)
from orchestrator.stats import ranks

Verdict = Literal["supported", "contradicted", "undecided"]

SMALLEST_RHO = 0.1
"""Rank correlations nearer to 0 than this do not matter (Cohen 1988: a small effect)."""
SMALLEST_SHIFT = 0.2
"""Differences between thirds of depth below this many standard deviations do not matter (Cohen 1988: small)."""
SMALLEST_SHARE = SMALLEST_RHO**2
"""Epsilon squared below which categories do not matter: a share of variance, so the square of a correlation."""
COCO_DRIVERS = ("n_categories", "area_spread")
"""Category diversity and spread of object sizes: what the studied paper found to dominate on COCO."""
COCO_KIN = ("n_supercategories",)
"""Category diversity by another count: no rival of the first driver."""


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
    """Share of (metric, layer) pairs whose own relation is significant (q < 0.05) and has the effect's sign, if any."""


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
    every = [
        relation
        for group in ("vision", "text")
        if (at := main_tap(layer_metrics, group)) is not None
        for relation in relations(images, layer_metrics, correlations, at, group, seed)
    ]
    overall = [r for r in every if r.group == "vision" and r.where == "all"]
    found += [_objects(r) for r in overall if r.attribute == "n_objects"]
    if source == "coco" and tap is not None:
        # Resamples of different attributes are paired by image, so all must rest on the same images.
        complete = images.drop_nulls(numeric_attributes(images))
        paired = relations(complete, layer_metrics, correlations, tap, "vision", seed)
        found.append(_coco_drivers([r for r in paired if r.where == "all"], complete.height))
    best: dict[tuple[str, str], Relation] = {}
    for relation in every:
        key = (relation.group, relation.attribute)
        if relation.where != "all" and (key not in best or relation.sureness > best[key].sureness):
            best[key] = relation
    ranked = sorted(best.values(), key=lambda r: r.sureness, reverse=True)
    found += [_attribute(relation) for relation in ranked]
    if tap is not None:
        found += map(_category, category_relations(images, layer_metrics, correlations, tap, "vision", seed))
    return found


# ---------------------------------------------------------------- claim 1: spread, concentrate, spread


def _depth(layer_metrics: pl.DataFrame, image_ids: pl.Series, tap: str, seed: int) -> Finding:
    statement = "Over depth, vision tokens' energy is spread, then concentrated, then spread again"
    scores = _norm_scores(layer_metrics, image_ids, tap)
    if len(scores) < MIN_IMAGES:
        return _undecided("depth", statement, len(scores), "SD, middle above the nearer of early and late")
    gains = scores[:, 1:2] - scores[:, [0, 2]]
    weights = ranks.resample_weights(len(gains), N_BOOTSTRAP, seed)
    low, high = ranks.weakest_interval(weights @ gains / len(gains), CONFIDENCE)
    early, late = gains.mean(axis=0)
    return Finding(
        "depth",
        f"{statement} (middle against early {early:+.2f} SD, against late {late:+.2f} SD)",
        verdict(low, high, SMALLEST_SHIFT),
        "vision",
        "all",
        None,
        "SD, middle above the nearer of early and late",
        float(gains.mean(axis=0).min()),
        low,
        high,
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
        spread = np.nanstd(wide) if np.isfinite(wide).any() else 0.0
        if spread > 1e-9:
            aligned.append(MEMBERS[metric].direction * (wide - np.nanmean(wide)) / spread)
    if not aligned:
        return np.empty((0, 3))
    scores = nan_mean(np.stack(aligned), axis=0)
    return scores[np.isfinite(scores).all(axis=1)]


# ---------------------------------------------------------------- attributes


def _finding(claim: str, statement: str, holds: Verdict, r: Relation, sign: float) -> Finding:
    """`sign` turns the effect so that what the statement claims is positive."""
    low, high = sorted((sign * r.low, sign * r.high))
    name = "Spearman's rho with " + ("more compression" if sign > 0 else "less compression")
    return Finding(
        claim, statement, holds, r.group, r.where, r.attribute, name, sign * r.rho, low, high, r.n, r.agreement
    )


def _objects(r: Relation) -> Finding:
    holds = verdict(-r.high, -r.low, SMALLEST_RHO)
    return _finding("objects", "The more objects, the less compressed are vision tokens", holds, r, -1.0)


def _attribute(r: Relation) -> Finding:
    sign = 1.0 if r.rho > 0 else -1.0
    low, high = sorted((sign * r.low, sign * r.high))
    holds = verdict(low, high, SMALLEST_RHO)
    moves = "rises" if sign > 0 else "falls"
    statement = f"Compression of {r.group} tokens in {r.where} layers {moves} with {r.attribute}"
    return _finding("attribute", statement, holds, r, sign)


def _coco_drivers(overall: list[Relation], n: int) -> Finding:
    """Whether category diversity and size spread lower compression more than every other attribute does."""
    statement = "Category diversity and spread of object sizes lower compression of vision tokens the most"
    claimed = [r for r in overall if r.attribute in COCO_DRIVERS]
    others = [r for r in overall if r.attribute not in COCO_DRIVERS + COCO_KIN]
    name = "lowering of rho, weaker driver above strongest other attribute"
    if len(claimed) < len(COCO_DRIVERS) or not others or len({r.n for r in overall}) > 1:
        return _undecided("coco_drivers", statement, n, name)
    point = min(o.rho - c.rho for c in claimed for o in others)
    leads = np.stack([o.resampled - c.resampled for c in claimed for o in others], axis=1)
    low, high = ranks.weakest_interval(leads, CONFIDENCE)
    statement += f" (strongest other: {min(others, key=lambda r: r.rho).attribute})"
    holds = verdict(low, high, 0.0)
    n = claimed[0].n
    return Finding("coco_drivers", statement, holds, "vision", "all", None, name, point, low, high, n, None)


def _category(r: Relation) -> Finding:
    """Whether compression differs between the categories of an attribute, over all metrics and layers."""
    holds = verdict(r.low, r.high, SMALLEST_SHARE)
    name = "epsilon squared, share of variance between categories"
    statement = f"Compression of {r.group} tokens differs by {r.attribute}"
    return Finding(
        "attribute", statement, holds, r.group, r.where, r.attribute, name, r.rho, r.low, r.high, r.n, r.agreement
    )


def _undecided(claim: str, statement: str, n: int, effect_name: str) -> Finding:
    return Finding(claim, statement, "undecided", "vision", "all", None, effect_name, None, None, None, n, None)
