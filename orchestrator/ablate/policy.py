"""From deletion curves to a policy: how many visual tokens to keep for a given loss of accuracy, judged on other images.

Rules are chosen on the questions of the `choose` half and judged on the `judge` half; no question is in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

_SETTING = ["method", "layer", "deleted_share"]
_RIVALS = {"accuracy_random": "random", "accuracy_downsample": "downsample"}
N_BOOTSTRAP = 1000


@dataclass(frozen=True)
class Rule:
    """Delete `deleted_share` of the visual tokens by `method` at decoder layer `layer` for questions of a family."""

    tier: str
    family: str
    method: str
    layer: int
    deleted_share: float


def shares_right(answers: pl.DataFrame) -> pl.DataFrame:
    """One row a question and setting: `right`, the share of seeds with a right answer, and means of cost."""
    keys = [*_SETTING, "question_id", "family", "tier", "half"]
    means = [pl.col(c).mean() for c in ("kept_tokens", "n_vision", "gflop")]
    return answers.group_by(keys, maintain_order=True).agg(pl.col("correct").mean().alias("right"), *means)


def scopes(answers: pl.DataFrame) -> Iterator[tuple[str, str, pl.DataFrame]]:
    """(tier, family, questions): each family of a tier, and the tier as a whole under the family `all`."""
    for (tier,), part in answers.group_by(["tier"], maintain_order=True):
        yield str(tier), "all", part
        for (family,), rows in part.group_by(["family"], maintain_order=True):
            yield str(tier), str(family), rows


def choose_rules(answers: pl.DataFrame, max_loss: float) -> list[Rule]:
    """For every scope, the setting that deletes most within `max_loss` of the full accuracy on the choosing half.

    Where two delete equally many, the more accurate wins. Downsampling is a rival, never a rule.
    """
    rows = shares_right(answers).filter(pl.col("half") == "choose")
    rules = []
    for tier, family, part in scopes(rows):
        means = part.group_by(_SETTING).agg(pl.col("right").mean(), pl.col("kept_tokens").mean())
        full = means.filter((pl.col("deleted_share") == 0) & (pl.col("layer") == 0))["right"].max()
        if full is None:
            continue
        allowed = means.filter((pl.col("method") != "downsample") & (pl.col("right") >= float(full) - max_loss - 1e-9))  # type: ignore[arg-type]
        # Deleting at a later layer saves less: compare by operations first, then by accuracy.
        cost = part.group_by(_SETTING).agg(pl.col("gflop").mean())
        best = (
            allowed.join(cost, on=_SETTING)
            .sort(["gflop", "right", "method"], descending=[False, True, False])
            .row(0, named=True)
        )
        rules.append(Rule(tier, family, best["method"], best["layer"], best["deleted_share"]))
    return rules


def judge_rules(answers: pl.DataFrame, rules: list[Rule], seed: int = 0) -> pl.DataFrame:
    """Table `policy` for fixed rules, on the judging half."""
    rows = shares_right(answers).filter(pl.col("half") == "judge")
    by_scope = {(tier, family): part for tier, family, part in scopes(rows)}
    found = []
    for rule in rules:
        part = by_scope.get((rule.tier, rule.family))
        if part is None:
            continue
        chosen = _setting(part, rule.method, rule.layer, rule.deleted_share)
        shares = pl.DataFrame({"question_id": chosen["question_id"], "share": rule.deleted_share})
        found.append({"policy": "fixed", **asdict(rule), **judged(part, chosen, shares, rule.layer, seed)})
    return pl.DataFrame(found)


def judged(part: pl.DataFrame, chosen: pl.DataFrame, shares: pl.DataFrame, layer: int, seed: int) -> dict[str, Any]:
    """Accuracy, cost and rivals of `chosen` (one row a question) against all tokens, with a paired bootstrap interval.

    `shares` gives the share deleted for each question, so that rivals delete as much from the same questions.
    """
    full = _setting(part, "random", 0, 0.0)
    full = (
        full
        if full.height
        else part.filter((pl.col("deleted_share") == 0) & (pl.col("layer") == 0)).unique("question_id")
    )
    pairs = chosen.join(full.select("question_id", full="right", full_gflop="gflop"), on="question_id").sort(
        "question_id"
    )
    difference = (pairs["right"] - pairs["full"]).to_numpy()
    low, high = bootstrap_mean(difference, seed)
    row: dict[str, Any] = {
        "kept_share": float((pairs["kept_tokens"] / pairs["n_vision"]).to_numpy().mean()),
        "accuracy": float(pairs["right"].to_numpy().mean()),
        "accuracy_full": float(pairs["full"].to_numpy().mean()),
        "difference": float(difference.mean()),
        "ci_low": low,
        "ci_high": high,
        "gflop_share": float(pairs["gflop"].sum() / pairs["full_gflop"].sum()),
        "n": pairs.height,
    }
    for column, method in _RIVALS.items():
        rival = part.filter((pl.col("method") == method) & (pl.col("layer") == (layer if method == "random" else 0)))
        same = rival.join(shares, on="question_id").filter((pl.col("deleted_share") - pl.col("share")).abs() < 1e-9)
        row[column] = float(same["right"].to_numpy().mean()) if same.height else None
    return row


def _setting(part: pl.DataFrame, method: str, layer: int, share: float) -> pl.DataFrame:
    return part.filter(
        (pl.col("method") == method) & (pl.col("layer") == layer) & ((pl.col("deleted_share") - share).abs() < 1e-9)
    )


def bootstrap_mean(values: np.ndarray, seed: int, confidence: float = 0.95) -> tuple[float | None, float | None]:
    """Percentile interval of a mean over questions; None for fewer than two."""
    if len(values) < 2:
        return None, None
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(N_BOOTSTRAP, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
