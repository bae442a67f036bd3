"""Columns of the tables that compare ways to choose visual tokens."""

from __future__ import annotations

from orchestrator.store.tables.columns import (
    BOOL,
    CHECKPOINT,
    CLUSTER,
    FLOAT,
    HIGH,
    IMAGE,
    INT,
    LOW,
    STRING,
    Column,
    N,
    Table,
)

_METHOD = Column(STRING, "how tokens are chosen, or `all tokens`")
_BUDGET = Column(FLOAT, "average share of visual tokens over the layers that read them that was asked for")
_TIER = Column(STRING, "low or high")
_COSTS = {
    "kept_share": Column(FLOAT, "visual tokens present, share of all, mean over the layers that read them"),
    "gflop": Column(FLOAT, "operations of selection and of the decoder on the prompt, 1e9 per question"),
    "selection_seconds": Column(FLOAT, "reading and choosing, s per question of the setting; part of prefill"),
    "prefill_seconds": Column(FLOAT, "pass over image and prompt, s per question of the setting"),
    "decode_seconds": Column(FLOAT, "all tokens written after the first, s per question of the setting"),
    "cache_mb": Column(FLOAT, "keys and values of the prompt, 1e6 bytes per question; null where not known"),
    "peak_mb": Column(FLOAT, "most GPU memory of a batch, weights included, 1e6 bytes; null without a GPU"),
}

RIVAL_TABLES: dict[str, Table] = {
    "rival_answers": Table(
        {
            "checkpoint": CHECKPOINT,
            "method": _METHOD,
            "budget": _BUDGET,
            "seed": Column(INT, "seed of a method that draws; -1 for others"),
            "question_id": Column(STRING, "question id"),
            "image_id": IMAGE,
            "cluster": CLUSTER,
            "family": Column(STRING, "question family"),
            "tier": _TIER,
            "n_vision": Column(INT, "visual tokens of the image"),
            "correct": Column(BOOL, "whether the answer is right"),
            "score": Column(FLOAT, "its score by the question's rule, 0 to 1"),
            **_COSTS,
        },
        ("checkpoint", "method", "budget", "seed", "question_id"),
    ),
    "rivals": Table(
        {
            "method": _METHOD,
            "budget": _BUDGET,
            "tier": _TIER,
            "family": Column(STRING, "question family, or `all` of the tier"),
            "difficulty": Column(
                STRING, "all; of those all tokens answer: easy (the downsampled image answers too) or hard"
            ),
            "accuracy": Column(FLOAT, "mean score"),
            "ci_low": LOW,
            "ci_high": HIGH,
            "difference": Column(FLOAT, "accuracy minus that with all tokens"),
            "difference_low": Column(FLOAT, "lower end of its 95 % interval, paired by question, clustered by image"),
            "difference_high": Column(FLOAT, "upper end of that interval"),
            "margin": Column(FLOAT, "largest loss allowed"),
            "verdict": Column(STRING, "of non-inferiority at that margin; empty for all tokens"),
            "over_random": Column(FLOAT, "accuracy minus that of random deletion at the budget; null if not measured"),
            "over_random_low": Column(FLOAT, "lower end of its 95 % interval, as `difference_low`"),
            "over_random_high": Column(FLOAT, "upper end of that interval"),
            "over_downsample": Column(FLOAT, "the same over the image downsampled to the budget"),
            "over_downsample_low": Column(FLOAT, "lower end of its 95 % interval, as `difference_low`"),
            "over_downsample_high": Column(FLOAT, "upper end of that interval"),
            **_COSTS,
            "n": N,
            "reason": Column(STRING, "why a setting could not be measured; empty where it was"),
        },
        ("method", "budget", "tier", "family", "difficulty"),
    ),
    "rival_ranks": Table(
        {
            "budget": _BUDGET,
            "tier": _TIER,
            "family": Column(STRING, "question family; `all`: all questions of the tier, with the mean rank"),
            "method": _METHOD,
            "accuracy": Column(FLOAT, "mean score"),
            "rank": Column(FLOAT, "1 is best, ties averaged; of `all` the mean over families"),
            "n_families": Column(INT, "families the rank is a mean of"),
            "best": Column(BOOL, "whether no method is more accurate"),
            "tied": Column(BOOL, "whether it is not told apart from the best (interval of `behind` reaches 0)"),
            "behind": Column(FLOAT, "accuracy minus the best's"),
            "behind_low": Column(FLOAT, "lower end of its interval: 95 % over all methods compared (Bonferroni)"),
            "behind_high": Column(FLOAT, "upper end of that interval"),
            "n": N,
        },
        ("budget", "tier", "family", "method"),
    ),
}
