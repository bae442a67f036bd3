"""Do compression metrics predict how far an image can be reduced? And the adaptive policy that follows if they do."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from scipy.stats import false_discovery_control, spearmanr

from orchestrator.ablate.policy import judged, shares_right

N_BOOTSTRAP = 500
N_BINS = 3
MIN_QUESTIONS = 12
"""Fewer questions than this say nothing about a correlation."""


def needed_shares(answers: pl.DataFrame, method: str, layer: int = 0) -> pl.DataFrame:
    """The smallest share of tokens with which each question is still right, and stays right with every larger share.

    Columns: question_id, family, tier, half, needed. Questions that are wrong with all tokens need no number and are
    left out. With several seeds, right means right for at least half of them.
    """
    rows = shares_right(answers).filter((pl.col("method") == method) & (pl.col("layer") == layer))
    found = []
    for (question,), part in rows.sort("deleted_share").group_by(["question_id"], maintain_order=True):
        right = (part["right"] >= 0.5).to_list()
        if not right or not right[0] or part["deleted_share"][0] > 0:
            continue
        last = right.index(False) - 1 if False in right else len(right) - 1
        first = part.row(0, named=True)
        needed = 1.0 - part["deleted_share"][last]
        found.append({"question_id": question, "needed": needed, **{k: first[k] for k in ("family", "tier", "half")}})
    schema = {"question_id": pl.String, "needed": pl.Float64, "family": pl.String, "tier": pl.String, "half": pl.String}
    return pl.DataFrame(found, schema=schema)


def link_table(needed: pl.DataFrame, metrics: pl.DataFrame, seed: int = 0) -> pl.DataFrame:
    """Table `link`: Spearman correlation of every metric and third with the share needed, within a tier.

    Ranks are taken within question families and then pooled, so that a family that needs more tokens and asks about
    other scenes does not make a correlation by itself.
    """
    rng = np.random.default_rng(seed)
    names = [c for c in metrics.columns if c not in ("question_id", "third")]
    joined = needed.join(metrics, on="question_id")
    rows: list[dict[str, Any]] = []
    for (tier, third), part in joined.group_by(["tier", "third"], maintain_order=True):
        if part.height < MIN_QUESTIONS:
            continue
        ranked = part.select("needed", *names).with_columns(
            ((pl.all().fill_nan(None).rank().over(part["family"])) / pl.len().over(part["family"]))
        )
        target = ranked["needed"].to_numpy()
        draws = rng.integers(part.height, size=(N_BOOTSTRAP, part.height))
        for name in names:
            values = ranked[name].cast(pl.Float64).to_numpy()
            if np.isnan(values).any() or np.ptp(values) == 0 or np.ptp(target) == 0:
                continue
            rho, p = spearmanr(values, target)
            resampled = [np.corrcoef(values[d], target[d])[0, 1] for d in draws if np.ptp(target[d]) > 0]
            low, high = np.nanquantile(resampled, [0.025, 0.975])
            rows.append(
                {
                    "tier": tier,
                    "metric": name,
                    "third": third,
                    "rho": float(rho),
                    "ci_low": float(low),
                    "ci_high": float(high),
                    "p": float(p),
                    "n": part.height,
                }
            )
    schema = {"tier": pl.String, "metric": pl.String, "third": pl.String}
    if not rows:
        return pl.DataFrame(
            schema={**schema, **dict.fromkeys(("rho", "ci_low", "ci_high", "p", "q"), pl.Float64), "n": pl.Int32}
        )
    table = pl.DataFrame(rows)
    parts = [
        g.with_columns(q=pl.Series(false_discovery_control(g["p"].to_numpy())))
        for _, g in table.group_by("tier", maintain_order=True)
    ]
    return pl.concat(parts).sort(["tier", "p"])


def adaptive_rows(
    answers: pl.DataFrame, metrics: pl.DataFrame, link: pl.DataFrame, method: str, max_loss: float, seed: int = 0
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of table `policy` for the adaptive policy of each tier, and the policy itself as plain values.

    The metric most correlated with the share needed (on all questions' ranks, choosing half only for its bins) splits
    images into thirds; for each the choosing half sets the largest deletion within `max_loss`.
    """
    rows, rules = [], []
    curves = shares_right(answers).filter((pl.col("method") == method) & (pl.col("layer") == 0))
    for (tier,), part in curves.group_by(["tier"], maintain_order=True):
        best = link.filter(pl.col("tier") == tier).sort(pl.col("rho").abs(), descending=True)
        if not best.height:
            continue
        metric, third = best["metric"][0], best["third"][0]
        values = metrics.filter(pl.col("third") == third).select("question_id", value=metric)
        part = part.join(values, on="question_id")
        choosing = part.filter(pl.col("half") == "choose")
        edges = np.quantile(choosing["value"].to_numpy(), np.linspace(0, 1, N_BINS + 1)[1:-1])
        part = part.with_columns(bin=pl.Series(np.searchsorted(edges, part["value"].to_numpy())))
        shares = [
            _largest_share(part.filter((pl.col("half") == "choose") & (pl.col("bin") == b)), max_loss)
            for b in range(N_BINS)
        ]
        judging = part.filter(pl.col("half") == "judge").with_columns(
            share=pl.col("bin").replace_strict(dict(enumerate(shares)), return_dtype=pl.Float64)
        )
        chosen = judging.filter((pl.col("deleted_share") - pl.col("share")).abs() < 1e-9)
        if not chosen.height:
            continue
        everything = shares_right(answers).filter((pl.col("half") == "judge") & (pl.col("tier") == tier))
        row = judged(everything, chosen, chosen.select("question_id", "share"), 0, seed)
        mean_share = float(chosen["share"].to_numpy().mean())
        rows.append(
            {
                "policy": "adaptive",
                "tier": tier,
                "family": "all",
                "method": method,
                "layer": 0,
                "deleted_share": mean_share,
                **row,
            }
        )
        rules.append(
            {
                "tier": tier,
                "metric": metric,
                "third": third,
                "method": method,
                "edges": [float(e) for e in edges],
                "deleted_shares": shares,
            }
        )
    return rows, rules


def _largest_share(part: pl.DataFrame, max_loss: float) -> float:
    means = part.group_by("deleted_share").agg(pl.col("right").mean()).sort("deleted_share")
    if not means.height or means["deleted_share"][0] > 0:
        return 0.0
    allowed = means.filter(pl.col("right") >= means["right"][0] - max_loss - 1e-9)
    return float(allowed["deleted_share"].max())  # type: ignore[arg-type]
