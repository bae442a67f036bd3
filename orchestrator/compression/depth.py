"""Thirds of depth: early, middle, late."""

from __future__ import annotations

import polars as pl

THIRDS = ("early", "middle", "late")


def third_of(layer: int, n_points: int) -> str:
    """The third of tap point `layer`, 0 to n_points - 1; equal shares, the remainder goes to the earlier thirds."""
    if not 0 <= layer < n_points:
        raise ValueError(f"layer {layer} is not one of {n_points} tap points")
    return THIRDS[3 * layer // n_points]


def third_expression(n_points: int, layer: str = "layer") -> pl.Expr:
    """`third_of` as a polars expression over the column `layer`."""
    index = 3 * pl.col(layer) // n_points
    return pl.when(index == 0).then(pl.lit("early")).when(index == 1).then(pl.lit("middle")).otherwise(pl.lit("late"))
