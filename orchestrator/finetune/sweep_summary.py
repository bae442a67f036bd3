"""What a sweep says about the complexity ratio: effect with intervals, Pareto front, sufficient ratio, cost.

Two sources of chance stand between a ratio and its accuracy: which seed trained the model, and which questions were
asked. The hierarchical bootstrap resamples both, seeds first and then questions within each trial. The same resampled
questions serve every trial, which were asked the same ones: differences between ratios are paired.

Letters: R ratios, S seeds, Q questions, K resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float

from orchestrator.errors import DataError

N_RESAMPLES = 2000
LEVEL = 0.95
ENOUGH = 0.9
"""Share of the best gain that a sufficient ratio reaches."""


@dataclass(frozen=True)
class RatioEffect:
    """Accuracy by ratio, its gain over the smallest ratio, and the smallest sufficient ratio."""

    table: pl.DataFrame
    """complexity_ratio, n_seeds, mean, ci_low, ci_high; gain, gain_low, gain_high (against the smallest ratio)."""
    slope: tuple[float, float, float]
    """Accuracy per unit of ratio by least squares, with its interval."""
    sufficient: float | None
    """Smallest ratio that reaches `ENOUGH` of the best mean's gain; None where accuracy does not rise."""
    sufficient_share: Mapping[float, float]
    """Ratio -> share of resamples in which it is the smallest sufficient one; those without a gain are left out."""
    rises: bool
    """Whether the largest gain exceeds chance: its interval, widened (Bonferroni) for having been picked among the
    ratios, lies above 0."""


def correct_by_trial(
    answers: Mapping[tuple[float, int], pl.DataFrame], tier: str, family: str | None = None
) -> tuple[list[float], dict[float, Bool[np.ndarray, "S Q"]]]:
    """Ratios in order, and for each the right answers of its seeds to the same questions.

    Args:
        answers: (ratio, seed) -> table `answers` of that trial.

    Raises:
        DataError: trials were asked different questions, or none of this tier and family.
    """
    chosen = pl.col("tier") == tier if family is None else (pl.col("tier") == tier) & (pl.col("family") == family)
    rows: dict[float, list[np.ndarray]] = {}
    asked: list[str] | None = None
    for (ratio, seed), frame in sorted(answers.items(), key=lambda item: item[0]):
        part = frame.filter(chosen).sort("question_id")
        questions = part["question_id"].to_list()
        if not questions:
            raise DataError(f"answers of ratio {ratio}, seed {seed}: no {family or ''} questions of tier {tier!r}")
        if asked is not None and questions != asked:
            raise DataError(
                f"answers of ratio {ratio}, seed {seed}: not the questions that the other trials were asked"
            )
        asked = questions
        rows.setdefault(ratio, []).append(part["correct"].to_numpy())
    return sorted(rows), {ratio: np.stack(values) for ratio, values in rows.items()}


def resampled_means(
    correct: Mapping[float, Bool[np.ndarray, "S Q"]], ratios: Sequence[float], seed: int = 0, n: int = N_RESAMPLES
) -> Float[np.ndarray, "K R"]:
    """Mean accuracy of each ratio in each resample of seeds (within a ratio) and questions (common to all)."""
    rng = np.random.default_rng(seed)
    n_questions = correct[ratios[0]].shape[1]
    weights = rng.multinomial(n_questions, np.full(n_questions, 1 / n_questions), size=n) / n_questions
    means = np.empty((n, len(ratios)))
    for place, ratio in enumerate(ratios):
        by_seed = weights @ correct[ratio].T.astype(float)  # (K, S)
        n_seeds = by_seed.shape[1]
        centre = by_seed.mean(1)
        drawn = np.take_along_axis(by_seed, rng.integers(n_seeds, size=by_seed.shape), axis=1).mean(1)
        # A resample of S seeds varies S / (S - 1) times too little: much with two or three of them.
        means[:, place] = centre + (drawn - centre) * np.sqrt(n_seeds / max(1, n_seeds - 1))
    return means


def effect_of_ratio(
    answers: Mapping[tuple[float, int], pl.DataFrame], tier: str = "high", family: str | None = None, seed: int = 0
) -> RatioEffect:
    """Effect of the complexity ratio on the accuracy of a tier (or one family of it), by hierarchical bootstrap.

    With one seed a ratio the interval covers the choice of questions only. Raises `DataError` as `correct_by_trial`.
    """
    ratios, correct = correct_by_trial(answers, tier, family)
    mean = np.array([correct[r].mean() for r in ratios])
    resampled = resampled_means(correct, ratios, seed)
    gains = resampled - resampled[:, :1]
    low, high = _interval(resampled)
    gain_low, gain_high = _interval(gains)
    table = pl.DataFrame(
        {
            "complexity_ratio": ratios,
            "n_seeds": [len(correct[r]) for r in ratios],
            "mean": mean,
            "ci_low": low,
            "ci_high": high,
            "gain": mean - mean[0],
            "gain_low": gain_low,
            "gain_high": gain_high,
        }
    )
    picked = (1 - LEVEL) / 2 / max(1, len(ratios) - 1)
    rises = bool(len(ratios) > 1 and np.quantile(gains[:, int(mean.argmax())], picked) > 0)
    found = smallest_sufficient(ratios, mean) if rises else None
    each = [smallest_sufficient(ratios, row) for row in resampled]
    there = [r for r in each if r is not None]
    shares = {r: there.count(r) / len(there) for r in ratios if r in there}
    return RatioEffect(table, _slope(np.array(ratios), mean, resampled), found, shares, rises)


def _interval(values: Float[np.ndarray, "K R"]) -> tuple[np.ndarray, np.ndarray]:
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(values, [tail, 100 - tail], axis=0)
    return low, high


def _slope(ratios: np.ndarray, mean: np.ndarray, resampled: np.ndarray) -> tuple[float, float, float]:
    if len(ratios) < 2:
        return (float("nan"),) * 3
    centred = ratios - ratios.mean()
    weights = centred / (centred**2).sum()
    low, high = _interval((resampled @ weights)[:, None])
    return float(mean @ weights), float(low[0]), float(high[0])


def smallest_sufficient(ratios: Sequence[float], mean: Sequence[float] | np.ndarray) -> float | None:
    """Smallest ratio with at least `ENOUGH` of the gain from the smallest ratio to the best; None without a gain."""
    gain = np.asarray(mean) - mean[0]
    if gain.max() <= 0:
        return None
    return float(ratios[int(np.argmax(gain >= ENOUGH * gain.max() - 1e-12))])


def pareto_front(values: Float[np.ndarray, "N M"], directions: Sequence[int]) -> Bool[np.ndarray, " N"]:
    """Which trials no other one beats: at least as good in every objective and better in one.

    Args:
        directions: +1 where larger is better, -1 where smaller is.
    """
    oriented = np.asarray(values, dtype=float) * np.asarray(directions)
    not_worse = (oriented[:, None, :] >= oriented[None, :, :]).all(-1)
    better = (oriented[:, None, :] > oriented[None, :, :]).any(-1)
    return ~(not_worse & better).any(0)


def cost_of_ratio(trials: pl.DataFrame) -> pl.DataFrame:
    """Mean cost of a trial at each ratio: training and whole seconds, floating-point operations, answer-bearing tokens.

    The ratio changes neither examples nor steps, so differences here are those of question and answer length.
    """
    costs = [c for c in ("train_seconds", "trial_seconds", "train_flops", "train_tokens") if c in trials.columns]
    done = trials.filter(pl.col("status") == "done")
    return (
        done.group_by("complexity_ratio")
        .agg(pl.len().alias("n_trials"), *[pl.col(c).mean() for c in costs])
        .sort("complexity_ratio")
    )


def summarise_sweep(trials: pl.DataFrame, answers: Mapping[tuple[float, int], pl.DataFrame]) -> dict[str, Any]:
    """The answer of a sweep in plain values: for each tier whether accuracy rises, by how much, and at what cost."""
    found: dict[str, Any] = {"cost": cost_of_ratio(trials).to_dicts(), "tiers": {}}
    tiers = sorted({t for frame in answers.values() for t in frame["tier"].unique().to_list()})
    for tier in tiers:
        effect = effect_of_ratio(answers, tier)
        found["tiers"][tier] = {
            "effect": effect.table.to_dicts(),
            "slope": effect.slope,
            "rises": effect.rises,
            "sufficient_ratio": effect.sufficient,
            "sufficient_share": dict(effect.sufficient_share),
        }
    return found
