"""Deletion, rival, knock-out and patching tables prepared for the report."""

from __future__ import annotations

import polars as pl


def over_seeds(deletion: pl.DataFrame) -> pl.DataFrame:
    """`deletion` with the seeds of random deletion averaged; the interval is the hull of the seeds' intervals.

    The hull is conservative: it is wider than an interval of the mean.
    """
    keys = ["checkpoint", "method", "layer", "deleted_share", "family", "tier"]
    return (
        deletion.group_by(keys, maintain_order=True)
        .agg(
            pl.col("accuracy", "kept_tokens", "seconds").mean(),
            pl.col("ci_low").min(),
            pl.col("ci_high").max(),
            pl.col("n").max(),
            pl.len().alias("n_seeds"),
        )
        .sort(keys)
    )


def measured_rivals(rivals: pl.DataFrame) -> pl.DataFrame:
    """Rows of `rivals` with measured settings, which figures draw."""
    columns = ["method", "budget", "tier", "family", "difficulty", "accuracy", "ci_low", "ci_high", "difference", "n"]
    return rivals.filter(pl.col("accuracy").is_not_null()).select(columns)


def whole_image(patching: pl.DataFrame) -> pl.DataFrame:
    """Rows in which the states of all visual tokens are replaced."""
    return patching.filter(pl.col("place") == "image") if "place" in patching.columns else patching


def _width() -> pl.Expr:
    return pl.col("last_layer") - pl.col("first_layer")


def narrow_routes(routes: pl.DataFrame) -> pl.DataFrame:
    """Rows with a route blocked in the narrowest windows, with their centre, in layers."""
    return routes.filter(_width() == _width().min()).with_columns(
        ((pl.col("first_layer") + pl.col("last_layer")) / 2).alias("centre")
    )


def whole_routes(routes: pl.DataFrame) -> pl.DataFrame:
    """Rows with a route blocked in all layers, if there are narrower windows too."""
    return routes.filter((_width() == _width().max()) & (_width() > _width().min()))


def averaged_replacing(replacing: pl.DataFrame) -> pl.DataFrame:
    """`replacing` averaged over families and seeds."""
    keys = ["checkpoint", "kind", "place", "layer", "tier"]
    return replacing.group_by(keys, maintain_order=True).agg(pl.col("accuracy").mean(), pl.col("n").sum())


def without_knockout(knockout: pl.DataFrame) -> pl.DataFrame:
    """Rows without a blocked window."""
    return knockout.filter(pl.col("last_layer") < pl.col("first_layer"))


def windows(knockout: pl.DataFrame) -> pl.DataFrame:
    """Rows with a window of blocked layers, with its centre, in layers."""
    return knockout.filter(pl.col("last_layer") >= pl.col("first_layer")).with_columns(
        ((pl.col("first_layer") + pl.col("last_layer")) / 2).alias("centre")
    )
