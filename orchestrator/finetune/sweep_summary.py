"""Effect of the complexity ratio over the seeds of a sweep: contrasts, sufficient ratio, cost.

The unit is the seed: a trial's outcome is one number, and contrasts between ratios are paired by seed (Student's t,
three pairs or more; fewer give no interval and no verdict). All trials answer the same questions, so that
inference is conditional on these questions. Primary outcomes are named before the sweep runs (`finetune.primary`) and
tested as one family; all other outcomes are exploratory, with q values over all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import scipy

from orchestrator.compression.registry import ERRORS
from orchestrator.errors import DataError
from orchestrator.stats.intervals import MIN_SEEDS, student_interval
from orchestrator.stats.multiplicity import benjamini_hochberg, familywise_confidence
from orchestrator.stats.power import detectable_effect
from orchestrator.stats.sufficient import paired_gains, sufficient_ratio
from orchestrator.stats.verdict import verdict

Seeds = Mapping[float, Mapping[int, float]]
"""Ratio -> seed -> outcome."""

SMALLEST = {"accuracy": 0.05, "drift": 0.05, "alignment": 0.05, "cka": 0.05}
"""Smallest effect of interest by kind of outcome: 5 points of accuracy, 0.05 of relative drift, alignment and CKA."""
SMALLEST_RELATIVE = 0.05
"""For other outcomes: this share of the mean at the smallest ratio (for a change: of the metric itself)."""
_KINDS = ("accuracy", "drift", "delta", "alignment", "cka", "count_error", "point_distance")
"""Kinds of outcome; of what is measured on the held-out questions' own images (`asked/TIER/...`) the changes."""
_ENDS = ("_low", "_high")
_NO_SPREAD = 1e-12
"""Seeds that agree to this (a tier at its ceiling) do not tell how far seeds differ: no interval."""


@dataclass(frozen=True)
class RatioEffect:
    """An outcome by ratio, its gain over the smallest ratio, and the smallest sufficient ratio."""

    table: pl.DataFrame
    """complexity_ratio, n_seeds, mean, ci_low, ci_high; gain, gain_low, gain_high (paired, against the smallest)."""
    rises: bool | None
    """Whether the largest gain exceeds chance, adjusted for selection of the best ratio; None below three seeds."""
    sufficient: float | None
    """Smallest ratio that reaches 90 % of the best gain; None if there is none or it cannot be determined."""


def accuracy_by_seed(answers: Mapping[tuple[float, int], pl.DataFrame], tier: str) -> dict[float, dict[int, float]]:
    """Accuracy of each trial on the questions of a tier.

    Args:
        answers: (ratio, seed) -> table `answers` of that trial.

    Raises:
        DataError: trials have different questions, or none of this tier.
    """
    by_ratio: dict[float, dict[int, float]] = {}
    question_ids: list[str] | None = None
    for (ratio, seed), frame in sorted(answers.items(), key=lambda item: item[0]):
        part = frame.filter(pl.col("tier") == tier).sort("question_id")
        questions = part["question_id"].to_list()
        if not questions:
            raise DataError(f"answers of ratio {ratio}, seed {seed}: no questions of tier {tier!r}")
        if question_ids is not None and questions != question_ids:
            raise DataError(f"answers of ratio {ratio}, seed {seed}: not the questions of the other trials")
        question_ids = questions
        by_ratio.setdefault(ratio, {})[seed] = float(part["correct"].to_numpy().mean())
    return by_ratio


def effect_of_ratio(by_ratio: Seeds) -> RatioEffect:
    """Means over seeds with Student's intervals, gains paired by seed, and the sufficient ratio."""
    gains = paired_gains(by_ratio)
    rows = []
    for ratio in sorted(by_ratio):
        mean, gain = student_interval(list(by_ratio[ratio].values())), gains[ratio]
        rows.append((ratio, mean.n, mean.value, mean.low, mean.high, gain.value, gain.low, gain.high))
    names = ("mean", "ci_low", "ci_high", "gain", "gain_low", "gain_high")
    schema = {"complexity_ratio": pl.Float64, "n_seeds": pl.Int64, **dict.fromkeys(names, pl.Float64)}
    enough = sufficient_ratio(by_ratio)
    return RatioEffect(pl.DataFrame(rows, schema=schema, orient="row"), enough.rises, enough.ratio)


def outcome_by_seed(trials: pl.DataFrame, column: str) -> dict[float, dict[int, float]]:
    """A column of table `trials` by ratio and seed, over finished trials; other settings are averaged."""
    return outcomes_by_seed(trials, [column])[column]


def outcomes_by_seed(trials: pl.DataFrame, columns: Sequence[str]) -> dict[str, dict[float, dict[int, float]]]:
    """`outcome_by_seed` of several columns, which are averaged in one go."""
    done = trials.filter(pl.col("status") == "done")
    means = done.group_by("complexity_ratio", "seed").agg(pl.col(columns).cast(pl.Float64).mean())
    means = means.sort("complexity_ratio", "seed")
    settings = list(zip(means["complexity_ratio"], means["seed"], strict=True))
    found: dict[str, dict[float, dict[int, float]]] = {}
    for column in columns:
        by_ratio = found.setdefault(column, {})
        for (ratio, seed), value in zip(settings, means[column], strict=True):
            if value is not None and np.isfinite(value):
                by_ratio.setdefault(ratio, {})[seed] = value
    return found


def contrasts(trials: pl.DataFrame, primary: Sequence[str]) -> pl.DataFrame:
    """The largest ratio against the smallest, paired by seed, for each outcome of table `trials`; primary ones first.

    Returns:
        outcome, primary, low_ratio, high_ratio, effect, ci_low, ci_high (primary: simultaneous), p, q (exploratory:
        over all of them), n_seeds, smallest, verdict (primary only), detectable (effect seen with 80 % power at these
        seeds and this spread), n_explored.
    """
    every = [
        c for c in trials.columns
        if kind_of(c) in _KINDS and not c.endswith(_ENDS) and trials[c].dtype.is_numeric()
        and ERRORS.isdisjoint(c.split("/"))
    ]  # fmt: skip
    named = [c for c in primary if c in every]
    confidence = familywise_confidence(len(named))
    scales = {c: scale_column(c, trials.columns) for c in every}
    by_seed = outcomes_by_seed(trials, list(dict.fromkeys([*every, *scales.values()])))
    rows = []
    for column in [*named, *(c for c in every if c not in named)]:
        by_ratio = by_seed[column]
        if len(by_ratio) < 2:
            continue
        first, last = min(by_ratio), max(by_ratio)
        seeds = sorted(set(by_ratio[first]) & set(by_ratio[last]))
        changes = np.array([by_ratio[last][s] - by_ratio[first][s] for s in seeds])
        is_primary = column in named
        interval = student_interval(changes, confidence if is_primary else 0.95)
        smallest = smallest_effect(column, by_seed[scales[column]])
        spread, detectable = float(changes.std(ddof=1)) if len(changes) > 1 else 0.0, detectable_effect(len(changes))
        if spread < _NO_SPREAD:
            interval = replace(interval, low=None, high=None)
        enough = len(changes) >= MIN_SEEDS
        judgement = verdict(interval.value, interval.low, interval.high, smallest) if smallest else "undecided"
        rows.append(
            {
                "outcome": column,
                "primary": is_primary,
                "low_ratio": first,
                "high_ratio": last,
                "effect": interval.value if len(changes) else None,
                "ci_low": interval.low,
                "ci_high": interval.high,
                "p": float(scipy.stats.ttest_1samp(changes, 0.0).pvalue) if enough and spread >= _NO_SPREAD else None,
                "n_seeds": len(changes),
                "smallest": smallest,
                "verdict": judgement if is_primary and enough else None,
                "detectable": spread * detectable
                if enough and spread >= _NO_SPREAD and detectable is not None
                else None,
            }
        )
    if not rows:
        return pl.DataFrame()
    table = pl.DataFrame(rows, infer_schema_length=None).with_columns(pl.col("p").cast(pl.Float64))
    explored = ~table["primary"].to_numpy()
    q = np.full(table.height, np.nan)
    q[explored] = benjamini_hochberg(table["p"].fill_null(float("nan")).to_numpy()[explored])
    return table.with_columns(q=pl.Series(q).fill_nan(None), n_explored=pl.lit(int(explored.sum())))


def kind_of(column: str) -> str:
    """`delta` of `delta/vision/gini/early` and of `asked/high/delta/vision/gini/early`."""
    parts = column.split("/")
    return parts[2] if parts[0] == "asked" and len(parts) > 2 else parts[0]


def scale_column(column: str, columns: Sequence[str]) -> str:
    """The column that gives an outcome's scale: of a change the metric itself, where the table has it."""
    value = column.replace("delta/", "compression/", 1)
    return value if kind_of(column) == "delta" and value in columns else column


def smallest_effect(column: str, scale: Seeds) -> float:
    """Smallest effect of interest in the outcome's unit (`SMALLEST`, else relative); 0 if there is no scale."""
    kind = kind_of(column)
    if kind in SMALLEST:
        return SMALLEST[kind]
    return SMALLEST_RELATIVE * abs(float(np.mean(list(scale[min(scale)].values())))) if scale else 0.0


def cost_of_ratio(trials: pl.DataFrame) -> pl.DataFrame:
    """Mean cost of a trial at each ratio: training and total seconds, floating-point operations, answer-bearing tokens.

    The ratio changes neither examples nor steps, so that differences come from question and answer length.
    """
    costs = [c for c in ("train_seconds", "trial_seconds", "train_flops", "train_tokens") if c in trials.columns]
    done = trials.filter(pl.col("status") == "done")
    return (
        done.group_by("complexity_ratio")
        .agg(pl.len().alias("n_trials"), *[pl.col(c).mean() for c in costs])
        .sort("complexity_ratio")
    )


def summarise_sweep(
    trials: pl.DataFrame, answers: Mapping[tuple[float, int], pl.DataFrame], primary: Sequence[str] = ()
) -> dict[str, Any]:
    """The results of a sweep as plain values: primary and exploratory contrasts, and accuracy by tier and ratio."""
    summary: dict[str, Any] = {"cost": cost_of_ratio(trials).to_dicts(), "tiers": {}}
    summary["contrasts"] = contrasts(trials, primary).to_dicts() if "seed" in trials.columns else []
    tiers = sorted({t for frame in answers.values() for t in frame["tier"].unique().to_list()})
    for tier in tiers:
        effect = effect_of_ratio(accuracy_by_seed(answers, tier))
        summary["tiers"][tier] = {
            "effect": effect.table.to_dicts(),
            "rises": effect.rises,
            "sufficient_ratio": effect.sufficient,
        }
    return summary
