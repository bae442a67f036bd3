"""The first screen and the contrasts of several studies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from orchestrator.compression.depth import third_expression
from orchestrator.report.answer import answers, headline
from orchestrator.report.contrast import agreements, differences, pairs
from orchestrator.report.hypotheses import HYPOTHESES, judge_hypotheses
from orchestrator.report.intervals import depth_table
from orchestrator.report.page import render_page
from orchestrator.report.statement import Statement
from tests.report.fake_study import fake_point, fake_study
from tests.report.test_trial_views import RANK, _row

CONTRASTS = [_row(RANK, 0.2, -0.1, 0.5, verdict="undecided"), _row("accuracy/high", 0.063, 0.03, 0.1)]
CONTRASTS += [_row("accuracy/low", -0.096, -0.146, -0.047, primary=False, verdict=None, q=0.01)]


def test_a_sweep_is_answered_by_compression_accuracy_and_forgetting_in_one_sentence() -> None:
    study = fake_study(1)
    point = replace(study.points[0], sweep={"contrasts": CONTRASTS})
    first = answers(replace(study, points=(point,)), [])[0]
    assert first.anchor == "trials"
    assert first.verdicts == (("compression", "undecided"), ("crowded scenes", "supported"))
    places = [first.sentence.index(part) for part in ("not seen to change", "+6.3 points [3.0, 10.0]", "−9.6 points")]
    assert places == sorted(places)


def test_too_few_seeds_are_said_in_the_answer() -> None:
    study = fake_study(1)
    rows = [{**row, "n_seeds": 2, "ci_low": None, "ci_high": None, "verdict": None} for row in CONTRASTS]
    point = replace(study.points[0], sweep={"contrasts": rows})
    first = answers(replace(study, points=(point,)), [])[0]
    assert "2 of 3 seeds" in first.sentence
    assert first.verdicts == ()


def test_a_study_of_neither_is_answered_by_its_first_verdict() -> None:
    study = replace(fake_study(1), points=(replace(fake_point(), findings=None, trials=None, sweep={}),))
    said = [("", [Statement("Measured.", "n = 3"), Statement("Found.", "[1, 2]", "supported", "deletion")])]
    assert answers(study, said)[0].sentence == "Found. ([1, 2])"
    claim = [("", [Statement("Energy is spread.", "n = 3", "equivalent to nothing", "hypothesis")])]
    assert answers(study, claim)[0].sentence == "Equivalent to nothing: Energy is spread. (n = 3)"
    assert answers(study, []) == []


def test_a_positive_correlation_is_said_to_be_with_less_compression_as_the_claim_has_it() -> None:
    """The claim is "the more objects, the less compressed"; what supports it has a positive sign."""
    row = {
        "claim": "objects",
        "family": "similarity",
        "holds": "supported",
        "effect": 0.86,
        "ci_low": 0.8,
        "ci_high": 0.9,
    }
    point = replace(fake_point(), findings=pl.DataFrame([row]), trials=None, sweep={})
    sentence = answers(replace(fake_study(1), points=(point,)), [])[0].sentence
    assert "supported by similarity metrics (0.86" in sentence
    assert sentence.endswith("positive where more objects go with less compression.")


def test_the_headline_draws_each_image_once_at_its_number_of_objects() -> None:
    point = replace(fake_point(), trials=None)
    (drawn,) = headline(replace(fake_study(1), points=(point,)))
    assert point.images is not None
    assert drawn["kind"] == "objects"
    assert sorted(drawn["x"]) == sorted(point.images["n_objects"].to_list())


def test_two_points_differ_by_their_means_with_an_interval_of_both_spreads() -> None:
    one = fake_point()
    assert one.layer_metrics is not None
    shifted = one.layer_metrics.with_columns(pl.col("gini") + 0.25)
    two = replace(one, label="other", layer_metrics=shifted)
    rows = [row for row in differences([one, two]) if row.quantity == "Gini"]
    assert len(rows) == 3
    for row in rows:
        assert row.value == pytest.approx(0.25, abs=1e-6)
        assert row.basis == "paired by image"
        assert row.reading == "other is more compressed"  # a larger Gini is more compressed
    assert {row.reading for row in differences([one, replace(one, label="twin")])} == {"not told apart"}


def test_the_same_images_are_paired_and_the_interval_is_that_of_their_differences() -> None:
    one = fake_point()
    assert one.layer_metrics is not None
    noise = np.random.default_rng(1).normal(0.02, 0.01, one.layer_metrics.height)
    two = replace(one, label="other", layer_metrics=one.layer_metrics.with_columns(pl.col("gini") + pl.Series(noise)))
    apart = replace(two, layer_metrics=two.layer_metrics.with_columns(pl.col("image_id") + "b"))
    (paired, *_), (independent, *_) = (
        [row for row in differences([one, other]) if row.quantity == "Gini" and row.part == "early"]
        for other in (two, apart)
    )
    assert (paired.basis, independent.basis) == ("paired by image", "independent samples")
    assert paired.value == pytest.approx(independent.value, abs=1e-9)
    assert paired.ci_high - paired.ci_low < 0.5 * (independent.ci_high - independent.ci_low)
    rows = one.layer_metrics.with_columns(change=pl.Series(noise)).filter(
        (pl.col("tap") == "decoder") & (pl.col("group") == "vision")
    )
    n = int(rows["layer"].max()) + 1
    early = rows.filter(third_expression(n) == "early").group_by("image_id").agg(pl.col("change").mean())["change"]
    standard_error = early.std() / len(early) ** 0.5
    assert paired.value == pytest.approx(early.mean(), abs=1e-6)
    assert (paired.ci_high - paired.ci_low) / 2 == pytest.approx(1.96 * standard_error, rel=0.2)


def test_hypotheses_are_contrasted_with_their_effects() -> None:
    one, two = fake_study(2).points
    statements = [row.statement for row in agreements([one, two])]
    claims = [h.claim for h in HYPOTHESES]
    assert statements[0] in claims
    effects = [row for row in differences([one, two]) if not row.part]
    assert effects
    judged = {p.label: judge_hypotheses(p) for p in (one, two)}
    for row in effects:
        name = row.quantity.partition(": ")[2]
        first, second = (judged[label].filter(pl.col("effect_name") == name)["effect"][0] for label in judged)
        assert row.value == pytest.approx(second - first)


def test_intervals_of_differences_hold_the_truth_about_as_often_as_they_say() -> None:
    """Two samples from one distribution: the difference of their means is 0 in truth."""
    base = fake_point()
    assert base.layer_metrics is not None
    rng, held, drawn = np.random.default_rng(0), 0, 0
    frame = base.layer_metrics.filter(
        (pl.col("tap") == "decoder") & (pl.col("group") == "vision") & (pl.col("layer") == 0)
    )
    for _ in range(60):
        parts = [
            replace(
                base,
                label=name,
                layer_metrics=frame.with_columns(gini=pl.Series(rng.normal(0.4, 0.1, frame.height)).cast(pl.Float32)),
            )
            for name in ("a", "b")
        ]
        for row in differences(parts):
            if row.quantity == "Gini":
                drawn += 1
                held += row.reading == "not told apart"
    assert depth_table(base, ["gini"]) is not None
    assert held / drawn > 0.85


def test_many_points_are_held_against_the_first() -> None:
    points = [replace(fake_point(), label=str(n)) for n in range(6)]
    assert len(pairs(points[:4])) == 6
    assert [(a.label, b.label) for a, b in pairs(points)] == [("0", str(n)) for n in range(1, 6)]


@pytest.mark.parametrize(
    ("verdicts", "agreement"),
    [
        (("supported", "supported"), "agree"),
        (("supported", "contradicted"), "disagree"),
        (("supported", "undecided"), "one decides"),
        (("undecided", "undecided"), "nobody decides"),
    ],
)
def test_agreement_is_of_those_that_decide(verdicts: tuple[str, str], agreement: str) -> None:
    points = [
        replace(fake_point(), label=str(n), findings=pl.DataFrame({"claim": ["invented"], "holds": [v]}), sweep={})
        for n, v in enumerate(verdicts)
    ]
    found = [row for row in agreements(points) if row.statement == "invented"]
    assert [row.agreement for row in found] == [agreement]


def test_several_points_have_contrasts_and_a_single_one_has_none() -> None:
    assert 'id="contrast"' in render_page(fake_study(2))
    assert 'id="contrast"' not in render_page(fake_study(1))
