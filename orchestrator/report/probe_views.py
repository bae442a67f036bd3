"""The probe table prepared for the report: skill above the baseline, position kinds, first readable layer."""

from __future__ import annotations

import polars as pl

POSITION_KINDS = (
    "vision_mean",
    "vision_single",
    "vision_object",
    "vision_background",
    "text_mean",
    "text_single",
    "last",
    "before",
)
POSITION_NAMES = {
    "vision_mean": "mean of vision tokens",
    "vision_single": "one vision token (mean over places)",
    "vision_object": "vision tokens that show an object",
    "vision_background": "vision tokens that show none",
    "text_mean": "mean of text tokens",
    "text_single": "one text token (mean over places)",
    "last": "last token",
    "before": "last token before the image",
    "pixels": "pixels (control)",
}

BEYOND = ("skill_beyond", "beyond_low", "beyond_high")
DECODER_TAPS = ("decoder", "cross_v", "cross_k")
"""Taps with the decoder's layers; the others besides `decoder` hold the vision tokens of `cross_kv` models."""


def decoder_taps(probes: pl.DataFrame) -> list[str]:
    """The taps of `DECODER_TAPS` that hold scores."""
    scored = set(probes.filter(pl.col("score").is_not_null())["tap"])
    return [tap for tap in DECODER_TAPS if tap in scored]


def vision_tap(probes: pl.DataFrame) -> str:
    """The tap of vision tokens over the decoder's depth: states, else values, else keys."""
    return next(iter(decoder_taps(probes.filter(pl.col("position").str.starts_with("vision")))), "decoder")


def encoder_baseline(probes: pl.DataFrame) -> pl.DataFrame:
    """Score of each attribute from the mean token of the last tapped block of the vision encoder: attribute, score."""
    rows = best_linear(probes).filter((pl.col("tap") == "encoder") & (pl.col("position") == "vision_mean"))
    return rows.filter(pl.col("layer") == pl.col("layer").max()).select("attribute", "score")


def with_skill(probes: pl.DataFrame) -> pl.DataFrame:
    """`probes` with `skill` = (score - baseline) / (1 - baseline) and its interval, and `position_kind`.

    Skill is accuracy or R2 on one scale: 0 is the majority class or the training mean, 1 is perfect, negative is worse
    than the baseline.
    """
    room = 1 - pl.col("baseline")
    single = pl.col("position").str.contains(r"_\d+$")
    return probes.with_columns(
        ((pl.col("score") - pl.col("baseline")) / room).alias("skill"),
        ((pl.col("ci_low") - pl.col("baseline")) / room).alias("skill_low"),
        ((pl.col("ci_high") - pl.col("baseline")) / room).alias("skill_high"),
        ((pl.col("control") - pl.col("baseline")) / room).alias("skill_control"),
        pl.when(single)
        .then(pl.col("position").str.replace(r"_\d+$", "_single"))
        .otherwise(pl.col("position"))
        .alias("position_kind"),
    )


def best_linear(probes: pl.DataFrame) -> pl.DataFrame:
    """Rows of the linear solver of each attribute (ridge for numbers, logistic for categories), else of the MLP."""
    order = {"ridge": 0, "logistic": 0, "mlp": 1}
    ranked = probes.with_columns(
        pl.col("solver").replace_strict(order, default=2, return_dtype=pl.Int8).alias("_order")
    )
    least = pl.col("_order").min().over("tap", "layer", "position", "attribute")
    return ranked.filter(pl.col("_order") == least).drop("_order")


def by_kind(probes: pl.DataFrame) -> pl.DataFrame:
    """Mean over the positions of each kind: tap, layer, position_kind, attribute, skill, score, n_places, ....

    The interval of single tokens is the mean of their intervals: it is that of one token's score.
    """
    numbers = ("skill", "skill_low", "skill_high", "skill_control", "score", "baseline", "control", *BEYOND)
    return (
        with_skill(best_linear(probes))
        .filter(pl.col("score").is_not_null())
        .group_by("tap", "layer", "position_kind", "attribute", "kind", maintain_order=True)
        .agg(
            *(pl.col(c).mean() for c in numbers),
            pl.col("skill").min().alias("skill_worst"),
            pl.col("skill").max().alias("skill_best"),
            pl.len().alias("n_places"),
            pl.col("n_test", "n_classes", "n_left_out").max(),
            pl.col("balanced_score").mean(),
        )
        .sort("tap", "position_kind", "layer", maintain_order=True)
    )


def first_layers(probes: pl.DataFrame) -> pl.DataFrame:
    """The first layer at which each attribute is readable from text and from vision.

    Readable: the lower end of the score's interval is above the baseline and above the shuffled-label control. Layer 0
    is the input of the first layer.

    Returns:
        attribute, position_kind (text_mean, vision_mean), first_layer (null: nowhere), best_layer of n_layers,
        best_score, and there balanced_score, baseline and skill_beyond with its interval; n_classes, n_left_out.
    """
    rows = by_kind(probes).filter(
        (pl.col("tap") == "decoder") & pl.col("position_kind").is_in(["text_mean", "vision_mean"])
    )
    readable = (pl.col("skill_low") > 0) & (pl.col("skill_low") > pl.col("skill_control").fill_null(0))
    return (
        rows.group_by("attribute", "position_kind", maintain_order=True)
        .agg(
            pl.col("layer").filter(readable).min().alias("first_layer"),
            pl.col("layer").sort_by("skill", descending=True).first().alias("best_layer"),
            pl.col("score").sort_by("skill", descending=True).first().alias("best_score"),
            pl.col("balanced_score", "baseline", *BEYOND).sort_by("skill", descending=True).first(),
            pl.len().alias("n_layers"),
            pl.col("kind", "n_classes", "n_left_out").first(),
        )
        .sort("position_kind", maintain_order=True)
    )
