"""What a study found, as statements with a verdict: supported, contradicted, equivalent to nothing or undecided.

The rule is that of `stats.verdict`, with a smallest effect of interest: `correlate.smallest_rho` for rank correlations,
`smallest_change` in a metric's own unit for the depth profile. First the studied paper's claims, then every attribute.

* Families of metrics are judged apart; where they run apart a statement says so, and no value is pooled over them.
* Attributes are judged with the number of objects held fixed (`correlate.hold_fixed`); the statement says what was.
* Shape before sign: where monotonicity is rejected a statement is about the two branches.
* Multiplicity: the attributes of one group of tokens are one family of hypotheses (`stats.verdict.family_verdicts`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from jaxtyping import Float

from orchestrator.compression.depth import THIRDS
from orchestrator.compression.entries import Metric
from orchestrator.correlate.consensus import MEMBERS, compression_scores, main_tap, norm_members, with_thirds
from orchestrator.correlate.relations import (
    CONFIDENCE,
    N_BOOTSTRAP,
    Relation,
    branch_interval,
    category_relations,
    column,
    numeric_attributes,
    relations,
)
from orchestrator.data.clusters import CLUSTER, independent_rows
from orchestrator.stats import ranks
from orchestrator.stats.conditional import MIN_IMAGES, residual_columns
from orchestrator.stats.multiplicity import benjamini_hochberg
from orchestrator.stats.resample import resample_weights
from orchestrator.stats.verdict import Verdict, exceeds, family_verdicts, verdict

SMALLEST_RHO = 0.2
SMALLEST_SHARE_OF_RANGE = 0.02
"""Smallest change of interest of a metric between two bounds, in shares of its range."""
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
    """all of the depth."""
    attribute: str | None
    effect_name: str
    effect: float | None
    ci_low: float | None
    ci_high: float | None
    smallest: float | None
    """Smallest effect of interest, in the effect's unit."""
    n: int
    agreement: float | None
    """Share of the family's (metric, layer) pairs that are significant (q < 0.05) with the effect's sign, if any."""
    family: str | None = None
    """Family of metrics that the statement is about; None for several."""
    given: str = ""
    """Attributes held fixed, comma-separated; empty where nothing was."""


def find(
    images: pl.DataFrame,
    layer_metrics: pl.DataFrame,
    correlations: pl.DataFrame,
    *,
    source: str,
    hold_fixed: Sequence[str] = ("n_objects",),
    smallest_rho: float = SMALLEST_RHO,
    derived: Sequence[str] = (),
    seed: int = 0,
) -> list[Finding]:
    """Findings of one study: the paper's claims, then attributes, supported ones and larger effects first.

    Args:
        images, layer_metrics, correlations: the tables of `store/tables`.
        source: `scenes`, `coco` or `folder`; the claim about COCO is judged on COCO alone.
        hold_fixed: attributes held fixed; those that the images lack are skipped.
        smallest_rho: smallest rank correlation of interest.
        derived: attributes that follow from several factors of a design; they are not judged, for an effect of theirs
            is one of the factors.
        seed: of the bootstrap.
    """
    left_out = [name for name in (CLUSTER, *derived) if name in images.columns]
    images = independent_rows(images).sort("image_id").drop(left_out)
    found: list[Finding] = []
    attributes: list[Finding] = []
    vision = main_tap(layer_metrics, "vision")
    if vision is not None:
        found.append(_depth(layer_metrics, images["image_id"], vision, seed))
    for group in ("vision", "text"):
        tap = main_tap(layer_metrics, group)
        if tap is None:
            continue
        every = relations(images, layer_metrics, correlations, tap, group, hold_fixed)
        judged = _judged(every, smallest_rho)
        if group == "vision":
            found += _objects([f for f in judged if f.attribute == "n_objects"])
        attributes += [f for f in judged if f.attribute != "n_objects" or group != "vision"]
    if source == "coco" and vision is not None:
        found += _coco_drivers(images, layer_metrics, vision, hold_fixed, seed)
    if vision is not None:
        shares = category_relations(images, layer_metrics, correlations, vision, "vision", hold_fixed, seed)
        attributes += [_category(r, smallest_rho**2) for r in shares]
    order = {"supported": 0, "contradicted": 0, "undecided": 1, "equivalent to nothing": 2}
    attributes.sort(key=lambda f: (order[f.holds], -abs(f.effect or 0.0)))
    return [*found, *_disagreements(attributes), *attributes]


# ---------------------------------------------------------------- claim 1: spread, concentrate, spread


def smallest_change(metric: Metric) -> float:
    """Smallest change of interest of a bounded metric in its own unit: `SMALLEST_SHARE_OF_RANGE` of its range."""
    return SMALLEST_SHARE_OF_RANGE * (2.0 if metric.range.startswith("[-1") else 1.0)


def _depth(layer_metrics: pl.DataFrame, image_ids: pl.Series, tap: str, seed: int) -> Finding:
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


# ---------------------------------------------------------------- attributes


def _judged(every: list[Relation], smallest: float) -> list[Finding]:
    """One finding a relation; the group's relations are one family of hypotheses."""
    if not every:
        return []
    bends = benjamini_hochberg(np.array([r.shape_p for r in every])) < 0.05
    effects, lows, highs = (np.array([getattr(r, k) for r in every]) for k in ("rho", "low", "high"))
    signs = np.where(effects < 0, -1.0, 1.0)
    ends = np.sort(np.stack([signs * lows, signs * highs]), axis=0)
    holds = family_verdicts(signs * effects, ends[0], ends[1], smallest, bound=1.0)
    return [
        _turning(r, smallest) if bends[k] else _monotone(r, holds[k], smallest, signs[k]) for k, r in enumerate(every)
    ]


def _monotone(r: Relation, holds: Verdict, smallest: float, sign: float) -> Finding:
    low, high = sorted((sign * r.low, sign * r.high))
    moves = "rises" if sign > 0 else "falls"
    name = ("conditional rank" if r.given else "rank") + " correlation with " + ("more" if sign > 0 else "less")
    statement = f"Compression of {r.group} tokens by {r.family} metrics {moves} with {r.attribute}{_given(r)}"
    return Finding(
        "attribute", statement, holds, r.group, "all", r.attribute, f"{name} compression", sign * r.rho, low, high,
        smallest, r.n, r.agreement, r.family, ", ".join(r.given),
    )  # fmt: skip


def _turning(r: Relation, smallest: float) -> Finding:
    """A relation that is not monotone: the weaker branch must lie beyond the smallest effect."""
    up = r.rho_below > 0
    parts = [(r.rho_below, r.n_below), (-r.rho_above, r.n - r.n_below)]
    oriented = [(rho if up else -rho, n) for rho, n in parts]
    weaker = min(oriented)
    low, high = branch_interval(*weaker)
    holds: Verdict = "supported" if low > smallest else "undecided"
    first, second = ("rises", "falls") if up else ("falls", "rises")
    statement = (
        f"Compression of {r.group} tokens by {r.family} metrics {first} with {r.attribute} up to"
        f" {r.turning_point:g} (rho {r.rho_below:+.2f}) and {second} beyond (rho {r.rho_above:+.2f}){_given(r)}"
    )
    return Finding(
        "attribute", statement, holds, r.group, "all", r.attribute, "rank correlation in the weaker branch", weaker[0],
        low, high, smallest, r.n, None, r.family, ", ".join(r.given),
    )  # fmt: skip


def _given(r: Relation) -> str:
    return f", {' and '.join(r.given)} held fixed" if r.given else ""


def _objects(findings: list[Finding]) -> list[Finding]:
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


def _disagreements(findings: list[Finding]) -> list[Finding]:
    """A statement for every attribute on which families of metrics are sure of opposite directions."""
    found = []
    for group, attribute in dict.fromkeys((f.group, f.attribute) for f in findings if f.holds == "supported"):
        own = [f for f in findings if (f.group, f.attribute, f.holds) == (group, attribute, "supported")]
        moves = {f.family: "more" if "more" in f.effect_name else "less" for f in own if "compression" in f.effect_name}
        if len(set(moves.values())) > 1:
            said = ", ".join(f"{move} compression by {family} metrics" for family, move in moves.items())
            statement = f"Families of metrics disagree on {attribute} in {group} tokens: {said}"
            found.append(
                replace(
                    own[0], statement=statement, effect_name="directions", family=None, agreement=None,
                    effect=None, ci_low=None, ci_high=None, smallest=None,
                )
            )  # fmt: skip
    return found


def _coco_drivers(
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
        said = f"{statement}, by {family} metrics (strongest other: {strongest})"
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


def _category(r: Relation, smallest: float) -> Finding:
    """Whether compression differs between the categories of an attribute, over a family's metrics and all layers."""
    holds: Verdict = "supported" if r.low > smallest else "equivalent to nothing" if r.high < smallest else "undecided"
    name = "epsilon squared, share of variance between categories"
    statement = f"Compression of {r.group} tokens by {r.family} metrics differs by {r.attribute}{_given(r)}"
    return Finding(
        "attribute", statement, holds, r.group, "all", r.attribute, name, r.rho, r.low, r.high, smallest, r.n,
        r.agreement, r.family, ", ".join(r.given),
    )  # fmt: skip
