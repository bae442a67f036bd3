"""Methods compared at equal average tokens on the same questions: effects with paired intervals, ranks, difficulty.

Of the questions that are right with all tokens, `easy` ones are right with an image downsampled to the same budget too,
`hard` ones are not. Easy questions are right with any method, so only hard ones separate methods (Liao et al. 2025,
VTC-Bench).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl

from orchestrator.ablate.cells import ALL_TOKENS
from orchestrator.ablate.selectors.entries import DOWNSAMPLE
from orchestrator.stats.intervals import clustered_share
from orchestrator.stats.paired import paired_difference
from orchestrator.stats.verdict import non_inferiority

CONTROLS = ("random", DOWNSAMPLE)
"""Methods that every other one is compared with, besides all tokens."""
COSTS = (
    "kept_share", "gflop", "selection_seconds", "prefill_seconds", "decode_seconds", "cache_mb", "peak_mb"
)  # fmt: skip
OVER_BUDGET = 0.05
"""Largest excess of a ranked method's average share of tokens over the budget; allows for rounding to whole tokens."""
_QUESTION = ["question_id", "cluster", "family", "tier"]


def over_seeds(answers: pl.DataFrame) -> pl.DataFrame:
    """One row per method, budget and question: means over seeds of `score` and the costs."""
    keys = ["method", "budget", *_QUESTION]
    return answers.group_by(keys, maintain_order=True).agg(pl.col("score", *COSTS).mean()).sort(keys)


def with_difficulty(rows: pl.DataFrame) -> pl.DataFrame:
    """`rows` with `difficulty` at each budget: easy, hard, or `unsolved` if wrong with all tokens.

    Null if downsampling was not measured at the budget.
    """
    full = rows.filter(pl.col("method") == ALL_TOKENS).select("question_id", full="score")
    small = rows.filter(pl.col("method") == DOWNSAMPLE).select("question_id", "budget", small="score")
    joined = rows.join(full, on="question_id", how="left").join(small, on=["question_id", "budget"], how="left")
    solved = pl.when(pl.col("small") >= 0.5).then(pl.lit("easy")).otherwise(pl.lit("hard"))
    measured = pl.when(pl.col("small").is_null()).then(None).otherwise(solved)
    kind = pl.when(pl.col("full") < 0.5).then(pl.lit("unsolved")).otherwise(measured)
    return joined.with_columns(difficulty=kind).drop("small")


def rival_table(answers: pl.DataFrame, margin: float) -> pl.DataFrame:
    """Table `rivals`, without rows for settings that could not be measured.

    Args:
        answers: table `rival_answers`.
        margin: largest loss of accuracy of a non-inferior method.
    """
    rows = with_difficulty(over_seeds(answers))
    table: list[dict[str, Any]] = []
    for (method, budget), setting_rows in rows.group_by(["method", "budget"], maintain_order=True):
        at = rows.filter(pl.col("budget") == budget)
        for tier, family, difficulty, part in _scopes(setting_rows):
            table.append(_row(str(method), tier, family, difficulty, part, at, margin))
    return pl.DataFrame(table, infer_schema_length=None)


def _scopes(rows: pl.DataFrame) -> Iterator[tuple[str, str, str, pl.DataFrame]]:
    """(tier, family, difficulty, rows): each tier as a whole and by family, all questions and by difficulty."""
    for (tier,), part in rows.group_by(["tier"], maintain_order=True):
        groups = [("all", part), *((str(f), group) for (f,), group in part.group_by(["family"], maintain_order=True))]
        for family, group in groups:
            yield str(tier), family, "all", group
            for kind in ("easy", "hard"):
                if (chosen := group.filter(pl.col("difficulty") == kind)).height:
                    yield str(tier), family, kind, chosen


def _row(
    method: str, tier: str, family: str, difficulty: str, part: pl.DataFrame, at: pl.DataFrame, margin: float
) -> dict[str, Any]:
    score, clusters = part["score"].to_numpy(), part["cluster"].to_numpy()
    share, change = clustered_share(score, clusters), paired_difference(score, part["full"].to_numpy(), clusters)
    row: dict[str, Any] = {
        "method": method, "budget": part["budget"][0], "tier": tier, "family": family, "difficulty": difficulty,
        "accuracy": share.value, "ci_low": share.low, "ci_high": share.high,
        "difference": change.value, "difference_low": change.low, "difference_high": change.high,
        "margin": margin,
        "verdict": "" if method == ALL_TOKENS else non_inferiority(change.low, change.high, margin),
        "n": part.height, "reason": "",
    }  # fmt: skip
    for control in CONTROLS:
        against = at.filter(pl.col("method") == control).select("question_id", control="score")
        pairs = part.join(against, on="question_id").sort("question_id")
        names = (f"over_{control}", f"over_{control}_low", f"over_{control}_high")
        if method in (control, ALL_TOKENS) or pairs.height != part.height:
            row |= dict.fromkeys(names)
            continue
        over = paired_difference(pairs["score"].to_numpy(), pairs["control"].to_numpy(), pairs["cluster"].to_numpy())
        row |= dict(zip(names, (over.value, over.low, over.high), strict=True))
    return row | {name: part[name].mean() for name in COSTS}


def rank_table(answers: pl.DataFrame) -> pl.DataFrame:
    """Table `rival_ranks`: methods ranked by accuracy within each tier, family and budget, and their mean rank.

    Only methods that meet the budget are ranked. With a model of fixed resolution a downsampled image has all its
    tokens: it is then a control in table `rivals` and has no rank.

    A method is `tied` with the best if the 95 % interval of its paired difference, Bonferroni-corrected for the number
    of comparisons, contains 0.
    """
    rows = over_seeds(answers).filter(pl.col("method") != ALL_TOKENS)
    rows = rows.filter(pl.col("kept_share").mean().over("method", "budget") <= pl.col("budget") + OVER_BUDGET)
    ranked: list[dict[str, Any]] = []
    for (budget, tier), part in rows.group_by(["budget", "tier"], maintain_order=True):
        ranks: dict[str, list[float]] = {}
        for (family,), family_rows in part.group_by(["family"], maintain_order=True):
            names = {"budget": budget, "tier": tier, "family": family}
            for row in _ranked(family_rows):
                ranked.append({**names, **row})
                ranks.setdefault(row["method"], []).append(row["rank"])
        ranked += [
            {"budget": budget, "tier": tier, "family": "all", "n_families": len(ranks[row["method"]]),
             **row, "rank": float(np.mean(ranks[row["method"]]))}
            for row in _ranked(part)
        ]  # fmt: skip
    frame = pl.DataFrame(ranked, infer_schema_length=None)
    return frame.with_columns(pl.col("n_families").fill_null(1)) if frame.height else frame


def _ranked(part: pl.DataFrame) -> list[dict[str, Any]]:
    from scipy.stats import rankdata

    scores = {str(m): answers.sort("question_id") for (m,), answers in part.group_by(["method"], maintain_order=True)}
    methods = list(scores)
    means = [float(scores[m]["score"].to_numpy().mean()) for m in methods]
    best = methods[int(np.argmax(means))]
    confidence = 1 - 0.05 / max(1, len(methods) - 1)
    rows = []
    for method, mean, rank in zip(methods, means, rankdata([-m for m in means], method="average"), strict=True):
        answers, best_answers = scores[method], scores[best]
        clusters = answers["cluster"].to_numpy()
        gap = paired_difference(answers["score"].to_numpy(), best_answers["score"].to_numpy(), clusters, confidence)
        tied = method == best or gap.high is None or gap.high >= 0
        rows.append(
            {"method": method, "accuracy": mean, "rank": float(rank), "best": method == best, "tied": tied,
             "behind": gap.value, "behind_low": gap.low, "behind_high": gap.high, "n": answers.height}
        )  # fmt: skip
    return rows
