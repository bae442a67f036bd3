"""Intervals, verdicts, shapes, blind level, power and fronts against independent oracles and planted truths."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from orchestrator.stats.blind import OWN_WEIGHT, blind_level, blind_scores
from orchestrator.stats.intervals import clustered_share, student_interval, wilson
from orchestrator.stats.multiplicity import benjamini_hochberg
from orchestrator.stats.paired import paired_difference, tango_interval
from orchestrator.stats.pareto import pareto_front
from orchestrator.stats.power import detectable_effect, paired_power
from orchestrator.stats.resample import bootstrap_means
from orchestrator.stats.shape import monotonicity
from orchestrator.stats.sufficient import smallest_sufficient, sufficient_ratio
from orchestrator.stats.verdict import non_inferiority, verdict


@given(st.integers(1, 200), st.data())
def test_wilson_equals_scipy(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    oracle = scipy_stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert wilson(k, n) == pytest.approx((oracle.low, oracle.high), abs=1e-9)


def test_two_seeds_have_no_interval_and_three_have_students() -> None:
    assert student_interval([0.1, 0.2]).low is None
    values = [0.1, 0.25, 0.18]
    oracle = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = student_interval(values)
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high))


def test_questions_of_one_image_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    covered = plain = 0
    for _ in range(300):
        images = rng.beta(1.5, 1.5, 21)
        clusters = rng.integers(21, size=100)
        correct = rng.random(100) < images[clusters]
        found = clustered_share(correct, clusters)
        assert found.low is not None
        covered += found.low <= 0.5 <= found.high
        low, high = wilson(int(correct.sum()), 100)
        plain += low <= 0.5 <= high
    assert covered / 300 > 0.92
    assert plain / 300 < 0.85


def test_clusters_of_one_question_give_wilson() -> None:
    found = clustered_share([1, 0, 1, 1, 0], list("abcde"))
    assert (found.low, found.high) == pytest.approx(wilson(3, 5))


def test_no_discordant_pairs_still_have_width() -> None:
    found = paired_difference(np.ones(40), np.ones(40))
    assert found.value == 0
    assert -0.12 < found.low < -0.05 < 0.05 < found.high < 0.12


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.998])
def test_clusters_widen_a_paired_interval_by_the_quantile_of_its_own_confidence(confidence: float) -> None:
    """Eight images of 60 questions that agree: eight values, less what the jackknife takes, at Student's quantile."""
    means = np.array([0.02, -0.03, 0.05, -0.05, 0.04, -0.02, 0.03, -0.04])
    found = paired_difference(np.repeat(means, 60), np.zeros(480), np.repeat(np.arange(8), 60), confidence)
    normal, student = (part.ppf((1 + confidence) / 2) for part in (scipy_stats.norm, scipy_stats.t(7)))
    effective = 8 * (7 / 8) ** 2 * (normal / student) ** 2
    gained, lost = (effective * float(np.clip(sign * means, 0, None).mean()) for sign in (1, -1))
    assert (found.low, found.high) == pytest.approx(tango_interval(gained, lost, effective, confidence), rel=1e-6)


def test_tango_equals_published_example() -> None:
    # b = 12, c = 2 of n = 50: score interval in Newcombe 1998 (Statistics in Medicine 17:2635)
    assert tango_interval(12, 2, 50) == pytest.approx((0.0611, 0.3447), abs=2e-4)


@given(st.integers(5, 200), st.data())
def test_paired_interval_holds_its_value_and_is_antisymmetric(n: int, data: st.DataObject) -> None:
    gained = data.draw(st.integers(0, n))
    lost = data.draw(st.integers(0, n - gained))
    low, high = tango_interval(gained, lost, n)
    assert -1 <= low <= (gained - lost) / n <= high <= 1
    assert high > low
    assert tango_interval(lost, gained, n) == pytest.approx((-high, -low), abs=1e-6)


def test_verdicts_are_all_reachable() -> None:
    assert verdict(0.5, 0.3, 0.7, 0.2) == "supported"
    assert verdict(-0.5, -0.7, -0.3, 0.2) == "contradicted"
    assert verdict(0.01, -0.1, 0.12, 0.2) == "equivalent to nothing"
    assert verdict(0.1, -0.1, 0.3, 0.2) == "undecided"
    assert verdict(0.1, None, None, 0.2) == "undecided"
    assert non_inferiority(-0.031, 0.019, 0.01) == "undecided"
    assert non_inferiority(-0.005, 0.019, 0.01) == "supported"
    assert non_inferiority(-0.05, -0.02, 0.01) == "contradicted"


def test_a_hump_is_no_monotone_relation_and_has_two_branches() -> None:
    rng = np.random.default_rng(1)
    count = np.floor(np.exp(rng.uniform(0, np.log(201), 200)))
    u = np.log(count) / np.log(200)
    columns = np.stack([4 * u * (1 - u), np.minimum(u, 0.3), u], axis=1)[:, :, None]
    noisy = (columns + 0.1 * rng.standard_normal((200, 3, 50))).reshape(200, -1)
    found = monotonicity(noisy, count)
    hump, saturating, line = np.split(np.arange(150).reshape(3, 50), 3)
    assert (found.p[hump] < 0.01).all()
    assert (found.rho_below[hump] > 0.5).all()
    assert (found.rho_above[hump] < -0.5).all()
    assert 8 < np.median(found.turning_point[hump]) < 25
    assert np.mean(found.p[saturating] < 0.05) < 0.12
    assert np.mean(found.p[line] < 0.05) < 0.05


def test_too_few_images_for_branches_give_no_shape() -> None:
    assert np.isnan(monotonicity(np.random.default_rng(0).random((15, 2)), np.arange(15.0)).p).all()


def test_blind_level_of_fair_coins_is_a_half() -> None:
    rng = np.random.default_rng(2)
    levels = []
    for _ in range(40):
        coins = [str(v) for v in rng.integers(2, size=100)]
        other = [("g", str(v)) for v in rng.integers(2, size=300)]
        levels.append(blind_level(coins, ["g"] * 100, range(100), other).value)
    assert np.mean(levels) == pytest.approx(0.5, abs=0.02)


def test_the_blind_level_without_other_questions_is_hardly_biased() -> None:
    rng = np.random.default_rng(4)
    for shares in ((0.5, 0.5), (0.4, 0.3, 0.3)):
        drawn = [rng.choice(len(shares), 100, p=shares).astype(str).tolist() for _ in range(60)]
        levels = [blind_level(one, ["g"] * 100, range(100)).value for one in drawn]
        assert np.mean(levels) == pytest.approx(max(shares), abs=0.04)  # its own constant: 0.04 too high for coins


def test_the_blind_level_of_places_is_hardly_biased() -> None:
    """60 % of places lie in one heap: its best place earns 0.6, the questions' own best constant more."""
    rng = np.random.default_rng(7)

    def near(_: object, wanted: str, given: str) -> bool:
        return abs(int(wanted) - int(given)) <= 5

    levels = []
    for _ in range(30):
        places = np.where(rng.random(100) < 0.6, rng.integers(50, 54, 100), rng.integers(100, 1000, 100))
        levels.append(blind_level(places.astype(str).tolist(), ["g"] * 100, range(100), judge=near).value)
    assert np.mean(levels) == pytest.approx(0.6, abs=0.02)


def test_a_place_earns_nothing_from_its_own_image() -> None:
    """Places of one image lie together, those of different images apart: other images never earn one."""
    places, images = ["1", "2", "51", "52", "91"], ["a", "a", "b", "b", "c"]
    own = np.array([2, 2, 2, 2, 0]) / 4 * OWN_WEIGHT  # the questions' own best constants: four that tie
    scores = blind_scores(places, ["g"] * 5, images, judge=lambda _, w, g: abs(int(w) - int(g)) <= 1)
    assert scores == pytest.approx(own)


def test_few_clusters_of_unequal_size_widen_the_interval() -> None:
    rng = np.random.default_rng(5)
    covered = []
    for _ in range(400):
        image = rng.choice(8, 60, p=np.array([8, 4, 2, 1, 1, 1, 1, 1]) / 19)
        right = rng.random(60) < rng.beta(1.5, 1.5, 8)[image]
        found = clustered_share(right, image)
        assert found.low is not None
        assert found.high is not None
        covered.append(found.low <= 0.5 <= found.high)
    assert np.mean(covered) >= 0.93


def test_blind_constants_come_from_other_images() -> None:
    answers = ["a"] * 6 + ["b"] * 4
    assert blind_scores(answers, ["g"] * 10, [0] * 6 + [1] * 4) == pytest.approx([0.25] * 6 + [0.0] * 4)
    assert blind_scores(answers, ["g"] * 10, range(10)) == pytest.approx([1.0] * 6 + [0.0] * 4)
    assert blind_scores(["a"], ["g"], [0]).tolist() == [0.0]
    known = blind_scores(answers, ["g"] * 10, range(10), [("g", "b")])
    assert known.tolist() == [0.0] * 6 + [1.0] * 4


def test_power_is_that_of_simulated_t_tests() -> None:
    rng = np.random.default_rng(3)
    for n, expected in ((2, 0.09), (3, 0.18), (5, 0.40), (10, 0.80)):
        assert paired_power(1.0, n) == pytest.approx(expected, abs=0.01)
    draws = rng.standard_normal((20_000, 5)) + 1
    p = scipy_stats.ttest_1samp(draws, 0, axis=1).pvalue
    assert paired_power(1.0, 5) == pytest.approx(float(np.mean(p < 0.05)), abs=0.012)
    effect = detectable_effect(5)
    assert paired_power(effect, 5) == pytest.approx(0.8, abs=1e-6)
    assert detectable_effect(1) is None


def test_q_values_equal_scipy_and_skip_missing() -> None:
    p = np.array([0.01, np.nan, 0.02, 0.5])
    q = benjamini_hochberg(p)
    assert np.isnan(q[1])
    assert q[[0, 2, 3]] == pytest.approx(scipy_stats.false_discovery_control(p[[0, 2, 3]]))


def test_front_holds_equal_points_and_no_dominated_one() -> None:
    values = np.array([[1, 1], [1, 1], [0, 2], [0, 1], [np.nan, 9]], dtype=float)
    assert pareto_front(values, (1, 1)).tolist() == [True, True, True, False, False]


def test_sufficient_ratio_needs_a_gain_beyond_chance_over_seeds() -> None:
    rising = {r: {s: min(1.0, 2 * r) + 0.01 * (-1) ** s for s in range(4)} for r in (0.0, 0.25, 0.5, 1.0)}
    assert sufficient_ratio(rising).ratio == 0.5
    assert sufficient_ratio({r: dict(list(v.items())[:2]) for r, v in rising.items()}).rises is None
    rng = np.random.default_rng(0)
    chance = [
        sufficient_ratio({r: {s: rng.standard_normal() for s in range(3)} for r in (0.0, 0.25, 0.5, 0.75, 1.0)}).rises
        for _ in range(300)
    ]
    assert np.mean(chance) < 0.06
    assert smallest_sufficient((0.0, 0.5, 1.0), [0.2, 0.1, 0.1]) is None


def test_bootstrap_of_one_row_has_no_interval() -> None:
    mean, low, _ = bootstrap_means(np.array([[1.0, np.nan]]))
    assert mean[0] == 1.0
    assert np.isnan(low).all()
    values = np.random.default_rng(0).standard_normal((400, 1))
    _, low, high = bootstrap_means(values, n_resamples=2000)
    half = 1.96 * values.std() / 20
    assert (high - low)[0] == pytest.approx(2 * half, rel=0.1)
