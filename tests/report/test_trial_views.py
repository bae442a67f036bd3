import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.report.figures.trials import first_column
from orchestrator.report.ratio_words import change_words
from orchestrator.report.ratio_words import ratio_statements as statements
from orchestrator.report.trial_views import (
    compression_columns,
    effect_of_ratio,
    outcomes,
    pareto_front,
    smallest_sufficient_ratio,
)
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
    assert any("high tier" in t and "without the image earn 38 %" in t for t in texts)


def _row(
    outcome: str, effect: float | None, low: float | None, high: float | None, **more: object
) -> dict[str, object]:
    row = {"outcome": outcome, "primary": True, "low_ratio": 0.0, "high_ratio": 1.0, "effect": effect, "ci_low": low}
    row |= {
        "ci_high": high,
        "p": 0.01,
        "q": None,
        "n_seeds": 5,
        "smallest": 0.1,
        "verdict": "supported",
        "detectable": 0.1,
    }
    return row | more


RANK, GINI = "delta/vision/stable_rank_centred/middle", "delta/vision/gini/middle"


def test_what_became_of_compression_comes_first_then_accuracy_then_forgetting():
    trials = fake_trials(np.random.default_rng(0))
    rows = [_row("drift/vision/late", 0.1, 0.0, 0.2), _row("accuracy/high", 0.1, 0.05, 0.15), _row(RANK, 1.0, 0.5, 1.5)]
    texts = [s.text for s in statements(trials, {"contrasts": rows})]
    order = [
        next(i for i, t in enumerate(texts) if piece in t)
        for piece in ("compressed", "high tier", "low tier", "drift/")
    ]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("outcome", "effect", "words"),
    [(RANK, 1.0, "less compressed"), (RANK, -1.0, "more compressed"), (GINI, 1.0, "more compressed")],
)
def test_the_direction_of_a_metric_decides_what_a_change_is_called(outcome, effect, words):
    row = _row(outcome, effect, effect - 0.5, effect + 0.5)
    assert f"get {words}" in change_words(row)


def test_a_change_whose_interval_holds_zero_is_not_called_one():
    assert "not seen to change" in change_words(_row(RANK, 1.0, -0.5, 2.5, verdict="undecided"))
    assert "as compressed at one as at the other" in change_words(
        _row(RANK, 0.0, -0.01, 0.01, verdict="equivalent to nothing")
    )
    assert "unknown amount" in change_words(_row(RANK, 1.0, None, None, verdict=None))


def test_the_first_column_is_a_primary_outcome_and_a_choice_by_outcome_says_of_how_many():
    trials = fake_trials(np.random.default_rng(0))
    columns = compression_columns(trials)
    named, how = first_column(trials, "accuracy/high", {"contrasts": [_row(columns[-1], 1.0, 0.5, 1.5)]})
    assert (named, "before the sweep" in how) == (columns[-1], True)
    named, how = first_column(trials, "accuracy/high", {})
    assert named.split("/")[1] == "vision"
    assert f"of {sum(c.split('/')[1] == 'vision' for c in columns)}" in how
