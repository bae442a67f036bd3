"""The trial table as the report shows it: effect of the complexity ratio with intervals over seeds, Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from orchestrator.report.style import main_metrics

_ENDS = ("_low", "_high")
"""Columns that hold the ends of another column's interval."""


def finished(trials: pl.DataFrame) -> pl.DataFrame:
    """Trials that ended well, by ratio and seed."""
    return trials.filter(pl.col("status") == "done").sort("complexity_ratio", "seed")


def outcomes(trials: pl.DataFrame) -> list[str]:
    """Accuracy columns, the tiers' totals first."""
    found = [c for c in trials.columns if c.startswith("accuracy/") and not c.endswith(_ENDS)]
    return sorted(found, key=lambda c: (c.count("/"), c))


def compression_columns(trials: pl.DataFrame) -> list[str]:
    """Columns with the change of a compression metric against the base model, else with its value; main metrics."""
    for kind in ("delta", "compression"):
        found = [c for c in trials.columns if c.startswith(f"{kind}/") and not c.endswith(_ENDS) and c.count("/") == 3]
        main = set(main_metrics({c.split("/")[2] for c in found}))
        if found:
            return [c for c in found if c.split("/")[2] in main]
    return []


def mean_drift(trials: pl.DataFrame, group: str) -> float | None:
    """Mean relative drift of a group's states over trials and thirds of depth; None where it was not measured."""
    columns = [c for c in trials.columns if c.startswith(f"drift/{group}") and not c.endswith(_ENDS)]
    values = trials.select(columns).to_numpy() if columns else np.array([])
    return float(np.nanmean(values)) if values.size else None


def effect_of_ratio(trials: pl.DataFrame, column: str, sweep: Mapping[str, Any] | None = None) -> pl.DataFrame:
    """Mean of `column` at each ratio with its 95 % interval.

    Of a tier's accuracy, where `sweep` (`sweep_summary.summarise_sweep`) has it: over seeds and questions. Otherwise
    Student's over seeds, each the mean of its trials. Two seeds have none: it would be nine times as wide as they lie
    apart. A single trial keeps its own (over questions or images), null where it has none.

    Returns:
        complexity_ratio, mean, ci_low, ci_high, n_seeds.
    """
    tiers = sweep.get("tiers", {}) if sweep else {}
    if (told := tiers.get(column.removeprefix("accuracy/"))) is not None:
        return pl.DataFrame(told["effect"]).select("complexity_ratio", "mean", "ci_low", "ci_high", "n_seeds")
    rows = []
    for (ratio,), part in finished(trials).drop_nulls(column).group_by("complexity_ratio", maintain_order=True):
        values = part.group_by("seed").agg(pl.col(column).cast(pl.Float64).mean())[column].to_numpy()
        low, high = None, None
        if len(values) > 2:
            reach = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
            low, high = float(values.mean() - reach), float(values.mean() + reach)
        elif part.height == 1:
            low, high = (part[c][0] if (c := column + end) in part.columns else None for end in _ENDS)
        rows.append((ratio, float(values.mean()), low, high, len(values)))
    names = {"complexity_ratio": pl.Float64, "mean": pl.Float64, "ci_low": pl.Float64, "ci_high": pl.Float64}
    return pl.DataFrame(rows, schema={**names, "n_seeds": pl.Int32}, orient="row").sort("complexity_ratio")


def smallest_sufficient_ratio(trials: pl.DataFrame, column: str, share: float = 0.9) -> float | None:
    """Smallest ratio whose mean reaches `share` of the gain from the smallest ratio to the best one.

    None when no gain is known: the best mean is that of the smallest ratio, or its interval reaches that mean or is not
    there.
    """
    effect = effect_of_ratio(trials, column)
    if effect.height < 2:
        return None
    start = effect["mean"][0]
    best = effect.sort("mean", descending=True).row(0, named=True)
    if best["mean"] <= start or best["ci_low"] is None or best["ci_low"] <= start:
        return None
    enough = effect.filter(pl.col("mean") >= start + share * (best["mean"] - start))
    return float(enough["complexity_ratio"][0])


def pareto_front(x: Sequence[float], y: Sequence[float]) -> list[int]:
    """Indices of the points no other one beats in both `x` and `y` (larger is better), by rising `x`."""
    order = sorted(range(len(x)), key=lambda i: (-x[i], -y[i]))
    front: list[int] = []
    best = -np.inf
    for i in order:
        if y[i] > best:
            front.append(i)
            best = y[i]
    return front[::-1]
