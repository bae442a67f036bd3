"""What a table `probes` says: redundancy over tokens, where text first knows, and the map over vision tokens."""

from __future__ import annotations

import polars as pl

KEYS = ["tap", "layer", "attribute", "solver"]
SINGLE_VISION = r"^vision_\d+$"
TEXT_POSITIONS = r"^(text_mean|text_\d+|last)$"


def _known(probes: pl.DataFrame) -> pl.DataFrame:
    return probes.filter(pl.col("score").is_not_null())


def redundancy(probes: pl.DataFrame, shares: tuple[float, ...] = (0.8, 0.9, 0.95)) -> pl.DataFrame:
    """Share of single vision tokens that reach x of the mean token's score above the baseline, by layer and attribute.

    "Almost any single token predicts the count" holds where this share is near one. Layers at which the mean token is
    not better than the baseline (its interval reaches it) have nothing to reach and are left out.

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


def first_known(probes: pl.DataFrame) -> pl.DataFrame:
    """The first layer at which a text position knows each attribute, and where it knows it best.

    A position knows an attribute where its score's interval lies above both the baseline and the shuffled-label
    control. The pixel baseline's score stands beside it: "text knows it" means more than "the image shows it" only
    where the text's score is the higher.

    Returns:
        tap, attribute, solver, position, `first_layer` (null: never), `best_layer`, `best_score`, `pixels` (score).
    """
    known = _known(probes)
    pixels = known.filter(pl.col("tap") == "pixels").select("attribute", "solver", pixels="score")
    text = known.filter(pl.col("position").str.contains(TEXT_POSITIONS)).with_columns(
        knows=pl.col("ci_low") > pl.max_horizontal("baseline", "control")
    )
    keys = ["tap", "attribute", "solver", "position"]
    return (
        text.group_by(keys)
        .agg(
            pl.col("layer").filter(pl.col("knows")).min().alias("first_layer"),
            pl.col("layer").sort_by("score").last().alias("best_layer"),
            pl.col("score").max().alias("best_score"),
        )
        .join(pixels, on=["attribute", "solver"], how="left")
        .sort(keys)
    )


def token_map(probes: pl.DataFrame, tap: str = "decoder") -> pl.DataFrame:
    """Score of each kept single vision token, by layer: a map over places.

    Returns:
        layer, attribute, solver, position, score, control.
    """
    return (
        _known(probes)
        .filter((pl.col("tap") == tap) & pl.col("position").str.contains(SINGLE_VISION))
        .select("layer", "attribute", "solver", "position", "score", "control")
        .sort("attribute", "solver", "layer", "position")
    )


def heat_map(probes: pl.DataFrame, position: str, tap: str = "decoder") -> pl.DataFrame:
    """Layer x attribute scores of one position (figs. 4 and 5); `text` and `vision_single` are means over tokens.

    Returns:
        layer, attribute, kind, solver, score, ci_low, ci_high, control, baseline (means where several tokens stand).
    """
    pattern = {"text": r"^text_\d+$", "vision_single": SINGLE_VISION}.get(position, f"^{position}$")
    columns = ["score", "ci_low", "ci_high", "control", "baseline"]
    return (
        _known(probes)
        .filter((pl.col("tap") == tap) & pl.col("position").str.contains(pattern))
        .group_by("layer", "attribute", "kind", "solver")
        .agg(*(pl.col(c).mean() for c in columns))
        .sort("attribute", "solver", "layer")
    )
