"""Points against each other: differences of compression with intervals, and where their statements agree."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import polars as pl

from orchestrator.report.intervals import depth_table
from orchestrator.report.model import PointResults
from orchestrator.report.statement import interval, number
from orchestrator.report.style import direction_of, headline_metrics, metric_short, name_of

MOST_POINTS = 4
"""Points that are contrasted pair by pair; of more each is held against the first."""


def pairs(points: list[PointResults]) -> list[tuple[PointResults, PointResults]]:
    """Which points are held against which."""
    return list(combinations(points, 2)) if len(points) <= MOST_POINTS else [(points[0], other) for other in points[1:]]


def differences(points: list[PointResults]) -> Iterator[list[str]]:
    """Rows of text: pair, metric, third, second minus first with its 95 % interval, which of them is more compressed.

    The points' images are independent samples: standard errors, read off the bootstrap intervals, add as squares. Two
    models on the same images are correlated, which makes these intervals too wide rather than too narrow.
    """
    tables = {p.label: depth_table(p, headline_metrics(p.metrics)) for p in points}
    for first, second in pairs(points):
        one, two = tables[first.label], tables[second.label]
        if one is None or two is None:
            continue
        both = one.filter(pl.col("group") == "vision").join(two, on=["group", "third", "metric"], suffix="_2")
        for row in both.drop_nulls(["mean", "mean_2"]).iter_rows(named=True):
            change = row["mean_2"] - row["mean"]
            spread = np.hypot(row["ci_high"] - row["ci_low"], row["ci_high_2"] - row["ci_low_2"]) / 2
            low, high = change - spread, change + spread
            sign = direction_of(row["metric"]) * (1 if change > 0 else -1)
            seen = low > 0 or high < 0
            more = {1: second.label, -1: first.label}.get(sign, "") if seen else "not told apart"
            shown = f"{number(change, 3)} {interval(low, high, lambda v: number(v, 3))}"
            yield [f"{second.label} − {first.label}", metric_short(row["metric"]), row["third"], shown, more]


def agreements(points: list[PointResults]) -> Iterator[list[str]]:
    """Rows of text: hypothesis, the verdict of each point, and whether those that decided agree."""
    verdicts: dict[tuple[str, ...], dict[str, str]] = {}
    for point in points:
        for key, verdict in _verdicts(point):
            verdicts.setdefault(key, {})[point.label] = verdict
    for key, found in verdicts.items():
        if len(found) > 1:
            decided = [v for v in found.values() if v not in ("undecided", "")]
            agree = "agree" if len(set(decided)) == 1 else "disagree"
            agree = agree if len(decided) > 1 else "one decides" if decided else "nobody decides"
            yield [", ".join(name_of(k) for k in key if k), *(found.get(p.label, "") for p in points), agree]


def _verdicts(point: PointResults) -> Iterator[tuple[tuple[str, ...], str]]:
    """Hypothesis -> verdict: claims by group, attribute and metric family, and the primary outcomes of a sweep."""
    if point.findings is not None and "holds" in point.findings.columns:
        names = [c for c in ("claim", "group", "attribute", "where", "family") if c in point.findings.columns]
        for row in point.findings.iter_rows(named=True):
            yield tuple(str(row[c] or "") for c in names), str(row["holds"])
    for row in point.sweep.get("contrasts", []):
        if row["primary"] and row["verdict"]:
            yield ("complexity ratio", str(row["outcome"])), str(row["verdict"])
