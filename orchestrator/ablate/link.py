"""Association of compression metrics with the share of tokens that an image needs, and the adaptive policy from it."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from orchestrator.ablate.policy import SETTING, judge, shares_right, shown_within
from orchestrator.config import AdaptiveRule
from orchestrator.stats.conditional import MIN_IMAGES as MIN_QUESTIONS
from orchestrator.stats.conditional import conditional_association
from orchestrator.stats.multiplicity import benjamini_hochberg

N_BINS = 3
BEFORE = "projector"
"""Depth at which an adaptive policy measures its metric: known before the decoder runs."""


def needed_shares(answers: pl.DataFrame, method: str) -> pl.DataFrame:
    """The smallest share of tokens with which each question is right, and is right with every larger share too.

    Columns: question_id, family, tier, half, needed, and if `answers` has them answer and n_objects. Left out are
    questions that are wrong with all tokens, and those that are right at the smallest budget, deleted or downsampled:
    they can be answered from the form of the answer. With several seeds, right means right for at least half of them.
    Deletion is before the decoder.
    """
    before = shares_right(answers).filter(pl.col("layer") == 0)
    rows = before.filter(pl.col("method") == method)
    right = (pl.col("right") >= 0.5).cum_min().over("question_id", order_by="deleted_share")
    keys = ["question_id", "family", "tier", "half"]
    largest = rows.filter(right).group_by(keys, maintain_order=True).agg(pl.col("deleted_share").max())
    least = before.filter(pl.col("method").is_in([method, "downsample"]) & (pl.col("deleted_share") > 0))
    least = least.filter(pl.col("deleted_share") == pl.col("deleted_share").max().over("method"))
    easy = least.filter(pl.col("right") >= 0.5).select("question_id").unique()
    needed = largest.select(*keys, needed=1.0 - pl.col("deleted_share")).join(easy, on="question_id", how="anti")
    details = [c for c in ("answer", "n_objects") if c in answers.columns]
    return needed.join(answers.select("question_id", *details).unique("question_id"), on="question_id", how="left")


def link_table(needed: pl.DataFrame, metrics: pl.DataFrame, method: str) -> pl.DataFrame:
    """Table `link` for the questions of one tier: association of each metric at each depth with the share needed.

    Questions are compared within strata of family and right answer, given the number of objects (`stats.conditional`):
    question type, answer preference and object count cannot cause the association. Metrics that are undefined for an
    image are left out.
    """
    names = [c for c in metrics.columns if c not in ("question_id", "depth")]
    rows: list[dict[str, Any]] = []
    joined = needed.join(metrics, on="question_id").sort("question_id")
    kinds = [c for c in ("family", "answer") if c in joined.columns]
    for (depth,), part in joined.group_by(["depth"], maintain_order=True):
        defined = [c for c in names if part[c].fill_nan(None).null_count() == 0]
        if part.height < MIN_QUESTIONS or not defined:
            continue
        strata = part.select(pl.struct(pl.col(kinds).fill_null("")).rank("dense")).to_series().to_numpy()
        counts = part["n_objects"].cast(pl.Float64) if "n_objects" in part.columns else None
        held = counts is not None and not counts.null_count()
        covariates = counts.to_numpy()[:, None] if held and counts is not None else np.zeros((part.height, 1))
        x, y = part.select(pl.col(defined).cast(pl.Float64)).to_numpy(), part["needed"].to_numpy()[:, None]
        association = conditional_association(x, y, covariates, strata=strata.astype(np.int64))
        for k, name in enumerate(defined):
            if not np.isfinite(association.rho[k, 0]):
                continue
            numbers = {c: float(getattr(association, f)[k, 0]) for c, f in _COLUMNS.items()}
            held_names = ", ".join([*kinds, *["n_objects"] * held])
            row = {"tier": part["tier"][0], "metric": name, "depth": depth, "method": method, "given": held_names}
            rows.append({**row, **numbers, "n": part.height})
    if not rows:
        return pl.DataFrame()
    table = pl.DataFrame(rows)
    return table.with_columns(q=pl.Series(benjamini_hochberg(table["p"].to_numpy()))).sort("p", "metric")


_COLUMNS = {"rho": "rho", "ci_low": "low", "ci_high": "high", "p": "p"}


def adaptive_policy(
    answers: pl.DataFrame, metrics: pl.DataFrame, tier: str, method: str, max_loss: float
) -> tuple[list[AdaptiveRule], pl.DataFrame]:
    """The adaptive rules of a tier's families and their rows of table `policy`; none if no metric can be compared.

    Rules are chosen on the choosing half: the metric most correlated with the share needed splits each family's images
    into thirds, and each third deletes the largest share that is non-inferior at `max_loss` there together with all
    smaller shares (`policy.choose_rules`). A margin of 0.05 takes 73 questions per third without a difference. Only
    metrics of the projected tokens are candidates, since they are known before the decoder runs; metrics undefined for
    an image of the tier are not.
    """
    answers = answers.filter(pl.col("tier") == tier)
    metrics = metrics.filter(pl.col("depth") == BEFORE).join(answers, on="question_id", how="semi")
    defined = metrics.select(pl.selectors.float().fill_nan(None).null_count()).row(0, named=True)
    metrics = metrics.drop(name for name, missing in defined.items() if missing)
    choosing = needed_shares(answers.filter(pl.col("half") == "choose"), method)
    link = link_table(choosing, metrics, method)
    if not link.height:
        return [], pl.DataFrame()
    metric = link.sort(pl.col("rho").abs(), descending=True)["metric"][0]
    questions = shares_right(answers).join(metrics.select("question_id", value=metric), on="question_id")
    rules, judgements, treated = [], [], []
    for (family,), rows in questions.group_by(["family"], maintain_order=True):
        curves = rows.filter((pl.col("method") == method) & (pl.col("layer") == 0) & (pl.col("half") == "choose"))
        judging = rows.filter(pl.col("half") == "judge")
        if not curves.height or not judging.height:
            continue
        values = curves.filter(pl.col("deleted_share") == 0)["value"].to_numpy()
        edges = np.quantile(values, np.linspace(0, 1, N_BINS + 1)[1:-1])
        at = np.searchsorted(edges, curves["value"].to_numpy(), side="right")
        shares = [_largest_share(curves.filter(pl.Series(at == b)), max_loss) for b in range(N_BINS)]
        names = {"tier": tier, "family": str(family)}
        rules.append(
            AdaptiveRule(
                **names, metric=metric, method=method, edges=tuple(edges.tolist()), deleted_shares=tuple(shares)
            )
        )
        treatments = judging.unique("question_id", maintain_order=True).select(
            "question_id",
            by=pl.lit(method),
            at=pl.lit(0),
            share=pl.col("value").map_elements(rules[-1].share_at, return_dtype=pl.Float64),
        )
        treated.append(treatments)
        judgements.append({"policy": "adaptive", **names, **judge(judging, treatments, max_loss)})
    if treated:
        judged = judge(questions.filter(pl.col("half") == "judge"), pl.concat(treated), max_loss)
        judgements.insert(0, {"policy": "adaptive", "tier": tier, "family": "all", **judged})
    return rules, pl.DataFrame(judgements, infer_schema_length=None)


def most_accurate_method(answers: pl.DataFrame) -> str | None:
    """The method of highest mean accuracy over its deletion curve, on the choosing half and before the decoder.

    Left out are attention, which costs a forward pass before the decoder, and downsampling, which is a rival.
    """
    usable = (
        (pl.col("half") == "choose")
        & (pl.col("layer") == 0)
        & ~pl.col("method").is_in(["question_attention", "downsample"])
    )
    means = answers.filter(usable).group_by("method").agg(pl.col("correct").mean())
    return str(means.sort("correct", "method", descending=[True, False])["method"][0]) if means.height else None


def _largest_share(curves: pl.DataFrame, max_loss: float) -> float:
    """The largest share such that it and every smaller one are non-inferior at `max_loss`; 0 if there is none."""
    full = curves.filter(pl.col("deleted_share") == 0).select("question_id", full="right")
    largest = 0.0
    for setting in curves.select(SETTING).unique().sort("deleted_share").to_dicts():
        if not shown_within(curves, setting, full, max_loss):
            break
        largest = float(setting["deleted_share"])
    return largest
