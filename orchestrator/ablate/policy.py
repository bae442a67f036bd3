"""From deletion curves to a policy: how many visual tokens to keep for a given loss of accuracy, judged on others.

Rules are chosen on the questions of the `choose` half and judged on the `judge` half; no image is in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import yaml

from orchestrator.config import PolicyFile, PolicyRule

SETTING = ["method", "layer", "deleted_share"]
RIVALS = {"accuracy_random": "random", "accuracy_downsample": "downsample"}
N_BOOTSTRAP = 1000
EPSILON = 1e-9


def shares_right(answers: pl.DataFrame) -> pl.DataFrame:
    """One row a question and setting: `right`, the share of seeds with a right answer, and means of cost."""
    keys = [*SETTING, "question_id", "family", "tier", "half"]
    means = [pl.col(c).mean() for c in ("kept_tokens", "n_vision", "gflop")]
    return answers.group_by(keys, maintain_order=True).agg(pl.col("correct").mean().alias("right"), *means)


def scopes(rows: pl.DataFrame) -> Iterator[tuple[str, str, pl.DataFrame]]:
    """(tier, family, rows): each tier as a whole under the family `all`, then each of its families."""
    for (tier,), part in rows.group_by(["tier"], maintain_order=True):
        yield str(tier), "all", part
        for (family,), own in part.group_by(["family"], maintain_order=True):
            yield str(tier), str(family), own


def choose_rules(answers: pl.DataFrame, max_loss: float) -> list[PolicyRule]:
    """For every scope, the setting of least operations that stays within `max_loss` on the choosing half.

    A setting counts only if every smaller deletion by the same method is within the loss too, so that a lucky point
    far down a curve is not taken for a plateau. Of equal costs the more accurate one wins. Downsampling is a rival,
    never a rule. A scope that the model never answers right gets no rule.
    """
    rows = shares_right(answers).filter((pl.col("half") == "choose") & (pl.col("method") != "downsample"))
    rules = []
    for tier, family, part in scopes(rows):
        means = part.group_by(SETTING).agg(pl.col("right", "gflop").mean()).sort(SETTING)
        full = means.filter(pl.col("deleted_share") == 0)["right"].max()
        if not full:  # no accuracy that could be kept
            continue
        within = pl.col("right") >= float(full) - max_loss - EPSILON  # type: ignore[arg-type]
        allowed = means.filter(within.cum_min().over("method", "layer", order_by="deleted_share"))
        best = allowed.sort("gflop", "right", "method", descending=[False, True, False]).row(0, named=True)
        rules.append(PolicyRule(tier=tier, family=family, **{key: best[key] for key in SETTING}))
    return rules


def judge_rules(answers: pl.DataFrame, rules: list[PolicyRule], seed: int = 0) -> pl.DataFrame:
    """Table `policy` for fixed rules, on the judging half."""
    rows = shares_right(answers).filter(pl.col("half") == "judge")
    parts = {(tier, family): part for tier, family, part in scopes(rows)}
    found = []
    for rule in rules:
        part = parts.get((rule.tier, rule.family))
        if part is not None:
            questions = part["question_id"].unique()
            shares = pl.DataFrame({"question_id": questions, "share": [rule.deleted_share] * len(questions)})
            judged = judge(part, shares, rule.method, rule.layer, seed)
            found.append({"policy": "fixed", **rule.model_dump(), **judged})
    return pl.DataFrame(found, infer_schema_length=None)


def judge(part: pl.DataFrame, shares: pl.DataFrame, method: str, layer: int, seed: int) -> dict[str, Any]:
    """Accuracy, cost and rivals of deleting `shares` (question_id, share) against all tokens, paired by question.

    Rivals delete as much from the same questions; random deletion at the same layer, downsampling before the model.
    """
    chosen = _at_shares(part, shares, method, layer)
    plain = part.filter((pl.col("deleted_share") == 0) & (pl.col("layer") == 0)).unique("question_id")
    pairs = chosen.join(plain.select("question_id", full="right", full_gflop="gflop"), on="question_id")
    pairs = pairs.sort("question_id")
    difference = (pairs["right"] - pairs["full"]).to_numpy()
    low, high = bootstrap_mean(difference, seed)
    row: dict[str, Any] = {
        "kept_share": float((pairs["kept_tokens"] / pairs["n_vision"]).to_numpy().mean()),
        "accuracy": float(pairs["right"].to_numpy().mean()),
        "accuracy_full": float(pairs["full"].to_numpy().mean()),
        "difference": float(difference.mean()),
        "ci_low": low,
        "ci_high": high,
        "gflop_share": float(pairs["gflop"].to_numpy().sum() / pairs["full_gflop"].to_numpy().sum()),
        "n": pairs.height,
    }
    for column, rival in RIVALS.items():
        same = _at_shares(part, shares, rival, layer if rival == "random" else 0)
        row[column] = float(same["right"].to_numpy().mean()) if same.height == pairs.height else None
    return row


def _at_shares(part: pl.DataFrame, shares: pl.DataFrame, method: str, layer: int) -> pl.DataFrame:
    """The rows in which each question has its share deleted; nothing deleted is the same at every layer."""
    rows = part.filter(pl.col("method") == method).join(shares, on="question_id")
    same = (pl.col("deleted_share") - pl.col("share")).abs() < EPSILON
    where = pl.when(pl.col("share") < EPSILON).then(0).otherwise(layer)
    return rows.filter(same & (pl.col("layer") == where))


def bootstrap_mean(values: np.ndarray, seed: int, confidence: float = 0.95) -> tuple[float | None, float | None]:
    """Percentile interval of a mean over questions; None for fewer than two."""
    if len(values) < 2:
        return None, None
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(N_BOOTSTRAP, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def policy_text(policy: PolicyFile, judged: pl.DataFrame) -> str:
    """`policy.yaml`: the rules, after a comment that says how they did on the other half of the images."""
    lines = [
        "# Which share of visual tokens each kind of question can do without. Apply it with",
        "#   vtsweep evaluate --policy THIS_FILE SWEEP.yaml",
        "# Chosen on one half of the images; on the other half:",
    ]
    for row in judged.iter_rows(named=True):
        interval = "" if row["ci_low"] is None else f" [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"
        lines.append(
            f"#   {row['policy']} {row['tier']} {row['family']}: {row['kept_share']:.0%} of tokens kept, accuracy"
            f" {row['accuracy']:.3f}, {row['difference']:+.3f}{interval} against all tokens, n = {row['n']}"
        )
    return "\n".join(lines) + "\n" + yaml.safe_dump(policy.model_dump(mode="json"), sort_keys=False)
