"""A policy from deletion curves: the fewest visual tokens for a given loss of accuracy.

Rules are chosen on the questions of the `choose` half and judged on the `judge` half; no image is in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import polars as pl
import yaml

from orchestrator.ablate.selectors.entries import DOWNSAMPLE
from orchestrator.config import PolicyFile, PolicyRule
from orchestrator.stats.intervals import Estimate
from orchestrator.stats.paired import paired_difference
from orchestrator.stats.verdict import non_inferiority

SETTING = ["method", "layer", "deleted_share"]
RIVALS = {"accuracy_random": "random", "accuracy_downsample": DOWNSAMPLE}
KEEP_ALL = PolicyRule(tier="", family="all", method="random", layer=0, deleted_share=0.0)
EPSILON = 1e-9


def with_layer_share(answers: pl.DataFrame, reading: Sequence[int]) -> pl.DataFrame:
    """`deletion_answers` with `layer_share`: the share of visual tokens present, mean over the layers that read them.

    Args:
        reading: decoder layers that attend to visual tokens. Those before `layer` see all of them.
    """
    before = pl.col("layer").map_elements(lambda k: sum(i < k for i in reading) / len(reading), return_dtype=pl.Float64)
    kept = pl.col("kept_tokens") / pl.col("n_vision").clip(lower_bound=1)
    return answers.with_columns(layer_share=before + (1.0 - before) * kept)


def shares_right(answers: pl.DataFrame) -> pl.DataFrame:
    """One row per question and setting: `right`, the share of seeds with a right answer, and mean costs."""
    keys = [*SETTING, "question_id", "cluster", "family", "tier", "half"]
    means = [pl.col(c).mean() for c in ("layer_share", "gflop")]
    return answers.group_by(keys, maintain_order=True).agg(pl.col("correct").mean().alias("right"), *means)


def scopes(rows: pl.DataFrame) -> Iterator[tuple[str, str, pl.DataFrame]]:
    """(tier, family, rows): each tier as a whole under the family `all`, then each of its families."""
    for (tier,), part in rows.group_by(["tier"], maintain_order=True):
        yield str(tier), "all", part
        for (family,), family_rows in part.group_by(["family"], maintain_order=True):
            yield str(tier), str(family), family_rows


def choose_rules(answers: pl.DataFrame, max_loss: float) -> list[PolicyRule]:
    """For every scope, the setting of fewest visual tokens that is non-inferior at `max_loss` on the choosing half.

    Non-inferior: the 95 % interval of its paired difference from all tokens lies above minus `max_loss`, and so does
    that of every smaller deletion by the same method at the same layer (fixed-sequence test, each step at full level).
    With too few questions the rule keeps all tokens: n independent questions without a discordant pair show a loss
    below 3.84 / (n + 3.84). Tokens are counted over the layers that read them. A setting may not cost more operations
    than all tokens do. Ties are broken by fewer operations, then by accuracy. Downsampling is a rival, never a rule. A
    scope without a right answer gets no rule.
    """
    rows = shares_right(answers).filter((pl.col("half") == "choose") & (pl.col("method") != DOWNSAMPLE))
    rules = []
    for tier, family, part in scopes(rows):
        plain = part.filter((pl.col("deleted_share") == 0) & (pl.col("layer") == 0)).unique("question_id", keep="first")
        if not plain["right"].sum():  # no accuracy that could be kept
            continue
        settings = part.group_by(SETTING).agg(pl.col("right", "gflop", "layer_share").mean()).sort(SETTING)
        full = plain.select("question_id", full="right")
        shown = [shown_within(part, row, full, max_loss) for row in settings.select(SETTING).to_dicts()]
        settings = settings.with_columns(shown=pl.Series(shown))
        backed = pl.col("shown").cum_min().over("method", "layer", order_by="deleted_share")
        cheap = pl.col("gflop") <= plain["gflop"].to_numpy().mean() + EPSILON
        order = ["layer_share", "gflop", "right", "method"]
        best = settings.filter(backed & cheap).sort(order, descending=[False, False, True, False]).row(0, named=True)
        rules.append(PolicyRule(tier=tier, family=family, **{key: best[key] for key in SETTING}))
    return rules


def shown_within(part: pl.DataFrame, setting: Mapping[str, Any], full: pl.DataFrame, max_loss: float) -> bool:
    """Whether a setting is shown to be non-inferior at `max_loss`; true without deletion.

    Args:
        part: as from `shares_right`.
        setting: values of the columns `SETTING`.
        full: question_id, `full` (right with all tokens).
    """
    if setting["deleted_share"] < EPSILON:
        return True
    pairs = part.filter(pl.all_horizontal(pl.col(key) == value for key, value in setting.items()))
    pairs = pairs.join(full, on="question_id")
    if pairs.is_empty():
        return False
    difference = paired_difference(pairs["right"].to_numpy(), pairs["full"].to_numpy(), pairs["cluster"].to_numpy())
    return non_inferiority(difference.low, difference.high, max_loss) == "supported"


def judge_rules(answers: pl.DataFrame, rules: list[PolicyRule], max_loss: float) -> pl.DataFrame:
    """Table `policy` for fixed rules, on the judging half: each rule, and each tier under its families' own rules."""
    rows = shares_right(answers).filter(pl.col("half") == "judge")
    judgements = []
    for tier, family, part in scopes(rows):
        family_rules = {rule.family: rule for rule in rules if rule.tier == tier}
        if family in family_rules:
            alike = dict.fromkeys(part["family"], family_rules[family])
            judgements.append(_judged("fixed", tier, family, part, alike, max_loss))
        if family == "all" and family_rules:
            judgements.append(
                _judged(
                    "fixed by family", tier, family, part, {**dict.fromkeys(part["family"]), **family_rules}, max_loss
                )
            )
    return pl.DataFrame(judgements, infer_schema_length=None)


def _judged(
    policy: str, tier: str, family: str, part: pl.DataFrame, rules: Mapping[str, PolicyRule | None], max_loss: float
) -> dict[str, Any]:
    """A row of table `policy`: `part` with each question under the rule of its family, if there is one."""
    questions = part.select("question_id", "family").unique(maintain_order=True)
    chosen = [rules[f] or KEEP_ALL for f in questions["family"]]
    treatments = pl.DataFrame(
        {
            "question_id": questions["question_id"],
            "by": [rule.method for rule in chosen],
            "at": [rule.layer for rule in chosen],
            "share": [rule.deleted_share for rule in chosen],
        }
    )
    return {"policy": policy, "tier": tier, "family": family, **judge(part, treatments, max_loss)}


def judge(part: pl.DataFrame, treatments: pl.DataFrame, max_loss: float) -> dict[str, Any]:
    """Accuracy, cost and rivals of `treatments` against all tokens, paired by question and clustered by image.

    The verdict is on non-inferiority: supported if the interval lies above minus `max_loss`. Without deletion the
    interval is 0. Rivals delete as much from the same questions: random deletion at the same layer, downsampling before
    the model. Columns `hard_...` repeat difference and verdict over the questions that the smallest downsampled image
    does not answer: the others are right with hardly any tokens, and hide differences between methods.

    Args:
        part: as from `shares_right`.
        treatments: question_id, `by` (method), `at` (layer), `share` (deleted).
    """
    chosen = _under(part, treatments)
    plain = _under(part, treatments.with_columns(share=pl.lit(0.0)))
    pairs = chosen.join(plain.select("question_id", full="right", full_gflop="gflop"), on="question_id")
    pairs = pairs.sort("question_id")
    deletes = bool((treatments["share"] >= EPSILON).any())
    difference = _difference(pairs, deletes=deletes)
    methods, layers = (treatments[c].unique().to_list() for c in ("by", "at"))
    row: dict[str, Any] = {
        "method": methods[0] if len(methods) == 1 else "several",
        "layer": layers[0] if len(layers) == 1 else None,
        "deleted_share": float(treatments["share"].to_numpy().mean()),
        "kept_share": float(pairs["layer_share"].to_numpy().mean()),
        "accuracy": float(pairs["right"].to_numpy().mean()),
        "accuracy_full": float(pairs["full"].to_numpy().mean()),
        "difference": difference.value,
        "ci_low": difference.low,
        "ci_high": difference.high,
        "margin": max_loss,
        "verdict": non_inferiority(difference.low, difference.high, max_loss),
        "gflop_share": float(pairs["gflop"].to_numpy().sum() / pairs["full_gflop"].to_numpy().sum()),
        "n": pairs.height,
        **_over_hard(part, pairs, max_loss, deletes=deletes),
    }
    for column, rival in RIVALS.items():
        at = pl.col("at") if rival == "random" else pl.lit(0)
        same = _under(part, treatments.with_columns(by=pl.lit(rival), at=at))
        row[column] = float(same["right"].to_numpy().mean()) if same.height == pairs.height else None
    return row


def _difference(pairs: pl.DataFrame, *, deletes: bool) -> Estimate:
    difference = paired_difference(pairs["right"].to_numpy(), pairs["full"].to_numpy(), pairs["cluster"].to_numpy())
    return difference if deletes else replace(difference, low=0.0, high=0.0)


def _over_hard(part: pl.DataFrame, pairs: pl.DataFrame, max_loss: float, *, deletes: bool) -> dict[str, Any]:
    """Difference and verdict over questions that are wrong with the smallest downsampled image; nulls without any."""
    small = part.filter((pl.col("method") == DOWNSAMPLE) & (pl.col("deleted_share") > 0))
    small = small.filter(pl.col("deleted_share") == pl.col("deleted_share").max())
    hard = pairs.join(small.filter(pl.col("right") < 0.5), on="question_id", how="semi")
    if hard.is_empty():
        return {"hard_difference": None, "hard_low": None, "hard_high": None, "hard_verdict": None, "n_hard": None}
    difference = _difference(hard, deletes=deletes)
    return {
        "hard_difference": difference.value,
        "hard_low": difference.low,
        "hard_high": difference.high,
        "hard_verdict": non_inferiority(difference.low, difference.high, max_loss),
        "n_hard": hard.height,
    }


def _under(part: pl.DataFrame, treatments: pl.DataFrame) -> pl.DataFrame:
    """The row of each question under its treatment; a share of 0 is the same for every method and layer."""
    rows = part.join(treatments, on="question_id")
    same = (pl.col("deleted_share") - pl.col("share")).abs() < EPSILON
    by = (pl.col("method") == pl.col("by")) & (pl.col("layer") == pl.col("at"))
    nothing = (pl.col("share") < EPSILON) & (pl.col("layer") == 0)
    return rows.filter(same & (by | nothing)).unique("question_id", keep="first", maintain_order=True)


def policy_text(policy: PolicyFile, judged: pl.DataFrame) -> str:
    """`policy.yaml`: the rules, after a comment with their results on the judging half of the images."""
    lines = [
        "# Which share of visual tokens each kind of question can do without. Apply it with",
        "#   vtsweep evaluate --policy THIS_FILE SWEEP.yaml",
        "# Chosen on one half of the images; on the other half:",
    ]
    for row in judged.iter_rows(named=True):
        interval = "" if row["ci_low"] is None else f" [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"
        lines.append(
            f"#   {row['policy']} {row['tier']} {row['family']}: {row['kept_share']:.0%} of tokens kept, accuracy"
            f" {row['accuracy']:.3f}, {row['difference']:+.3f}{interval} against all tokens, n = {row['n']};"
            f" loses at most {row['margin']:g}: {row['verdict']}{_hard_words(row)}"
        )
    return "\n".join(lines) + "\n" + yaml.safe_dump(policy.model_dump(mode="json"), sort_keys=False)


def _hard_words(row: Mapping[str, Any]) -> str:
    if row["hard_difference"] is None:
        return ""
    ends = "" if row["hard_low"] is None else f" [{row['hard_low']:+.3f}, {row['hard_high']:+.3f}]"
    return (
        f"; of {row['n_hard']} that the smallest downsampled image leaves wrong {row['hard_difference']:+.3f}{ends}:"
        f" {row['hard_verdict']}"
    )
