"""The trial table as the report shows it: effect of the complexity ratio with intervals over seeds, Pareto front."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

N_RESAMPLES = 2000


def finished(trials: pl.DataFrame) -> pl.DataFrame:
    """Trials that ended well, by ratio and seed."""
    return trials.filter(pl.col("status") == "done").sort("complexity_ratio", "seed")


def outcomes(trials: pl.DataFrame) -> list[str]:
    """Accuracy columns, the tiers' totals first."""
    found = [c for c in trials.columns if c.startswith("accuracy/")]
    return sorted(found, key=lambda c: (c.count("/"), c))


def compression_columns(trials: pl.DataFrame) -> list[str]:
    """Columns with the change of a compression metric against the base model, else with its value."""
    changes = [c for c in trials.columns if c.startswith("delta/")]
    return changes or [c for c in trials.columns if c.startswith("compression/")]


def effect_of_ratio(trials: pl.DataFrame, column: str, seed: int = 0) -> pl.DataFrame:
    """Mean of `column` at each ratio with a 95 % percentile bootstrap interval over seeds.

    Returns:
        complexity_ratio, mean, ci_low, ci_high (null where a ratio has one seed only: it cannot be known), n_seeds.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for (ratio,), part in finished(trials).drop_nulls(column).group_by("complexity_ratio", maintain_order=True):
        values = part[column].to_numpy().astype(float)
        low = high = None
        if len(values) > 1:
            means = values[rng.integers(0, len(values), (N_RESAMPLES, len(values)))].mean(1)
            low, high = (float(v) for v in np.quantile(means, [0.025, 0.975]))
        rows.append((ratio, float(values.mean()), low, high, len(values)))
    names = {"complexity_ratio": pl.Float64, "mean": pl.Float64, "ci_low": pl.Float64, "ci_high": pl.Float64}
    return pl.DataFrame(rows, schema={**names, "n_seeds": pl.Int32}, orient="row").sort("complexity_ratio")


def smallest_sufficient_ratio(trials: pl.DataFrame, column: str, share: float = 0.9) -> float | None:
    """Smallest ratio whose mean reaches `share` of the gain from the smallest ratio to the best one.

    None when nothing is gained: the best mean is that of the smallest ratio, or its interval reaches that mean.
    """
    effect = effect_of_ratio(trials, column)
    if effect.height < 2:
        return None
    start = effect["mean"][0]
    best = effect.sort("mean", descending=True).row(0, named=True)
    if best["mean"] <= start or (best["ci_low"] is not None and best["ci_low"] <= start):
        return None
    enough = effect.filter(pl.col("mean") >= start + share * (best["mean"] - start))
    return float(enough["complexity_ratio"][0])


def pareto_front(x: Sequence[float], y: Sequence[float]) -> list[int]:
    """Indices of the points no other one beats in both `x` and `y` (larger is better), by rising `x`."""
    order = sorted(range(len(x)), key=lambda i: (-x[i], -y[i]))
    front: list[int] = []
    best = -np.inf
    for i in order:
        if y[i] > best:
            front.append(i)
            best = y[i]
    return front[::-1]
