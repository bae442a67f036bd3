"""Do compression metrics predict how far an image can be reduced? And the adaptive policy that follows if they do."""

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
"""Depth known before the decoder runs: what an adaptive policy may look at."""


def needed_shares(answers: pl.DataFrame, method: str) -> pl.DataFrame:
    """The smallest share of tokens with which each question is still right, and stays right with every larger share.

    Columns: question_id, family, tier, half, needed, and where `answers` has them answer and n_objects. Questions that
    are wrong with all tokens need no number and are left out. So are those that the smallest budget answers, deleted or
    downsampled: they would be right by the form of the answer, and say nothing of what an image needs. With several
    seeds, right means right for at least half of them. Deletion is before the decoder.
    """
    before = shares_right(answers).filter(pl.col("layer") == 0)
    rows = before.filter(pl.col("method") == method)
    right = (pl.col("right") >= 0.5).cum_min().over("question_id", order_by="deleted_share")
    keys = ["question_id", "family", "tier", "half"]
    largest = rows.filter(right).group_by(keys, maintain_order=True).agg(pl.col("deleted_share").max())
    least = before.filter(pl.col("method").is_in([method, "downsample"]) & (pl.col("deleted_share") > 0))
    least = least.filter(pl.col("deleted_share") == pl.col("deleted_share").max().over("method"))
    easy = least.filter(pl.col("right") >= 0.5).select("question_id").unique()
    found = largest.select(*keys, needed=1.0 - pl.col("deleted_share")).join(easy, on="question_id", how="anti")
    known = [c for c in ("answer", "n_objects") if c in answers.columns]
    return found.join(answers.select("question_id", *known).unique("question_id"), on="question_id", how="left")


def link_table(needed: pl.DataFrame, metrics: pl.DataFrame, method: str) -> pl.DataFrame:
    """Table `link` for the questions of one tier: each metric at each depth against the share needed.

    Questions are compared within a family and a right answer alone, and with the number of objects held fixed
    (`stats.conditional`), so that neither what is asked, nor what the model likes to answer, nor the count makes a
    correlation by itself. Metrics that are undefined for an image are left out.
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
        found = conditional_association(x, y, covariates, strata=strata.astype(np.int64))
        for k, name in enumerate(defined):
            if not np.isfinite(found.rho[k, 0]):
                continue
            numbers = {c: float(getattr(found, f)[k, 0]) for c, f in _COLUMNS.items()}
            given = ", ".join([*kinds, *["n_objects"] * held])
            row = {"tier": part["tier"][0], "metric": name, "depth": depth, "method": method, "given": given}
            rows.append({**row, **numbers, "n": part.height})
    if not rows:
        return pl.DataFrame()
    table = pl.DataFrame(rows)
    return table.with_columns(q=pl.Series(benjamini_hochberg(table["p"].to_numpy()))).sort("p", "metric")


_COLUMNS = {"rho": "rho", "ci_low": "low", "ci_high": "high", "p": "p"}


def adaptive_policy(
    answers: pl.DataFrame, metrics: pl.DataFrame, tier: str, method: str, max_loss: float
) -> tuple[list[AdaptiveRule], pl.DataFrame]:
    """The adaptive rules of a tier's families and their rows of table `policy`; none where no metric can be compared.

    On the choosing half alone, the metric most correlated with the share needed is found, and each family's images
    are split into thirds by it; each third's share is the largest deletion that is non-inferior at `max_loss` there, as
    all smaller ones are (`policy.choose_rules`). A third has a third of the questions to show it with: 73 without a
    difference for a margin of 0.05. Only metrics of the projected tokens compete: they are known before the decoder
    runs, so that using them costs no pass. One that is undefined for any image of the tier does not.
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
    every = shares_right(answers).join(metrics.select("question_id", value=metric), on="question_id")
    rules, found, treated = [], [], []
    for (family,), rows in every.group_by(["family"], maintain_order=True):
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
        found.append({"policy": "adaptive", **names, **judge(judging, treatments, max_loss)})
    if treated:
        judged = judge(every.filter(pl.col("half") == "judge"), pl.concat(treated), max_loss)
        found.insert(0, {"policy": "adaptive", "tier": tier, "family": "all", **judged})
    return rules, pl.DataFrame(found, infer_schema_length=None)


def most_accurate_method(answers: pl.DataFrame) -> str | None:
    """The method of highest mean accuracy over its curve, on the choosing half and before the decoder.

    Attention is left out: before the decoder it costs a pass of its own. So is downsampling, the rival.
    """
    usable = (
        (pl.col("half") == "choose")
        & (pl.col("layer") == 0)
        & ~pl.col("method").is_in(["question_attention", "downsample"])
    )
    means = answers.filter(usable).group_by("method").agg(pl.col("correct").mean())
    return str(means.sort("correct", "method", descending=[True, False])["method"][0]) if means.height else None


def _largest_share(curves: pl.DataFrame, max_loss: float) -> float:
    """The largest deletion that is non-inferior at `max_loss`, as every smaller one is; 0 if none is shown to be."""
    full = curves.filter(pl.col("deleted_share") == 0).select("question_id", full="right")
    largest = 0.0
    for setting in curves.select(SETTING).unique().sort("deleted_share").to_dicts():
        if not shown_within(curves, setting, full, max_loss):
            break
        largest = float(setting["deleted_share"])
    return largest
