"""Statements on the scores of question files besides accuracy: soft scores, POPE's figures, position bias."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

TIERS = ("low", "high", "all")
Said = tuple[str, str]
"""A sentence, and its evidence."""


def percent(value: float) -> str:
    """`0.4567` -> `46 %`."""
    return f"{100 * value:.0f} %"


def trial_figures(trials: pl.DataFrame) -> Iterator[Said]:
    """Scores of fine-tuned models, mean over finished trials, compared with the base model."""
    for tier in TIERS:
        parts = []
        if (change := _change(trials, f"score/{tier}", f"score_base/{tier}")) is not None:
            parts.append(f"the soft score is {change}")
        for name, words in (("f1", "F1 of yes"), ("yes_share", "the share of yes")):
            if (change := _change(trials, f"yes_no/{tier}/{name}", f"yes_no_base/{tier}/{name}")) is not None:
                parts.append(f"{words} is {change}")
        if (bias := _mean(trials, f"position_bias/{tier}")) is not None:
            right = _mean(trials, f"position_bias_right/{tier}") or 0.0
            parts.append(
                f"places answered lie {percent(bias)} from uniform, those of the right answers {percent(right)}"
            )
        if parts:
            text = "; ".join(parts)
            yield (
                f"On {tier}-tier questions {text}.",
                f"by the rule of the question file, mean over {trials.height} trials",
            )


def _mean(table: pl.DataFrame, column: str) -> float | None:
    if column not in table.columns or table[column].null_count() == table.height:
        return None
    return float(table[column].drop_nulls().to_numpy().mean())


def _change(trials: pl.DataFrame, column: str, before: str) -> str | None:
    after = _mean(trials, column)
    if after is None:
        return None
    base = _mean(trials, before)
    return percent(after) + ("" if base is None else f" (base model {percent(base)})")


def deletion_figures(deletion: pl.DataFrame) -> Iterator[Said]:
    """Change of the share of yes and of F1 with token deletion, per tier, mean over families and seeds."""
    answered = deletion.filter((pl.col("checkpoint") == "base") & (pl.col("layer") == 0))
    answered = answered.filter(pl.col("yes_share").is_not_null())
    for (tier, method), part in answered.group_by(["tier", "method"], maintain_order=True):
        weighted = [(pl.col(c) * pl.col("n")).sum() / pl.col("n").sum() for c in ("accuracy", "f1", "yes_share")]
        rows = part.group_by("deleted_share").agg(*weighted, pl.col("n").sum()).sort("deleted_share")
        first, last = rows.row(0, named=True), rows.row(-1, named=True)
        if first["deleted_share"] == last["deleted_share"]:
            continue
        yield (
            f"Deleting {percent(last['deleted_share'])} of the visual tokens ({method}) moves the share of yes from "
            f"{percent(first['yes_share'])} to {percent(last['yes_share'])} and F1 from {percent(first['f1'])} to "
            f"{percent(last['f1'])} on {tier}-tier questions.",
            f"accuracy {percent(first['accuracy'])} and {percent(last['accuracy'])}, n = {first['n']}",
        )
