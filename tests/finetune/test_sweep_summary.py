"""The summary of a sweep finds an effect that is there, none that is not, and orders trials honestly."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy import stats as scipy_stats

from orchestrator.errors import DataError
from orchestrator.finetune.sweep_summary import (
    accuracy_by_seed,
    contrasts,
    cost_of_ratio,
    effect_of_ratio,
    summarise_sweep,
)

RATIOS = (0.0, 0.25, 0.5, 1.0)


def answers_with(
    accuracy: dict[float, float], n_seeds: int = 2, n: int = 400, seed: int = 0
) -> dict[tuple[float, int], pl.DataFrame]:
    rng = np.random.default_rng(seed)
    return {
        (ratio, seed): pl.DataFrame(
            {
                "question_id": [f"q{i:04d}" for i in range(n)],
                "family": "relation",
                "tier": "high",
                "correct": rng.random(n) < p,
            }
        )
        for ratio, p in accuracy.items()
        for seed in range(n_seeds)
    }


def test_a_real_rise_is_found_with_its_sufficient_ratio() -> None:
    effect = effect_of_ratio(accuracy_by_seed(answers_with({0.0: 0.1, 0.25: 0.5, 0.5: 0.9, 1.0: 0.9}, 3), "high"))
    assert effect.rises
    assert effect.sufficient == 0.5
    assert (effect.table["ci_low"] <= effect.table["mean"]).all()
    assert (effect.table["mean"] <= effect.table["ci_high"]).all()


def test_two_seeds_give_no_interval_and_no_verdict() -> None:
    effect = effect_of_ratio(accuracy_by_seed(answers_with({0.0: 0.1, 1.0: 0.9}, 2), "high"))
    assert effect.rises is None
    assert effect.sufficient is None
    assert effect.table["ci_low"].null_count() == 2
    table = contrasts(trials_with(2), ("accuracy/high",))
    assert table["verdict"].to_list() == [None] * table.height
    assert table["ci_low"].null_count() == table.height


def test_no_rise_is_called_none() -> None:
    effects = [
        effect_of_ratio(accuracy_by_seed(answers_with(dict.fromkeys(RATIOS, 0.5), 3, seed=k), "high"))
        for k in range(20)
    ]
    assert sum(bool(effect.rises) for effect in effects) <= 2
    assert all(effect.sufficient is None for effect in effects if not effect.rises)


def trials_with(n_seeds: int, n_outcomes: int = 40, effect: float = 0.3, seed: int = 0) -> pl.DataFrame:
    """Trials whose high-tier accuracy rises with the ratio while seeds differ; every other outcome is noise."""
    rng = np.random.default_rng(seed)
    rows = []
    for s in range(n_seeds):
        own = rng.normal()
        for ratio in (0.0, 0.5, 1.0):
            row = {"complexity_ratio": ratio, "seed": s, "status": "done"}
            row["accuracy/high"] = 0.5 + 0.1 * own + effect * ratio + 0.02 * rng.normal()
            row |= {f"drift/vision/x{k}": rng.normal() for k in range(n_outcomes)}
            rows.append(row)
    return pl.DataFrame(rows)


def test_contrasts_are_paired_by_seed_and_primary_ones_judged_first() -> None:
    table = contrasts(trials_with(5), ("accuracy/high", "drift/vision/late"))
    row = table.row(0, named=True)
    assert (row["outcome"], row["primary"], row["verdict"], row["n_seeds"]) == ("accuracy/high", True, "supported", 5)
    assert row["q"] is None
    assert row["detectable"] < 0.2  # the spread between seeds is paired away
    explored = table.filter(~pl.col("primary"))
    assert explored["verdict"].null_count() == explored.height
    assert explored["n_explored"][0] == 40
    known = explored["p"].to_numpy()
    assert explored["q"].to_numpy() == pytest.approx(scipy_stats.false_discovery_control(known))


def test_the_best_of_many_explored_outcomes_is_rarely_called_found() -> None:
    found = sum(contrasts(trials_with(4, seed=k), ("accuracy/high",))["q"].drop_nulls().min() < 0.05 for k in range(20))
    assert found <= 3


def test_seeds_that_agree_exactly_give_no_interval_of_no_width() -> None:
    """A tier that every trial answers fully right: nothing says how far other seeds would differ."""
    trials = trials_with(4).with_columns(pl.lit(1.0).alias("accuracy/low"))
    row = contrasts(trials, ("accuracy/low",)).row(by_predicate=pl.col("outcome") == "accuracy/low", named=True)
    assert (row["effect"], row["n_seeds"]) == (0.0, 4)
    assert [row[k] for k in ("ci_low", "ci_high", "p", "detectable")] == [None] * 4
    assert row["verdict"] == "undecided"


def test_trials_of_different_questions_are_refused() -> None:
    frames = answers_with({0.0: 0.1, 1.0: 0.9})
    frames[1.0, 1] = frames[1.0, 1].with_columns(pl.col("question_id") + "x")
    with pytest.raises(DataError, match="not the questions"):
        accuracy_by_seed(frames, "high")


def test_cost_and_summary_are_plain_values() -> None:
    trials = pl.DataFrame(
        {
            "complexity_ratio": [0.0, 0.0, 1.0],
            "status": ["done"] * 3,
            "train_seconds": [1.0, 3.0, 4.0],
            "train_flops": [1e9, 1e9, 2e9],
        }
    )
    assert cost_of_ratio(trials)["train_seconds"].to_list() == [2.0, 4.0]
    summary = summarise_sweep(trials, answers_with({0.0: 0.1, 1.0: 0.8}, 3))
    assert summary["tiers"]["high"]["rises"]
    assert summary["tiers"]["high"]["sufficient_ratio"] == 1.0
