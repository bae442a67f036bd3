"""The studied paper's claims about compression as findings: depth profile, number of objects, drivers on COCO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl
from jaxtyping import Float

from orchestrator.compression.declaration import Metric
from orchestrator.compression.depth import THIRDS
from orchestrator.correlate.consensus import MEMBERS, compression_scores, norm_members, with_thirds
from orchestrator.correlate.finding import Finding
from orchestrator.correlate.relations import CONFIDENCE, N_BOOTSTRAP, column, numeric_attributes
from orchestrator.stats import ranks
from orchestrator.stats.conditional import MIN_IMAGES, residual_columns
from orchestrator.stats.resample import resample_weights
from orchestrator.stats.verdict import Verdict, exceeds, verdict

SMALLEST_SHARE_OF_RANGE = 0.02
"""Smallest change of interest of a metric between two bounds, in shares of its range."""
COCO_DRIVERS = ("n_categories", "area_spread")
"""Category diversity and spread of object sizes: what the studied paper found to dominate on COCO."""
COCO_KIN = ("n_supercategories",)
"""Category diversity by another count: no rival of the first driver."""


def smallest_change(metric: Metric) -> float:
    """Smallest change of interest of a bounded metric in its own unit: `SMALLEST_SHARE_OF_RANGE` of its range."""
    return SMALLEST_SHARE_OF_RANGE * (2.0 if metric.range.startswith("[-1") else 1.0)


def depth_profile(layer_metrics: pl.DataFrame, image_ids: pl.Series, tap: str, seed: int) -> Finding:
    """Middle against the nearer of early and late, of every norm metric in its own unit; all must agree."""
    statement = "Over depth, vision tokens' energy is spread, then concentrated, then spread again"
    name = "middle above the nearer of early and late"
    rows = layer_metrics.filter((pl.col("tap") == tap) & (pl.col("group") == "vision"))
    rows = with_thirds(rows.filter(pl.col("image_id").is_in(image_ids.to_list())))
    judged: list[tuple[str, Verdict, float, float, float, int, np.ndarray]] = []
    for metric in norm_members(rows.columns):
        values = _by_third(rows, metric)
        if len(values) < MIN_IMAGES:
            continue
        gains = MEMBERS[metric].direction * (values[:, 1:2] - values[:, [0, 2]])
        weights = resample_weights(len(gains), N_BOOTSTRAP, seed)
        low, high = ranks.weakest_interval(weights @ gains / len(gains), CONFIDENCE)
        effect = float(gains.mean(axis=0).min())
        holds = verdict(effect, low, high, smallest_change(MEMBERS[metric]))
        judged.append((metric, holds, effect, low, high, len(gains), gains.mean(axis=0)))
    if not judged:
        return Finding("depth", statement, "undecided", "vision", "all", None, name, *(None,) * 4, 0, None, "norm")
    metric, holds, effect, low, high, n, (early, late) = judged[0]
    verdicts = {j[1] for j in judged}
    if len(verdicts) > 1:
        holds = "undecided"
        statement += "; norm metrics disagree: " + ", ".join(f"{j[0]} {j[1]}" for j in judged)
    statement += f" ({metric}: middle against early {early:+.3f}, against late {late:+.3f})"
    agreement = sum(j[1] == judged[0][1] for j in judged) / len(judged)
    smallest = smallest_change(MEMBERS[metric])
    unit = f"{metric}, {name}"
    return Finding(
        "depth", statement, holds, "vision", "all", None, unit, effect, low, high, smallest, n, agreement, "norm"
    )


def _by_third(rows: pl.DataFrame, metric: str) -> Float[np.ndarray, "n 3"]:
    """Mean of a metric over the layers of each third, for each image that has all three."""
    means = rows.group_by("image_id", "third").agg(pl.col(metric).cast(pl.Float64).fill_nan(None).mean())
    if set(means["third"]) != set(THIRDS):
        return np.empty((0, 3))
    wide = means.pivot("third", index="image_id", values=metric).sort("image_id").select(THIRDS)
    return wide.drop_nulls().to_numpy()


def objects_claim(findings: list[Finding]) -> list[Finding]:
    """The paper's claim, of each family of metrics apart."""
    claimed = []
    for f in findings:
        statement = f"The more objects, the less compressed are vision tokens by {f.family} metrics"
        if f.effect_name.endswith("branch"):
            # a relation that turns contradicts one that does not
            turned = replace(f, claim="objects", statement=f"{statement}. They turn: {f.statement}")
            claimed.append(replace(turned, holds="contradicted" if f.holds == "supported" else "undecided"))
        elif f.effect_name.endswith("less compression"):
            claimed.append(replace(f, claim="objects", statement=statement))
        else:
            opposite: Verdict = "contradicted" if f.holds == "supported" else f.holds
            ends = [None if e is None else -e for e in (f.effect, f.ci_high, f.ci_low)]
            name = f.effect_name.replace("more compression", "less compression")
            claimed.append(
                replace(
                    f, claim="objects", statement=statement, holds=opposite, effect_name=name,
                    effect=ends[0], ci_low=ends[1], ci_high=ends[2],
                )
            )  # fmt: skip
    if len({f.holds for f in claimed} & {"supported", "contradicted"}) > 1:
        parts = ", ".join(f"{f.family} {f.holds}" for f in claimed)
        claimed = [replace(f, statement=f"{f.statement} (families of metrics disagree: {parts})") for f in claimed]
    return claimed


def coco_drivers(
    images: pl.DataFrame, layer_metrics: pl.DataFrame, tap: str, hold_fixed: Sequence[str], seed: int
) -> list[Finding]:
    """Whether category diversity and size spread lower compression more than every other attribute, by family.

    Compared are rank correlations of residuals: the covariates' curves are taken off scores and attributes.
    """
    statement = "Category diversity and spread of object sizes lower compression of vision tokens the most"
    name = "lowering of rho, weaker driver above strongest other attribute"
    complete = images.drop_nulls(numeric_attributes(images))
    given = [k for k in hold_fixed if k in complete.columns]
    others = [a for a in numeric_attributes(complete) if a not in (*COCO_DRIVERS, *COCO_KIN, *given)]
    scores = compression_scores(layer_metrics, complete["image_id"], tap, "vision")
    if not (set(COCO_DRIVERS) <= set(complete.columns)) or not others or complete.height < MIN_IMAGES or not scores:
        n = complete.height
        return [Finding("coco_drivers", statement, "undecided", "vision", "all", None, name, *(None,) * 4, n, None)]
    found = []
    values = np.stack([column(complete, a) for a in (*COCO_DRIVERS, *others)], axis=1)
    for family, thirds in scores.items():
        known = np.isfinite(thirds["all"]) & np.isfinite(values).all(axis=1)
        if known.sum() < MIN_IMAGES:
            continue
        columns = np.concatenate([thirds["all"][known, None], values[known]], axis=1)
        if given:
            covariates = np.stack([column(complete, k)[known] for k in given], axis=1)
            columns = residual_columns(columns, covariates)[0]
        weights = np.concatenate([np.ones((1, len(columns)), int), resample_weights(len(columns), N_BOOTSTRAP, seed)])
        ranked = ranks.rank_scores(ranks.Ordered.of(columns), weights, np.float32)
        rho = ranks.spearman(ranked[:, :1], ranked[:, 1:])[:, 0].astype(np.float64)
        n_claimed = len(COCO_DRIVERS)
        leads = (rho[:, None, n_claimed:] - rho[:, :n_claimed, None]).reshape(len(rho), -1)
        low, high = ranks.weakest_interval(leads[1:], CONFIDENCE)
        strongest = others[int(np.nanargmin(rho[0, n_claimed:]))]
        said = f"{statement}, by {family} metrics (strongest of {len(others)} others: {strongest})"
        said += f", {' and '.join(given)} held fixed" if given else ""
        effect = float(leads[0].min())
        holds = exceeds(low, high, 0.0)
        found.append(
            Finding(
                "coco_drivers", said, holds, "vision", "all", None, name, effect, low, high, 0.0, len(columns), None,
                family, ", ".join(given),
            )
        )  # fmt: skip
    return found
