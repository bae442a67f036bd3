"""Comparison of points: differences with intervals, and agreement of verdicts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import polars as pl

from orchestrator.report.hypotheses import judge_hypotheses
from orchestrator.report.hypothesis_rules import NOT_MEASURED
from orchestrator.report.intervals import bootstrap_thirds, third_values
from orchestrator.report.model import PointResults
from orchestrator.report.style import direction_of, headline_metrics, metric_short, name_of

MOST_POINTS = 4
"""Up to this many points all pairs are compared; of more points each is compared with the first."""


@dataclass(frozen=True)
class Difference:
    """Second point minus first.

    Args:
        quantity: a metric of vision tokens, or the effect of a hypothesis.
        part: third of depth; empty for an effect.
        value, ci_low, ci_high: difference with its 95 % interval; None without one.
        basis: `paired by image` or `independent samples`.
        reading: meaning of the difference if its interval excludes 0.
    """

    first: str
    second: str
    quantity: str
    part: str
    value: float
    ci_low: float | None
    ci_high: float | None
    basis: str
    reading: str


@dataclass(frozen=True)
class Agreement:
    """The verdicts of several points on one statement: point -> verdict, empty without one."""

    statement: str
    verdicts: Mapping[str, str]
    agreement: str
    """`agree`, `disagree`, `one decides` or `nobody decides`."""


def pairs(points: list[PointResults]) -> list[tuple[PointResults, PointResults]]:
    """Pairs of points that are compared."""
    return list(combinations(points, 2)) if len(points) <= MOST_POINTS else [(points[0], point) for point in points[1:]]


def differences(points: list[PointResults]) -> Iterator[Difference]:
    """Differences of compression by third of depth, then of the effects of hypotheses that both points measured.

    Points with the same images are paired by image (bootstrap over images). Other samples and all effects are treated
    as independent: the squared half-widths of their intervals are added. This is conservative for the effects of two
    models on the same images.
    """
    tables = {p.label: third_values(p, headline_metrics(p.metrics)) for p in points}
    judged = {p.label: judge_hypotheses(p) for p in points}
    for first, second in pairs(points):
        one, two = tables[first.label], tables[second.label]
        if one is not None and two is not None:
            yield from _of_compression(first, second, _vision(one), _vision(two))
        yield from _of_effects(first, second, judged[first.label], judged[second.label])


def _vision(table: pl.DataFrame) -> pl.DataFrame:
    return table.filter(pl.col("group") == "vision")


def _of_compression(
    first: PointResults, second: PointResults, one: pl.DataFrame, two: pl.DataFrame
) -> Iterator[Difference]:
    keys = ["image_id", "group", "third"]
    metrics = [c for c in one.columns if c in two.columns and c not in keys]
    paired = first.source == second.source and set(one["image_id"]) == set(two["image_id"])
    if paired:
        changes = one.join(two, on=keys, suffix="_2", maintain_order="left").select(
            *keys, *[(pl.col(f"{m}_2") - pl.col(m)).alias(m) for m in metrics]
        )
        by_third = bootstrap_thirds(changes).select("third", "metric", "mean", "ci_low", "ci_high")
    else:
        half = (pl.col("ci_high") - pl.col("ci_low")) / 2
        both = bootstrap_thirds(one).join(bootstrap_thirds(two), on=["group", "third", "metric"], suffix="_2")
        spread = (half.pow(2) + ((pl.col("ci_high_2") - pl.col("ci_low_2")) / 2).pow(2)).sqrt()
        change = pl.col("mean_2") - pl.col("mean")
        by_third = both.select("third", "metric", mean=change, ci_low=change - spread, ci_high=change + spread)
    order = {metric: place for place, metric in enumerate(metrics)}
    rows = [
        row for row in by_third.iter_rows(named=True) if row["metric"] in order and np.isfinite(row["mean"] or np.nan)
    ]
    for row in sorted(rows, key=lambda row: order[row["metric"]]):
        sign = direction_of(row["metric"]) * (1 if row["mean"] > 0 else -1)
        more = {1: f"{second.label} is more compressed", -1: f"{first.label} is more compressed"}.get(sign, "differ")
        reading = more if _sure(row["ci_low"], row["ci_high"]) else "not told apart"
        basis = "paired by image" if paired else "independent samples"
        ends = (_finite(row["ci_low"]), _finite(row["ci_high"]))
        yield Difference(
            first.label, second.label, metric_short(row["metric"]), row["third"], row["mean"], *ends, basis, reading
        )


def _of_effects(
    first: PointResults, second: PointResults, one: pl.DataFrame, two: pl.DataFrame
) -> Iterator[Difference]:
    columns = ["hypothesis", "effect_name", "effect", "ci_low", "ci_high"]
    both = one.select(columns).join(two.select(columns), on=["hypothesis", "effect_name"], suffix="_2")
    for row in both.drop_nulls(["effect", "effect_2"]).iter_rows(named=True):
        change, ends = (
            row["effect_2"] - row["effect"],
            (row["ci_low"], row["ci_high"], row["ci_low_2"], row["ci_high_2"]),
        )
        low = high = None
        if all(end is not None for end in ends):
            spread = float(np.hypot(ends[1] - ends[0], ends[3] - ends[2])) / 2
            low, high = change - spread, change + spread
        larger = second if change > 0 else first
        reading = f"larger in {larger.label}" if _sure(low, high) else "not told apart"
        quantity = f"{name_of(row['hypothesis'])}: {row['effect_name']}"
        yield Difference(first.label, second.label, quantity, "", change, low, high, "independent samples", reading)


def _sure(low: float | None, high: float | None) -> bool:
    """Whether an interval excludes 0."""
    return low is not None and high is not None and (low > 0 or high < 0)


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None


def agreements(points: list[PointResults]) -> Iterator[Agreement]:
    """Hypotheses first (table `hypotheses`), then claims by attribute and family of metrics, then primary outcomes."""
    verdicts: dict[tuple[str, ...], dict[str, str]] = {}
    for point in points:
        for key, verdict in _verdicts(point):
            verdicts.setdefault(key, {})[point.label] = verdict
    for key, by_point in sorted(verdicts.items(), key=lambda item: item[0][0] != "hypothesis"):
        if len(by_point) > 1:
            decided = [v for v in by_point.values() if v not in ("undecided", "")]
            agree = "agree" if len(set(decided)) == 1 else "disagree"
            agree = agree if len(decided) > 1 else "one decides" if decided else "nobody decides"
            statement = key[1] if key[0] == "hypothesis" else ", ".join(name_of(k) for k in key if k)
            yield Agreement(statement, {p.label: by_point.get(p.label, "") for p in points}, agree)


def _verdicts(point: PointResults) -> Iterator[tuple[tuple[str, ...], str]]:
    """Statement -> verdict."""
    for row in judge_hypotheses(point).iter_rows(named=True):
        if row["verdict"] != NOT_MEASURED:
            yield ("hypothesis", str(row["claim"])), str(row["verdict"])
    if point.findings is not None and "holds" in point.findings.columns:
        names = [c for c in ("claim", "group", "attribute", "where", "family") if c in point.findings.columns]
        for row in point.findings.iter_rows(named=True):
            yield tuple(str(row[c] or "") for c in names), str(row["holds"])
    for row in point.sweep.get("contrasts", []):
        if row["primary"] and row["verdict"]:
            yield ("complexity ratio", str(row["outcome"])), str(row["verdict"])
