"""The procedures against their definitions, written another way: p values, levels of verdicts, thresholds, branches."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from orchestrator.stats.intervals import cluster_quantile, clustered_share, effective_clusters, effective_size
from orchestrator.stats.multiplicity import familywise_confidence
from orchestrator.stats.power import correlation_detectable, detectable_effect, paired_power
from orchestrator.stats.resample import percentile_interval, resample_weights
from orchestrator.stats.shape import MIN_BRANCH, monotonicity
from orchestrator.stats.sufficient import paired_gains, smallest_sufficient, sufficient_ratio
from orchestrator.stats.verdict import exceeds, family_verdicts, verdict

Z95, Z90 = 1.959964, 1.644854
"""Half-widths of normal intervals."""


@pytest.mark.parametrize("sign", [1, -1])
def test_at_a_single_turning_point_p_is_that_of_the_lesser_branch_for_both_directions(sign: int) -> None:
    """Twenty images have one place that leaves ten on both sides."""
    rng = np.random.default_rng(1)
    attribute = np.arange(2.0 * MIN_BRANCH)
    hump = sign * -np.abs(attribute - 9.5)[:, None] + rng.uniform(4, 12, 12) * rng.standard_normal((20, 12))
    found = monotonicity(hump, attribute)
    for k in range(12):
        first, second = (stats.spearmanr(attribute[rows], hump[rows, k]) for rows in (slice(0, 10), slice(10, 20)))
        z = [np.sign(part.statistic) * stats.norm.isf(part.pvalue / 2) for part in (first, second)]
        lesser = max(min(z[0], -z[1]), min(-z[0], z[1]))
        assert found.p[k] == pytest.approx(min(1.0, 2 * stats.norm.sf(lesser)), abs=0.02)
        assert (found.rho_below[k], found.rho_above[k]) == pytest.approx((first.statistic, second.statistic))
        assert found.turning_point[k] == 9


def test_the_turning_point_of_a_hump_parts_two_clear_branches() -> None:
    attribute = np.repeat(np.arange(12.0), 5)
    hump = -np.abs(attribute - 4.0)[:, None] + 0.2 * np.random.default_rng(2).standard_normal((60, 20))
    found = monotonicity(hump, attribute)
    assert set(found.turning_point) <= {3.0, 4.0}
    assert (found.p < 1e-3).all()
    for k in range(20):
        left = attribute <= found.turning_point[k]
        assert found.rho_below[k] == pytest.approx(stats.spearmanr(attribute[left], hump[left, k]).statistic)
        assert found.rho_above[k] == pytest.approx(stats.spearmanr(attribute[~left], hump[~left, k]).statistic)
    assert np.isnan(monotonicity(np.ones((60, 1)), attribute).p).all()


@pytest.mark.parametrize(
    ("half", "expected"), [(0.2 * Z95 / Z90 - 1e-3, "equivalent to nothing"), (0.2 * Z95 / Z90 + 1e-3, "undecided")]
)
def test_nothing_is_equivalent_where_the_ninety_percent_interval_lies_within_the_smallest_effect(
    half: float, expected: str
) -> None:
    assert verdict(0.0, -half, half, 0.2) == expected
    assert verdict(0.05, 0.05 - half, 0.05 + half, 0.2) == "undecided"
    assert verdict(-0.05, -0.05 - half, -0.05 + half, 0.2) == "undecided"
    assert verdict(0.3, 0.2, 0.4, 0.2) == "undecided"  # the border itself is not beyond it
    assert verdict(-0.3, -0.4, -0.2, 0.2) == "undecided"
    assert verdict(0.0, -0.1, 0.1, 0.2, equivalence=(-0.3, 0.1)) == "undecided"
    with pytest.raises(ValueError, match="above 0"):
        verdict(0.1, 0.0, 0.2, 0.0)


@pytest.mark.parametrize("bound", [None, 1.0])
def test_a_family_of_one_is_judged_at_the_levels_of_the_rule(bound: float | None) -> None:
    """Beyond the smallest effect by a one-sided test at 2.5 %, within it by two at 5 %."""
    back = (lambda v: v) if bound is None else np.tanh
    edge, error = (0.2 if bound is None else np.arctanh(0.2)), 0.05
    for sign, word in ((1, "supported"), (-1, "contradicted")):
        for distance, expected in ((Z95 + 0.02, word), (Z95 - 0.02, "undecided")):
            effect = sign * (edge + distance * error)
            ends = (np.array([back(v)]) for v in (effect, effect - Z95 * error, effect + Z95 * error))
            assert family_verdicts(*ends, 0.2, bound=bound) == [expected]
    for distance, expected in ((Z90 + 0.02, "equivalent to nothing"), (Z90 - 0.02, "undecided")):
        for sign in (1, -1):
            effect = sign * (edge - distance * error)
            ends = (np.array([back(v)]) for v in (effect, effect - Z95 * error, effect + Z95 * error))
            assert family_verdicts(*ends, 0.2, bound=bound) == [expected]


def test_a_family_pays_for_its_size_and_leaves_out_what_has_no_value() -> None:
    """One effect among 19 empty ones must be 20 times as sure; a missing one is undecided and not counted."""
    error = 0.05
    for distance, expected in ((3.0, "undecided"), (3.1, "supported")):  # 0.025 / 20 lies at 3.02
        effects = np.array([0.2 + distance * error, *np.zeros(19), np.nan])
        found = family_verdicts(effects, effects - Z95 * error, effects + Z95 * error, 0.2)
        assert found[0] == expected
        assert found[-1] == "undecided"
        assert set(found[1:20]) == {"equivalent to nothing"}


def test_a_statement_about_a_threshold() -> None:
    assert exceeds(0.21, 0.4, 0.2) == "supported"
    assert exceeds(0.2, 0.4, 0.2) == exceeds(None, None, 0.2) == exceeds(0.1, np.nan, 0.0) == "undecided"
    assert exceeds(0.1, 0.19, 0.2) == "contradicted"


def test_nine_tenths_of_the_best_gain_are_enough_and_less_is_not() -> None:
    ratios = (0.0, 0.25, 0.5, 1.0)
    assert smallest_sufficient(ratios, [0.5, 0.589, 0.591, 0.6]) == 0.5
    assert smallest_sufficient(ratios, [0.5, 0.59, 0.591, 0.6]) == 0.25  # exactly 0.9 of the gain
    assert smallest_sufficient(ratios, [0.5, 0.4, 0.5, 0.5]) is None


def test_gains_are_paired_by_seed_and_the_best_is_paid_for() -> None:
    """Seeds differ by far more than ratios do; a seed that one ratio lacks is left out of its pairs alone."""
    base = {0: 0.0, 1: 10.0, 2: 20.0, 3: 30.0}
    noise = dict(zip(base, (-0.01, 0.02, -0.02, 0.01), strict=True))
    by_ratio = {
        0.0: base,
        0.5: {s: v + 1 + noise[s] for s, v in base.items() if s != 3},
        1.0: {s: v + 2 for s, v in base.items()},
    }
    gains = paired_gains(by_ratio)
    assert (gains[0.5].n, gains[1.0].n) == (3, 4)
    assert gains[0.5].value == pytest.approx(1 - 0.01 / 3)
    assert gains[0.0].value == 0
    found = sufficient_ratio(by_ratio)
    assert (found.rises, found.ratio, found.n_seeds) == (True, 1.0, 3)
    assert sufficient_ratio({0.0: base}).ratio is None
    # t of 2.9 with three degrees of freedom: beyond chance alone (p 0.03 one-sided), not as the best of four
    values = np.array([1.0, 2.0, 3.0, 4.0]) * np.sqrt(5 / 4)
    spread = (values - values.mean()) / values.std(ddof=1)
    rises = {s: float(v) for s, v in enumerate(spread + 3.5 / 2)}
    flat = dict.fromkeys(range(4), 0.0)
    assert sufficient_ratio({0.0: flat, 1.0: rises}).rises is True
    assert sufficient_ratio({0.0: flat, 0.25: flat, 0.5: flat, 0.75: flat, 1.0: rises}).rises is False
    assert familywise_confidence(4) == pytest.approx(0.9875)


def test_detectable_effects_have_the_power_that_they_name() -> None:
    for n, r in ((400, 0.1396), (85, 0.2995), (30, 0.4924)):  # Fisher's z: tanh((1.96 + 0.8416) / sqrt(n - 3))
        assert correlation_detectable(n) == pytest.approx(r, abs=1e-3)
    assert correlation_detectable(4) is None
    assert correlation_detectable(5) is not None
    assert paired_power(1.0, 1) == 0.0
    assert paired_power(0.0, 5) == pytest.approx(0.05)
    assert paired_power(40.0, 200) == 1.0
    assert paired_power(-1.0, 5) == pytest.approx(paired_power(1.0, 5))
    for n in (2, 3, 4, 10):  # the t statistic's tails integrated over the deviation
        critical = stats.t.ppf(0.975, n - 1)
        s, step = np.linspace(1e-6, 8, 40_001, retstep=True)
        weight = 2 * s * (n - 1) * stats.chi2.pdf((n - 1) * s**2, n - 1) * step
        for effect in np.linspace(0, 12, 25):
            shift = effect * np.sqrt(n)
            tails = stats.norm.sf(critical * s - shift) + stats.norm.cdf(-critical * s - shift)
            assert paired_power(effect, n) == pytest.approx(float(tails @ weight), abs=2e-4), (effect, n)
    smallest = detectable_effect(2)
    assert smallest is not None
    assert paired_power(smallest, 2) == pytest.approx(0.8)


def test_alike_answers_of_an_image_count_once_and_unlike_ones_in_full() -> None:
    codes = np.repeat(np.arange(10), 8)
    rng = np.random.default_rng(0)
    alike = np.repeat([0.0, 1.0] * 5, 8)
    assert effective_size(alike, codes) == pytest.approx(10 * (9 / 10) ** 2)
    assert effective_size(np.ones(80), codes) == pytest.approx(10)
    assert effective_size(np.tile([0.0, 1.0], 40), codes) == 80  # every image half right: less spread than chance
    assert effective_clusters(np.array([0, 0, 0, 1])) == pytest.approx(16 / 10)
    sizes = [effective_size((rng.random(80) < 0.5).astype(float), codes) for _ in range(60)]
    assert 40 < np.median(sizes) <= 80
    for k in (2, 3, 10):  # Student's quantile with one degree of freedom fewer than there are images
        assert cluster_quantile(np.repeat(np.arange(k), 4)) == pytest.approx(stats.t.ppf(0.975, k - 1))
    one = clustered_share(np.ones(5), np.zeros(5))
    assert (one.low, one.high, one.n_clusters) == (None, None, 1)
    with pytest.raises(ValueError, match="no answers"):
        clustered_share([], [])


def test_percentiles_leave_out_resamples_without_a_value() -> None:
    draws = np.random.default_rng(0).standard_normal((999, 2))
    draws[::3, 1] = np.nan
    low, high = percentile_interval(draws, 0.9)
    known = draws[~np.isnan(draws[:, 1]), 1]
    assert (low[0], high[0]) == pytest.approx(tuple(np.quantile(draws[:, 0], [0.05, 0.95])))
    assert (low[1], high[1]) == pytest.approx(tuple(np.quantile(known, [0.05, 0.95])))
    never = percentile_interval(np.full((4, 1), np.nan))
    assert np.isnan(never).all()
    assert np.isnan(percentile_interval(np.empty((0, 3)))).all()
    weights = resample_weights(7, 50, 3)
    assert weights.shape == (50, 7)
    assert (weights.sum(1) == 7).all()
    assert weights.std() > 0.5
    assert resample_weights(7, 0, 3).shape == (0, 7)
