"""The trial table prepared for the report: effect of the complexity ratio with intervals over seeds, Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from orchestrator.finetune.sweep_summary import effect_of_ratio as sweep_effect
from orchestrator.finetune.sweep_summary import outcome_by_seed
from orchestrator.report.style import main_metrics
from orchestrator.stats.pareto import pareto_front as stats_front
from orchestrator.stats.sufficient import sufficient_ratio

_ENDS = ("_low", "_high")
"""Suffixes of columns with the ends of another column's interval."""


def finished(trials: pl.DataFrame) -> pl.DataFrame:
    """Completed trials, sorted by ratio and seed, without all-null outcomes."""
    completed = trials.filter(pl.col("status") == "done").sort("complexity_ratio", "seed")
    absent = [
        c for c in completed.columns if "/" in c and completed.height and completed[c].null_count() == completed.height
    ]
    return completed.drop(absent)


def outcomes(trials: pl.DataFrame) -> list[str]:
    """Accuracy columns, the tiers' totals first."""
    columns = [c for c in trials.columns if c.startswith("accuracy/") and not c.endswith(_ENDS)]
    return sorted(columns, key=lambda c: (c.count("/"), c))


def compression_columns(trials: pl.DataFrame) -> list[str]:
    """Main-metric columns with the change from the base model, or with the value if there is no change."""
    for kind in ("delta", "compression"):
        columns = [
            c for c in trials.columns if c.startswith(f"{kind}/") and not c.endswith(_ENDS) and c.count("/") == 3
        ]
        main = set(main_metrics({c.split("/")[2] for c in columns}))
        if columns:
            return [c for c in columns if c.split("/")[2] in main]
    return []


def mean_drift(trials: pl.DataFrame, group: str) -> float | None:
    """Mean relative drift of a group's states over trials and thirds of depth; None if not measured."""
    columns = [c for c in trials.columns if c.startswith(f"drift/{group}") and not c.endswith(_ENDS)]
    values = trials.select(columns).to_numpy() if columns else np.array([])
    return float(np.nanmean(values)) if values.size else None


def effect_of_ratio(trials: pl.DataFrame, column: str, sweep: Mapping[str, Any] | None = None) -> pl.DataFrame:
    """Mean of `column` at each ratio with Student's 95 % interval over seeds, each the mean of its trials.

    No interval with one or two seeds. A tier's accuracy is taken from `sweep` (`sweep_summary.summarise_sweep`).

    Returns:
        complexity_ratio, mean, ci_low, ci_high, n_seeds.
    """
    tiers = sweep.get("tiers", {}) if sweep else {}
    names = ("complexity_ratio", "mean", "ci_low", "ci_high", "n_seeds")
    if (tier_result := tiers.get(column.removeprefix("accuracy/"))) is not None:
        return pl.DataFrame(tier_result["effect"], infer_schema_length=None).select(names)
    return sweep_effect(outcome_by_seed(trials, column)).table.select(names)


def smallest_sufficient_ratio(trials: pl.DataFrame, column: str) -> float | None:
    """Smallest sufficient ratio of an outcome (`stats.sufficient`)."""
    return sufficient_ratio(outcome_by_seed(trials, column)).ratio


def pareto_front(x: Sequence[float], y: Sequence[float]) -> list[int]:
    """Indices of the Pareto-optimal points (larger `x` and `y` are better), by ascending `x`."""
    front = np.flatnonzero(stats_front(np.stack([x, y], axis=1), (1, 1)))
    return sorted(front.tolist(), key=lambda i: (x[i], -y[i]))
