"""Redundancy over vision tokens: share of single tokens that predict as well as their mean."""

from __future__ import annotations

import polars as pl

KEYS = ["tap", "layer", "attribute", "solver"]
SINGLE_VISION = r"^vision_\d+$"


def _known(probes: pl.DataFrame) -> pl.DataFrame:
    return probes.filter(pl.col("score").is_not_null())


def redundancy(probes: pl.DataFrame, shares: tuple[float, ...] = (0.8, 0.9, 0.95)) -> pl.DataFrame:
    """Share of single vision tokens that reach x of the mean token's score above the baseline, by layer and attribute.

    "Almost any single token predicts the count" holds where this share is near one. Layers at which the mean token is
    not better than the baseline (its interval includes it) are left out.

    Returns:
        KEYS, `share` (x), `reached` (share of tokens, 0 to 1), `n_tokens`, `mean_token` and `best_token` (scores).
    """
    known = _known(probes)
    mean = known.filter((pl.col("position") == "vision_mean") & (pl.col("ci_low") > pl.col("baseline")))
    mean = mean.select(*KEYS, "baseline", mean_token="score")
    single = known.filter(pl.col("position").str.contains(SINGLE_VISION)).select(*KEYS, "score")
    joined = single.join(mean, on=KEYS)
    tables = [
        joined.with_columns(
            reached=pl.col("score") - pl.col("baseline") >= x * (pl.col("mean_token") - pl.col("baseline"))
        )
        .group_by(KEYS)
        .agg(
            pl.lit(x).alias("share"),
            pl.col("reached").mean(),
            pl.len().cast(pl.Int32).alias("n_tokens"),
            pl.col("mean_token").first(),
            pl.col("score").max().alias("best_token"),
        )
        for x in shares
    ]
    return pl.concat(tables).sort([*KEYS, "share"])
