"""Skill of a probe beyond covariates: conditional rank correlation given, for example, the number of objects.

A probe that decodes the number of objects also predicts every correlated attribute. `skill_beyond` is the rank
correlation of held-out predictions with the truth among images of similar covariates (`stats.conditional`): 0 for a
probe whose predictions depend on the covariates only, however well they score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from orchestrator.errors import ConfigError, did_you_mean
from orchestrator.stats.conditional import MIN_IMAGES, conditional_association


@dataclass(frozen=True)
class Covariates:
    """Covariates held fixed: names and (n_images, q) float64 values, NaN if missing."""

    names: tuple[str, ...]
    values: np.ndarray


def covariates_of(images: pl.DataFrame, kinds: Mapping[str, str], names: Sequence[str]) -> Covariates | None:
    """The requested covariates that the source has; None if it has none of them.

    Raises:
        ConfigError: one of them is categorical.
    """
    known = [name for name in names if name in kinds and name in images.columns]
    for name in known:
        if kinds[name] == "categorical":
            numeric = [attribute for attribute, kind in kinds.items() if kind != "categorical"]
            raise ConfigError(
                f"probe.beyond: {name!r} is categorical; expected a count or a continuous attribute."
                f"{did_you_mean(name, numeric)}"
            )
    if not known:
        return None
    columns = [images[name].cast(pl.Float64).fill_null(float("nan")).to_numpy() for name in known]
    return Covariates(tuple(known), np.stack(columns, axis=1))


def skill_beyond(
    predicted: np.ndarray, truth: np.ndarray, valid: np.ndarray, covariates: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Conditional rank correlation of predictions with the truth, and the ends of its 95 % interval, each (B,).

    Args:
        predicted: (m, B) held-out predictions of B probes of one attribute.
        truth, valid: (m,) of the same images.
        covariates: (m, q) of the same images.

    NaN with fewer than `MIN_IMAGES` complete images, or if covariates determine the attribute.
    """
    rows = valid & np.isfinite(covariates).all(axis=1) & np.isfinite(predicted).all(axis=1)
    if rows.sum() < MIN_IMAGES:
        blank = np.full(predicted.shape[1], np.nan)
        return blank, blank, blank
    association = conditional_association(predicted[rows].astype(np.float64), truth[rows, None], covariates[rows])
    return association.rho[:, 0], association.low[:, 0], association.high[:, 0]
