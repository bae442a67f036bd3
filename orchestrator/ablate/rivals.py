"""Methods compared at equal average tokens on the same questions: effects with paired intervals, ranks, difficulty.

Downsampling parts the questions that the whole image answers: `easy` ones a downsampled image of the same budget
answers too, `hard` ones it does not. On easy questions any method looks good, so only the hard ones tell methods apart
(Liao et al. 2025, VTC-Bench).
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
"""What a method is set against beside all tokens."""
COSTS = (
    "kept_share", "gflop", "selection_seconds", "prefill_seconds", "decode_seconds", "cache_mb", "peak_mb"
)  # fmt: skip
OVER_BUDGET = 0.05
"""Average share of tokens by which a ranked method may exceed the budget: more than rounding to whole tokens."""
_QUESTION = ["question_id", "cluster", "family", "tier"]


def over_seeds(answers: pl.DataFrame) -> pl.DataFrame:
    """One row a method, budget and question: `score`, mean over seeds, and means of the costs."""
    keys = ["method", "budget", *_QUESTION]
    return answers.group_by(keys, maintain_order=True).agg(pl.col("score", *COSTS).mean()).sort(keys)


def with_difficulty(rows: pl.DataFrame) -> pl.DataFrame:
    """`rows` with `difficulty` at each budget: easy, hard, or `unsolved` where all tokens do not answer either.

    Null where downsampling was not measured at the budget.
    """
    full = rows.filter(pl.col("method") == ALL_TOKENS).select("question_id", full="score")
    small = rows.filter(pl.col("method") == DOWNSAMPLE).select("question_id", "budget", small="score")
    joined = rows.join(full, on="question_id", how="left").join(small, on=["question_id", "budget"], how="left")
    solved = pl.when(pl.col("small") >= 0.5).then(pl.lit("easy")).otherwise(pl.lit("hard"))
    known = pl.when(pl.col("small").is_null()).then(None).otherwise(solved)
    kind = pl.when(pl.col("full") < 0.5).then(pl.lit("unsolved")).otherwise(known)
    return joined.with_columns(difficulty=kind).drop("small")


def rival_table(answers: pl.DataFrame, margin: float) -> pl.DataFrame:
    """Table `rivals` without the settings that could not be measured.

    Args:
        answers: table `rival_answers`.
        margin: largest loss of accuracy of a non-inferior method.
    """
    rows = with_difficulty(over_seeds(answers))
    found: list[dict[str, Any]] = []
    for (method, budget), own in rows.group_by(["method", "budget"], maintain_order=True):
        at = rows.filter(pl.col("budget") == budget)
        for tier, family, difficulty, part in _scopes(own):
            found.append(_row(str(method), tier, family, difficulty, part, at, margin))
    return pl.DataFrame(found, infer_schema_length=None)


def _scopes(rows: pl.DataFrame) -> Iterator[tuple[str, str, str, pl.DataFrame]]:
    """(tier, family, difficulty, rows): each tier as a whole and by family, all questions and by difficulty."""
    for (tier,), part in rows.group_by(["tier"], maintain_order=True):
        groups = [("all", part), *((str(f), own) for (f,), own in part.group_by(["family"], maintain_order=True))]
        for family, own in groups:
            yield str(tier), family, "all", own
            for kind in ("easy", "hard"):
                if (chosen := own.filter(pl.col("difficulty") == kind)).height:
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

    Ranked are those that meet the budget: a downsampled image that a model of fixed resolution enlarges again has all
    its tokens, so that it is a control in table `rivals` and no rival at equal tokens.

    A method is `tied` with the best where the 95 % interval of its paired difference holds 0, widened by Bonferroni's
    rule for the methods compared: a winner is named only against those it is told apart from.
    """
    rows = over_seeds(answers).filter(pl.col("method") != ALL_TOKENS)
    rows = rows.filter(pl.col("kept_share").mean().over("method", "budget") <= pl.col("budget") + OVER_BUDGET)
    found: list[dict[str, Any]] = []
    for (budget, tier), part in rows.group_by(["budget", "tier"], maintain_order=True):
        ranks: dict[str, list[float]] = {}
        for (family,), own in part.group_by(["family"], maintain_order=True):
            names = {"budget": budget, "tier": tier, "family": family}
            for row in _ranked(own):
                found.append({**names, **row})
                ranks.setdefault(row["method"], []).append(row["rank"])
        found += [
            {"budget": budget, "tier": tier, "family": "all", "n_families": len(ranks[row["method"]]),
             **row, "rank": float(np.mean(ranks[row["method"]]))}
            for row in _ranked(part)
        ]  # fmt: skip
    frame = pl.DataFrame(found, infer_schema_length=None)
    return frame.with_columns(pl.col("n_families").fill_null(1)) if frame.height else frame


def _ranked(part: pl.DataFrame) -> list[dict[str, Any]]:
    from scipy.stats import rankdata

    scores = {str(m): own.sort("question_id") for (m,), own in part.group_by(["method"], maintain_order=True)}
    methods = list(scores)
    means = [float(scores[m]["score"].to_numpy().mean()) for m in methods]
    best = methods[int(np.argmax(means))]
    confidence = 1 - 0.05 / max(1, len(methods) - 1)
    rows = []
    for method, mean, rank in zip(methods, means, rankdata([-m for m in means], method="average"), strict=True):
        own, other = scores[method], scores[best]
        clusters = own["cluster"].to_numpy()
        gap = paired_difference(own["score"].to_numpy(), other["score"].to_numpy(), clusters, confidence)
        tied = method == best or gap.high is None or gap.high >= 0
        rows.append(
            {"method": method, "accuracy": mean, "rank": float(rank), "best": method == best, "tied": tied,
             "behind": gap.value, "behind_low": gap.low, "behind_high": gap.high, "n": own.height}
        )  # fmt: skip
    return rows
