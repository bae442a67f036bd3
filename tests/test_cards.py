"""What a study costs on a GPU that is not here: measured rates on one card, scaled ones on the others."""

from __future__ import annotations

import pytest

from orchestrator.config import RunConfig
from orchestrator.errors import ConfigError
from orchestrator.models.planning import Footprint, footprint
from orchestrator.study import cards
from orchestrator.study.plan import make_plan
from tests.conftest import tiny_study

SEVEN_B = Footprint(28, 3584, 729, 20.0, 10.5, 10**6, 10**8, 378, 378, blocks=52)


def run(**keys: object) -> RunConfig:
    return RunConfig.model_validate({"how": {"batch_size": 8}, **keys})


def test_the_measured_card_gives_back_what_was_measured_there() -> None:
    forward, metrics = cards.image_seconds(run(), SEVEN_B, cards.MEASURED)
    assert 8 * forward == pytest.approx(0.161, rel=0.02)
    assert 0.15 <= metrics / forward <= 0.25  # counted +15 %, and measured work was 1.3 times counted work
    exact = cards.image_seconds(run(capture={"spectrum": "exact"}), SEVEN_B, cards.MEASURED)[1]
    assert 8 * (exact - metrics) / 4 == pytest.approx(0.208, rel=0.05)  # s a pass for one spectrum of 232 sets


def test_a_small_model_waits_for_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    small = footprint(run(model={"name": "reference-joint"}))
    assert small.blocks == 10
    monkeypatch.setitem(cards.METRIC_KERNELS, "gram", 3498)  # of the version that was measured: 11 times the bare pass
    forward, metrics = cards.image_seconds(run(), small, cards.MEASURED)
    assert 8 * forward == pytest.approx(2.3e-3, rel=0.1)
    assert 9 < (forward + metrics) / forward < 12
    for card in cards.CARDS.values():  # no card launches faster
        assert cards.image_seconds(run(), small, card) == (forward, metrics)
    larger = run(how={"batch_size": 16})
    assert sum(cards.image_seconds(larger, small, cards.MEASURED)) == pytest.approx((forward + metrics) / 2)


def test_slower_memory_slows_metrics_and_a_lower_matrix_rate_the_pass() -> None:
    h200, h100, a100 = (cards.image_seconds(run(), SEVEN_B, cards.CARDS[name]) for name in ("h200", "h100", "a100"))
    assert h100[0] == h200[0]
    assert h100[1] == pytest.approx(h200[1] * 4.8 / 3.35)
    assert a100[0] == pytest.approx(h200[0] * 989 / 312)


def test_what_does_not_fit_is_told() -> None:
    assert cards.card_rate(run(), SEVEN_B, cards.CARDS["h200"]).fits
    assert not cards.card_rate(run(), SEVEN_B, cards.CARDS["rtx4090"]).fits


def test_many_cards_take_as_many_gpu_hours_and_less_time() -> None:
    one, many = (cards.card_seconds("capture", run(), 10**5, SEVEN_B, cards.MEASURED, n) for n in (1, 64))
    assert one == pytest.approx(64 * many)


def test_an_unknown_card_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="h100"):
        cards.find_card("h1000")
    assert cards.find_card("RTX 4090").memory_gb == 24


def test_a_plan_says_whether_its_rates_were_measured(tmp_path) -> None:
    sweep = tiny_study(tmp_path)
    measured, scaled = (make_plan(sweep, name, 2).card for name in ("h200", "l40s"))
    assert measured is not None
    assert scaled is not None
    assert (measured.measured, scaled.measured) == (True, False)
    assert measured.seconds is not None
    assert measured.gpu_hours == pytest.approx(measured.seconds * 2 / 3600)
    assert make_plan(sweep).card is None
