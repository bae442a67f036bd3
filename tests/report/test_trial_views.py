import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.report.trial_views import (
    compression_columns,
    effect_of_ratio,
    outcomes,
    pareto_front,
    smallest_sufficient_ratio,
)
from orchestrator.report.words import _trials as statements
from tests.report.fake_study import fake_trials

pairs = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20)


@given(pairs)
def test_no_trial_beats_one_on_the_front_and_every_other_is_matched(points):
    x, y = zip(*points, strict=True)
    front = [points[i] for i in pareto_front(x, y)]
    for fx, fy in front:
        assert not any(px >= fx and py >= fy and (px, py) != (fx, fy) for px, py in points)
    for px, py in points:
        assert any(fx >= px and fy >= py for fx, fy in front)


def _trials(accuracy_by_ratio: dict[float, list[float]]) -> pl.DataFrame:
    rows = [
        {"trial": f"{r}-{s}", "complexity_ratio": r, "seed": s, "status": "done", "accuracy/high": a}
        for r, values in accuracy_by_ratio.items()
        for s, a in enumerate(values)
    ]
    return pl.DataFrame(rows)


def test_one_seed_has_no_interval_whatever_its_own_trial_says():
    trials = _trials({0.0: [0.3], 1.0: [0.5]}).with_columns(
        pl.lit(0.2).alias("accuracy/high_low"), pl.lit(0.6).alias("accuracy/high_high")
    )
    effect = effect_of_ratio(trials, "accuracy/high")
    assert effect["ci_low"].to_list() == [None, None]
    assert effect["ci_high"].to_list() == [None, None]


def test_interval_over_seeds_is_students_and_needs_three():
    effect = effect_of_ratio(_trials({0.0: [0.3], 0.5: [0.5, 0.6], 1.0: [0.4, 0.5, 0.6]}), "accuracy/high")
    assert effect["n_seeds"].to_list() == [1, 2, 3]
    assert effect["ci_low"].to_list()[:2] == [None, None]
    reach = 4.302653 * 0.1 / 3**0.5  # t of two degrees of freedom
    assert effect["ci_low"][2] == pytest.approx(0.5 - reach, abs=1e-6)
    assert effect["ci_high"][2] == pytest.approx(0.5 + reach, abs=1e-6)


def test_trials_that_differ_in_other_settings_are_no_further_seeds():
    once = _trials({0.0: [0.1, 0.2, 0.3], 1.0: [0.4, 0.5, 0.6]})
    twice = pl.concat([once, once.with_columns(pl.col("accuracy/high") + 0.1)])
    effect = effect_of_ratio(twice, "accuracy/high")
    assert effect["n_seeds"].to_list() == [3, 3]
    assert effect["mean"].to_list() == pytest.approx([0.25, 0.55])
    widths = [effect_of_ratio(t, "accuracy/high").select(pl.col("ci_high") - pl.col("ci_low")) for t in (once, twice)]
    np.testing.assert_allclose(widths[0].to_numpy(), widths[1].to_numpy())


def test_smallest_sufficient_ratio_reaches_nine_tenths_of_the_gain():
    rows = {0.0: [0.30, 0.31], 0.25: [0.45, 0.46], 0.5: [0.50, 0.51], 1.0: [0.51, 0.52]}
    assert smallest_sufficient_ratio(_trials(rows), "accuracy/high") is None  # two seeds: no interval
    three = {ratio: [*values, sum(values) / 2] for ratio, values in rows.items()}
    assert smallest_sufficient_ratio(_trials(three), "accuracy/high") == 0.5


def test_no_gain_means_no_sufficient_ratio():
    assert smallest_sufficient_ratio(_trials({0.0: [0.5, 0.5, 0.5], 1.0: [0.4, 0.4, 0.4]}), "accuracy/high") is None
    assert smallest_sufficient_ratio(_trials({0.0: [0.5, 0.5, 0.5], 1.0: [0.45, 0.6, 0.5]}), "accuracy/high") is None


def test_failed_trials_do_not_count():
    trials = _trials({0.0: [0.3], 1.0: [0.9]}).with_columns(
        status=pl.when(pl.col("complexity_ratio") == 1).then(pl.lit("failed")).otherwise(pl.col("status"))
    )
    assert effect_of_ratio(trials, "accuracy/high")["complexity_ratio"].to_list() == [0.0]


def test_ends_of_intervals_are_no_outcomes():
    trials = fake_trials(np.random.default_rng(0))
    assert outcomes(trials)[:2] == ["accuracy/high", "accuracy/low"]
    assert not [c for c in outcomes(trials) + compression_columns(trials) if c.endswith(("_low", "_high"))]


def test_accuracy_is_stated_beside_what_blind_answers_earn():
    texts = [s.text for s in statements(fake_trials(np.random.default_rng(0)), {})]
    assert any("high-tier" in t and "Without seeing the image, the commonest answers earn 38 %" in t for t in texts)
