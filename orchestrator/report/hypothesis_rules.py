"""The rules of `report.hypotheses`: each judges one point of a study and states its evidence.

Layer, positions and comparison of a rule are predefined, so that no hypothesis is judged by the best of many rows. If a
hypothesis has several rows (families of metrics), all must support it; families with significant effects of opposite
sign leave it undecided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from orchestrator.correlate.findings import SMALLEST_RHO
from orchestrator.report.causal_views import over_seeds
from orchestrator.report.model import PointResults
from orchestrator.report.probe_views import best_linear, vision_tap
from orchestrator.stats.intervals import student_interval
from orchestrator.stats.verdict import exceeds, verdict

HYPOTHESIS_FILE = "tables/hypotheses.csv"
"""Table `hypotheses` within the report's folder."""
NOT_MEASURED = "not measured"
SMALLEST_LOSS = 0.2
"""Smallest effect of interest on accuracy under deletion: 20 points."""
NEARLY_ALL = 0.95
"""Smallest share of deleted tokens that is treated as no image."""
SMALLEST_DRIFT = 0.05
"""Smallest effect of interest on relative drift, as in `finetune.sweep_summary`."""
SMALLEST_R2 = SMALLEST_RHO**2
SINGLE_SHARE = 0.5
"""Share of the score of the mean vision token that a single token must reach."""


@dataclass(frozen=True)
class Result:
    """Result of a rule; `effect` is in the unit given in `effect_name`."""

    verdict: str = NOT_MEASURED
    effect_name: str = ""
    effect: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    smallest: float | None = None
    n: int | None = None
    note: str = ""


def _absent(reason: str) -> Result:
    return Result(note=reason)


# ---------------------------------------------------------------- compression: findings of the correlate stage


def of_findings(claim: str, missing: str) -> Callable[[PointResults], Result]:
    def judge(point: PointResults) -> Result:
        if point.findings is None:
            return _absent("needs the stage correlate")
        rows = point.findings.filter(pl.col("claim") == claim).to_dicts()
        return _joined(rows) if rows else _absent(missing)

    return judge


def _joined(rows: list[dict[str, Any]]) -> Result:
    """The result of several families of metrics: that of the least favourable one."""
    verdicts = {str(row["holds"]) for row in rows}
    order = ("contradicted", "equivalent to nothing", "undecided", "supported")
    worst = min(rows, key=lambda row: order.index(row["holds"]))
    joint = worst["holds"]
    note = "; ".join(f"{row['family'] or 'all'}: {row['holds']}" for row in rows)
    if {"supported", "contradicted"} <= verdicts:
        joint, note = "undecided", f"families of metrics disagree: {note}"
    if worst["given"]:
        note += f"; held fixed: {worst['given']}"
    return Result(
        joint, worst["effect_name"], worst["effect"], worst["ci_low"], worst["ci_high"], worst["smallest"], worst["n"],
        note,
    )  # fmt: skip


# ---------------------------------------------------------------- probes


def text_knows_early(point: PointResults) -> Result:
    """Mean over attributes of the text probe's score at layer 1 beyond the covariates.

    The interval's ends are the means of the attributes' ends, which is valid under any dependence of the attributes.
    """
    name = "mean skill of the mean text token at layer 1, rank correlation beyond covariates"
    if point.probes is None or "skill_beyond" not in point.probes.columns:
        return _absent("needs the stage probe")
    rows = (
        best_linear(point.probes)
        .filter((pl.col("tap") == "decoder") & (pl.col("position") == "text_mean"))
        .drop_nulls(["skill_beyond", "beyond_low", "beyond_high", "beyond"])
        .filter(~pl.col("attribute").is_in(sorted(_derived(point))))
    )
    if rows.is_empty():
        return _absent("needs numeric attributes beside those held fixed, text positions and 20 held-out images")
    first = _mean_skill(rows.filter(pl.col("layer") == 1))
    middle = _mean_skill(rows.filter(pl.col("layer") == (point.n_layers + 1) // 2))
    if first is None:
        return _absent("needs layer 1 of the decoder")
    effect, low, high, n, names = first
    judgement: str = verdict(effect, low, high, SMALLEST_RHO)
    note = f"{', '.join(names)}; beyond {rows['beyond'][0]}"
    if middle is not None:
        note += f"; at half of the depth {middle[0]:.2f} [{middle[1]:.2f}, {middle[2]:.2f}]"
        if high < SMALLEST_RHO < middle[1]:
            judgement = "contradicted"
    return Result(judgement, name, effect, low, high, SMALLEST_RHO, n, note)


def _derived(point: PointResults) -> set[str]:
    """Attributes that follow from several factors of a design."""
    pairs = point.further.get("attribute_correlations")
    rows = [] if pairs is None else pairs.to_dicts()
    return {row[k] for row in rows for k in ("first", "second") if row[f"{k}_role"] == "derived"}


def _mean_skill(rows: pl.DataFrame) -> tuple[float, float, float, int, list[str]] | None:
    if rows.is_empty():
        return None
    means = (float(rows[c].mean()) for c in ("skill_beyond", "beyond_low", "beyond_high"))  # type: ignore[arg-type]
    return (*means, int(rows["n_test"].min()), rows["attribute"].to_list())  # type: ignore[return-value, arg-type]


def any_token_counts(point: PointResults) -> Result:
    """The lowest decile of single vision tokens' scores for the count against half of the score of their mean."""
    name = f"R² of the count, weakest tenth of single vision tokens less {SINGLE_SHARE:g} of their mean's"
    if point.probes is None or point.probes.is_empty():
        return _absent("needs the stage probe")
    tap = vision_tap(point.probes)
    layers = point.probes.filter(pl.col("tap") == tap)["layer"]
    layer = (int(layers.max()) + 1) // 2 if len(layers) else 0  # type: ignore[arg-type]
    rows = best_linear(point.probes).filter(
        (pl.col("tap") == tap) & (pl.col("attribute") == "n_objects") & pl.col("score").is_not_null()
        & (pl.col("layer") == layer)
    ).drop_nulls(["ci_low", "ci_high"])  # fmt: skip
    single = rows.filter(pl.col("position").str.contains(r"^vision_\d+$")).sort("score")
    mean = rows.filter(pl.col("position") == "vision_mean")
    if single.height < 2 or mean.is_empty():
        return _absent("needs the number of objects, the mean vision token and two single ones at half of the depth")
    best_mean = mean.row(0, named=True)
    if best_mean["ci_high"] < SMALLEST_R2:
        note = "the mean vision token does not know the count"
        return Result(
            "equivalent to nothing", name, best_mean["score"], best_mean["ci_low"], best_mean["ci_high"], SMALLEST_R2,
            best_mean["n_test"], note,
        )  # fmt: skip
    weak = single.row(single.height // 10, named=True)
    bar = SINGLE_SHARE * best_mean["score"]
    ends = weak["ci_low"] - bar, weak["ci_high"] - bar
    judgement = exceeds(ends[0], ends[1], 0.0) if best_mean["ci_low"] > SMALLEST_R2 else "undecided"
    note = f"{single.height} places at {tap} layer {layer}: {weak['position']} {weak['score']:.2f}"
    note += f", mean {best_mean['score']:.2f}"
    return Result(judgement, name, weak["score"] - bar, ends[0], ends[1], 0.0, single.height, note)


# ---------------------------------------------------------------- deletion


def counting_dies_colour_survives(point: PointResults) -> Result:
    """Loss of accuracy of counting minus that of colour, with half of the visual tokens deleted at random.

    Judged on simple scenes (low tier): deletion cannot lower the accuracy of questions that the model cannot answer
    with all tokens. The loss on crowded scenes is reported, not judged.
    """
    name = "points of accuracy lost at half of the tokens in simple scenes, counting less colour"
    if point.deletion is None:
        return _absent("needs the stage ablate with deletion")
    rows = over_seeds(point.deletion.drop_nulls(["accuracy", "ci_low", "ci_high"])).filter(
        (pl.col("checkpoint") == "base") & (pl.col("layer") == 0) & (pl.col("method") == "random")
    )
    tier = "all" if set(rows["tier"]) == {"all"} else "low"
    lost = {}
    for family in ("count", "colour"):
        curve = _curve(rows, family, tier)
        last = max(curve, default=0.0)
        if not {0.0, 0.5} <= set(curve) or last < NEARLY_ALL:
            return _absent(
                f"needs {family} questions about simple scenes with none, half and nearly all tokens deleted"
            )
        full, half, none = (curve[share] for share in (0.0, 0.5, last))
        gain = full["accuracy"] - none["accuracy"]
        if full["ci_low"] <= none["ci_high"]:
            note = f"{family} is no better with all tokens than with none ({gain:+.2f}): nothing to lose"
            return Result("undecided", name, smallest=SMALLEST_LOSS, n=full["n"], note=note)
        lost[family] = (full["accuracy"] - half["accuracy"], _half_width(full), _half_width(half), full["n"])
    effect = lost["count"][0] - lost["colour"][0]
    half_width = math.sqrt(sum(w**2 for loss in lost.values() for w in loss[1:3]))
    low, high = effect - half_width, effect + half_width
    note = ", ".join(f"{family} loses {100 * loss[0]:.0f} points" for family, loss in lost.items())
    crowded = _curve(rows, "count", "high")
    if {0.0, 0.5} <= set(crowded):
        ends = [crowded[share]["accuracy"] for share in (0.0, 0.5)]
        note += f"; not judged: count in crowded scenes from {ends[0]:.2f} to {ends[1]:.2f}"
    n = min(loss[3] for loss in lost.values())
    return Result(verdict(effect, low, high, SMALLEST_LOSS), name, effect, low, high, SMALLEST_LOSS, n, note)


def _curve(rows: pl.DataFrame, family: str, tier: str) -> dict[float, dict[str, Any]]:
    """Share deleted -> row of a family in a tier."""
    chosen = rows.filter((pl.col("family") == family) & (pl.col("tier") == tier))
    return {row["deleted_share"]: row for row in chosen.to_dicts()}


def _half_width(row: Mapping[str, Any]) -> float:
    return max(row["ci_high"] - row["accuracy"], row["accuracy"] - row["ci_low"])


# ---------------------------------------------------------------- fine-tuning


def text_changes_more(point: PointResults) -> Result:
    """Relative drift of text states minus that of vision states, mean over layers and trials of each seed."""
    name = "relative drift from the base model, text less vision"
    if point.trials is None or point.trials.is_empty():
        return _absent("needs the stage finetune")
    completed = point.trials.filter(pl.col("status") == "done")
    columns = {
        group: [c for c in completed.columns if c.startswith(f"drift/{group}") and not c.endswith(("_low", "_high"))]
        for group in ("text", "vision")
    }
    if not all(columns.values()) or completed.is_empty():
        return _absent("needs drift of both groups of tokens")
    means = completed.select("seed", *(pl.mean_horizontal(names).alias(group) for group, names in columns.items()))
    if means.drop_nulls().is_empty():
        return _absent("needs drift of both groups of tokens")
    by_seed = means.drop_nulls().group_by("seed").agg(pl.col("text", "vision").mean()).sort("seed")
    text, vision = (by_seed[group].to_numpy() for group in ("text", "vision"))
    gap = student_interval(text - vision)
    note = f"text {text.mean():.3f}, vision {vision.mean():.3f}, {completed.height} trials"
    return Result(
        verdict(gap.value, gap.low, gap.high, SMALLEST_DRIFT), name, gap.value, gap.low, gap.high,
        SMALLEST_DRIFT, gap.n, note,
    )  # fmt: skip


def a_ratio_suffices(point: PointResults) -> Result:
    """The gain in high-tier accuracy from the smallest to the largest ratio, and the smallest sufficient ratio."""
    name = "accuracy on high-tier questions, largest less smallest ratio"
    rows = [r for r in point.sweep.get("contrasts", []) if r["outcome"] == "accuracy/high"]
    if not rows:
        return _absent("needs the stage finetune at several ratios, with high-tier questions")
    row = rows[0]
    judgement: str = verdict(row["effect"], row["ci_low"], row["ci_high"], row["smallest"])
    enough = point.sweep.get("tiers", {}).get("high", {}).get("sufficient_ratio")
    if judgement == "supported" and enough is None:
        judgement = "undecided"
    note = f"ratio {row['low_ratio']:g} against {row['high_ratio']:g}; smallest sufficient ratio: "
    note += "none beyond chance" if enough is None else f"{enough:g}"
    return Result(
        judgement, name, row["effect"], row["ci_low"], row["ci_high"], row["smallest"], row["n_seeds"], note
    )  # fmt: skip
