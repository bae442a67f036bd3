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
from dataclasses import replace

import numpy as np
import polars as pl

from orchestrator.correlate.consensus import main_tap
from orchestrator.correlate.finding import Finding
from orchestrator.correlate.paper_claims import coco_drivers, depth_profile, objects_claim
from orchestrator.correlate.relations import Relation, branch_interval, category_relations, relations
from orchestrator.data.clusters import CLUSTER, independent_rows
from orchestrator.stats.multiplicity import benjamini_hochberg
from orchestrator.stats.verdict import Verdict, family_verdicts

SMALLEST_RHO = 0.2


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
    findings: list[Finding] = []
    attributes: list[Finding] = []
    vision = main_tap(layer_metrics, "vision")
    if vision is not None:
        findings.append(depth_profile(layer_metrics, images["image_id"], vision, seed))
    for group in ("vision", "text"):
        tap = main_tap(layer_metrics, group)
        if tap is None:
            continue
        every = relations(images, layer_metrics, correlations, tap, group, hold_fixed)
        judged = _judged(every, smallest_rho)
        if group == "vision":
            findings += objects_claim([f for f in judged if f.attribute == "n_objects"])
        attributes += [f for f in judged if f.attribute != "n_objects" or group != "vision"]
    if source == "coco" and vision is not None:
        findings += coco_drivers(images, layer_metrics, vision, hold_fixed, seed)
    if vision is not None:
        shares = category_relations(images, layer_metrics, correlations, vision, "vision", hold_fixed, seed)
        attributes += [_category(r, smallest_rho**2) for r in shares]
    order = {"supported": 0, "contradicted": 0, "undecided": 1, "equivalent to nothing": 2}
    attributes.sort(key=lambda f: (order[f.holds], -abs(f.effect or 0.0)))
    return [*findings, *_disagreements(attributes), *attributes]


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


def _disagreements(findings: list[Finding]) -> list[Finding]:
    """A statement for every attribute on which families of metrics are sure of opposite directions."""
    contradictory = []
    for group, attribute in dict.fromkeys((f.group, f.attribute) for f in findings if f.holds == "supported"):
        own = [f for f in findings if (f.group, f.attribute, f.holds) == (group, attribute, "supported")]
        moves = {f.family: "more" if "more" in f.effect_name else "less" for f in own if "compression" in f.effect_name}
        if len(set(moves.values())) > 1:
            said = ", ".join(f"{move} compression by {family} metrics" for family, move in moves.items())
            statement = f"Families of metrics disagree on {attribute} in {group} tokens: {said}"
            contradictory.append(
                replace(
                    own[0], statement=statement, effect_name="directions", family=None, agreement=None,
                    effect=None, ci_low=None, ci_high=None, smallest=None,
                )
            )  # fmt: skip
    return contradictory


def _category(r: Relation, smallest: float) -> Finding:
    """Whether compression differs between the categories of an attribute, over a family's metrics and all layers."""
    holds: Verdict = "supported" if r.low > smallest else "equivalent to nothing" if r.high < smallest else "undecided"
    name = "epsilon squared, share of variance between categories"
    statement = f"Compression of {r.group} tokens by {r.family} metrics differs by {r.attribute}{_given(r)}"
    return Finding(
        "attribute", statement, holds, r.group, "all", r.attribute, name, r.rho, r.low, r.high, smallest, r.n,
        r.agreement, r.family, ", ".join(r.given),
    )  # fmt: skip
