"""Statements on a sweep of the complexity ratio: compression, accuracy, forgetting, then explored outcomes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from orchestrator.report.benchmark_words import trial_figures
from orchestrator.report.statement import Statement, interval, number, percent
from orchestrator.report.style import direction_of, metric_short
from orchestrator.report.trial_views import effect_of_ratio, finished, mean_drift, smallest_sufficient_ratio
from orchestrator.stats.intervals import MIN_SEEDS

MOST_NAMED = 4
"""Maximum number of explored outcomes listed by name."""


def ratio_statements(trials: pl.DataFrame, sweep: Mapping[str, Any]) -> Iterator[Statement]:
    """All statements on one model's trials."""
    completed = finished(trials)
    if completed.is_empty():
        return
    rows = contrast_rows(sweep)
    for row in (r for r in rows.values() if r["primary"] and _is_compression(r["outcome"])):
        yield _contrast(row)
        yield from _asked(row, rows)
    for tier in ("high", "low"):
        yield from _accuracy(tier, completed, trials.height - completed.height, sweep, rows)
    for row in (r for r in rows.values() if r["primary"] and not _is_compression(r["outcome"])):
        if not row["outcome"].startswith("accuracy/"):
            yield _contrast(row)
    yield from (Statement(text, evidence, topic="ratio") for text, evidence in trial_figures(completed))
    yield from _explored(list(rows.values()))
    vision, text = mean_drift(completed, "vision"), mean_drift(completed, "text")
    if vision is not None and text is not None:
        yield Statement(
            f"Fine-tuning moves text states by {number(text)} and vision states by {number(vision)} on average.",
            "relative drift from the base model, mean over trials and layers",
            topic="ratio",
        )


def contrast_rows(sweep: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Contrasts of the largest ratio with the smallest by outcome, primary ones first."""
    return {row["outcome"]: row for row in sweep.get("contrasts", [])}


def _is_compression(outcome: str) -> bool:
    return outcome.split("/")[0] in ("delta", "compression")


def change_words(row: Mapping[str, Any]) -> str:
    """`vision tokens get more compressed: stable rank (centred) of middle layers +0.006 [−0.031, 0.044]`.

    "More" or "less compressed" only if the interval excludes 0; otherwise "no change is seen".
    """
    parts = row["outcome"].split("/")
    shown = f"{_signed(row['effect'])} {interval(row['ci_low'], row['ci_high'], lambda v: number(v, 3))}"
    if len(parts) != 4:
        return f"{row['outcome']} changes by {shown}"
    _, group, metric, third = parts
    sign = direction_of(metric) * (1 if (row["effect"] or 0) > 0 else -1)
    is_clear = row["ci_low"] is not None and (row["ci_low"] > 0 or row["ci_high"] < 0)
    how = {1: "get more compressed", -1: "get less compressed"}.get(sign, "change") if is_clear else _unseen(row)
    return f"{group} tokens {how}: {metric_short(metric).lower()} of {third} layers {shown}"


def _unseen(row: Mapping[str, Any]) -> str:
    if row["verdict"] == "equivalent to nothing":
        return "are as compressed at one as at the other"
    return "are not seen to change" if row["ci_low"] is not None else "change by an unknown amount"


def accuracy_words(row: Mapping[str, Any]) -> str:
    """`+6.3 points [−3.0, 15.7]`."""
    points = interval(row["ci_low"], row["ci_high"], lambda v: number(100 * v, 1))
    effect = None if row["effect"] is None else 100 * row["effect"]
    return f"{_signed(effect, 1)} points {points}"


def _signed(value: float | None, digits: int = 3) -> str:
    return ("+" if (value or 0) > 0 else "") + number(value, digits)


def _contrast(row: Mapping[str, Any]) -> Statement:
    text = (
        f"From ratio {number(row['low_ratio'])} to {number(row['high_ratio'])}, {change_words(row)} (primary outcome)."
    )
    return Statement(text, _basis(row), row["verdict"] or "", topic="ratio")


def _asked(primary: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> Iterator[Statement]:
    """Change of compression on images and prompts of the held-out questions, not the fixed prompt; explored."""
    rows_by_tier = {tier: rows.get(f"asked/{tier}/{primary['outcome']}") for tier in ("high", "low")}
    measured = {tier: row for tier, row in rows_by_tier.items() if row is not None}
    if measured:
        changes = "; ".join(
            f"{tier} tier: {change_words({**row, 'outcome': primary['outcome']})}" for tier, row in measured.items()
        )
        yield Statement(
            f"On the held-out questions' own images and prompts, {changes} (explored).",
            "; ".join(f"{tier} tier: {_basis(row)}" for tier, row in measured.items()),
            topic="ratio",
        )


def _basis(row: Mapping[str, Any]) -> str:
    """Number of seeds, smallest effect of interest, and detectable effect."""
    seeds = f"{row['n_seeds']} pairs of seeds, smallest effect of interest {number(row['smallest'], 3)}"
    if row["n_seeds"] < MIN_SEEDS:
        return seeds + f"; fewer than {MIN_SEEDS} seeds a ratio decide nothing"
    return seeds + (
        ""
        if row["detectable"] is None
        else f"; these seeds show a change of {number(row['detectable'], 3)} with 80 % power"
    )


def _accuracy(
    tier: str, completed: pl.DataFrame, failed: int, sweep: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]
) -> Iterator[Statement]:
    """A tier's accuracy at both ends of the ratio, with blind answers (high) or the base model (low) for comparison."""
    column = f"accuracy/{tier}"
    if column not in completed.columns:
        return
    tier_result = sweep.get("tiers", {}).get(tier)
    effect = effect_of_ratio(completed, column, sweep)
    first, last = effect.row(0, named=True), effect.row(-1, named=True)
    row = rows.get(column)
    ends = f"{percent(first['mean'])} at ratio {number(first['complexity_ratio'])}"
    if effect.height > 1:
        ends += f" and {percent(last['mean'])} at {number(last['complexity_ratio'])}"
    change = f": {accuracy_words(row)}" if row else ""
    subject = {"high": "Accuracy on crowded scenes (high tier)", "low": "Accuracy on simple scenes (low tier)"}[tier]
    text = f"{subject} is {ends}{change}."
    blind, base = (_mean(completed, f"{kind}/{tier}") for kind in ("blind", "accuracy_base"))
    if blind is not None:
        text += f" The best answers without the image earn {percent(blind)}."
    if base is not None:
        text += f" The base model has {percent(base)}"
        text += f", {_forgotten(last['mean'] - base)}." if tier == "low" and last["mean"] is not None else "."
    if tier == "high":
        enough = tier_result["sufficient_ratio"] if tier_result else smallest_sufficient_ratio(completed, column)
        if enough is not None:
            text += f" Ratio {number(enough)} is the smallest of {effect.height} with 90 % of the best gain."
    ends_of = " and ".join(interval(end["ci_low"], end["ci_high"], percent) for end in (first, last))
    evidence = f"95 % intervals over seeds of the two: {ends_of}; {completed.height} trials"
    evidence += f", {failed} failed" if failed else ""
    evidence += f"; {_basis(row)}" if row else ""
    yield Statement(text, evidence, (row["verdict"] or "") if row and row["primary"] else "", topic="ratio")


def _forgotten(change: float) -> str:
    """Forgetting: change of low-tier accuracy from the base model to the largest ratio."""
    if abs(change) < 0.005:
        return "of which nothing is lost at the largest ratio"
    direction = "more" if change < 0 else "less"
    return f"{number(abs(100 * change), 1)} points {direction} than after training at the largest ratio"


def _mean(trials: pl.DataFrame, column: str) -> float | None:
    values = trials[column].drop_nulls() if column in trials.columns else pl.Series([], dtype=pl.Float64)
    return float(values.to_numpy().mean()) if len(values) else None


def _explored(rows: Sequence[Mapping[str, Any]]) -> Iterator[Statement]:
    """Explored outcomes besides the primary ones, with the number of tests."""
    tested = [r for r in rows if not r["primary"] and r["p"] is not None]
    if tested:
        different = sorted((r for r in tested if r["q"] < 0.05), key=lambda r: r["q"])
        names = ", ".join(f"{r['outcome']} {number(r['effect'], 3)}" for r in different[:MOST_NAMED])
        yield Statement(
            f"Explored: {len(different)} of {len(tested)} further outcomes differ between these ratios at q < 0.05.",
            f"the surest of {len(tested)}: {names}" if names else "none",
            topic="ratio",
        )
