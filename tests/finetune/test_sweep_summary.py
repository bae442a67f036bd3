"""The summary of a sweep finds an effect that is there, none that is not, and orders trials honestly."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import DataError
from orchestrator.finetune.sweep_summary import (
    cost_of_ratio,
    effect_of_ratio,
    pareto_front,
    smallest_sufficient,
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
    effect = effect_of_ratio(answers_with({0.0: 0.1, 0.25: 0.5, 0.5: 0.9, 1.0: 0.9}))
    assert effect.rises
    assert effect.sufficient == 0.5
    assert effect.slope[1] > 0
    table = effect.table
    assert (table["ci_low"] <= table["mean"]).all()
    assert (table["mean"] <= table["ci_high"]).all()
    assert sum(effect.sufficient_share.values()) == pytest.approx(1.0)


def test_no_rise_is_called_none() -> None:
    effects = [effect_of_ratio(answers_with(dict.fromkeys(RATIOS, 0.5), 3, seed=k), seed=k) for k in range(20)]
    false_alarms = [effect for effect in effects if effect.rises]
    assert len(false_alarms) <= 2
    assert all(effect.sufficient is None for effect in effects if not effect.rises)


def test_a_falling_low_tier_shows_a_negative_slope() -> None:
    effect = effect_of_ratio(answers_with({0.0: 0.9, 0.5: 0.6, 1.0: 0.3}))
    assert effect.slope[2] < 0
    assert not effect.rises


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    hits = 0
    for k in range(60):
        rng = np.random.default_rng(k)
        frames = {
            (0.0, s): pl.DataFrame(
                {"question_id": [f"{i:03d}" for i in range(200)], "tier": "high", "correct": rng.random(200) < 0.4}
            )
            for s in range(3)
        }
        row = effect_of_ratio(frames, seed=k).table.row(0, named=True)
        hits += row["ci_low"] <= 0.4 <= row["ci_high"]
    assert hits >= 52


def test_trials_of_different_questions_are_refused() -> None:
    frames = answers_with({0.0: 0.1, 1.0: 0.9})
    frames[1.0, 1] = frames[1.0, 1].with_columns(pl.col("question_id") + "x")
    with pytest.raises(DataError, match="not the questions"):
        effect_of_ratio(frames)


def test_the_smallest_ratio_that_is_good_enough_wins() -> None:
    assert smallest_sufficient(RATIOS, [0.0, 0.89, 0.91, 1.0]) == 0.5
    assert smallest_sufficient(RATIOS, [0.2, 0.2, 0.2, 0.2]) is None
    assert smallest_sufficient(RATIOS, [0.2, 0.1, 0.1, 0.1]) is None


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_no_trial_of_the_front_is_beaten_and_every_other_is(points: list[tuple[int, int]]) -> None:
    values = np.array(points, dtype=float)
    front = pareto_front(values, (1, -1))
    assert front.any()
    for i, (x, y) in enumerate(points):
        beaten = any(a >= x and b <= y and (a > x or b < y) for a, b in points)
        assert front[i] == (not beaten)


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
    summary = summarise_sweep(trials, answers_with({0.0: 0.1, 1.0: 0.8}))
    assert summary["tiers"]["high"]["rises"]
    assert summary["tiers"]["high"]["sufficient_ratio"] == 1.0
