"""A finding names its population, what the design rules out, and how many of its trials are there."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from orchestrator.config import RunConfig
from orchestrator.report.answer import answers
from orchestrator.report.collect import gather_results
from orchestrator.report.model import missing_trials
from orchestrator.report.page import render_page
from orchestrator.report.population import of_point, of_trials
from orchestrator.report.words import summary
from orchestrator.store.stage_folder import Stage
from orchestrator.store.study_record import Study
from orchestrator.store.tables.core import check_table
from orchestrator.study.resolve import resolve
from orchestrator.study.run import open_study
from tests.conftest import tiny_study
from tests.report.fake_study import fake_study, fake_trials
from tests.report.test_answer import CONTRASTS

DESIGNED = {"source": "scenes", "n_images": 400, "design": {}, "seed": 3}
SIZE = re.compile(r"n = \d|\d+ (pairs of seeds|trials|held-out images|questions|images)")
"""How a statement says what it rests on."""


def run_of(**sections: object) -> RunConfig:
    return RunConfig.model_validate({"model": {"name": "reference-joint"}, "data": DESIGNED, **sections})


def test_images_are_named_with_design_seed_prompt_and_number() -> None:
    said = of_point(run_of(), 399, ablated=False)
    assert said.startswith("399 designed scenes (factors n_objects, size_mean, size_spread, n_colours")
    assert "seed 3" in said
    assert 'shown with "describe the image ."' in said
    assert "not a design" in of_point(run_of(data={"source": "scenes", "n_images": 9}), 9, ablated=False)
    own = of_point(run_of(data={"source": "questions", "root": "d", "file": "q.jsonl"}), 80, ablated=False)
    assert "the question of each row" in own
    asked = of_point(run_of(ablate={"n_per_family": 40}), None, ablated=True)
    assert "at most 40 questions a family and tier about scenes of 1 to 4 and" in asked
    assert of_point(run_of(), None, ablated=False) == ""


@pytest.mark.parametrize(
    ("finetune", "said"),
    [
        (
            {},
            ["excluded: answer form", "scored among their choices", "excluded: novelty, as no family", "not excluded"],
        ),
        ({"answer_by": "generate"}, ["generated: their form counts"]),
        (
            {"task": {"families": ["count"], "novel_families": ["shape"]}, "novelty_ratio": 0.5},
            ["excluded: novelty, as new families have the same share in both tiers (0.5 of the mixture)"],
        ),
        (
            {"task": {"source": "questions", "families": ["a"], "complexity": "n"}},
            ["wording and answer form are not excluded"],
        ),
    ],
)
def test_trials_say_what_else_could_explain_their_effect(finetune: dict[str, object], said: list[str]) -> None:
    runs = [run_of(finetune={**finetune, "complexity_ratio": r, "seed": s}) for r in (0.0, 1.0) for s in (4, 5)]
    text, excluded = of_trials(runs)
    assert "reference-joint" in text
    assert "ratios 0, 1, 2 seeds (4, 5)" in text
    assert all(part in excluded for part in said)


def test_every_verdict_stands_under_a_model_and_says_what_it_rests_on() -> None:
    results = fake_study(2)
    judged = [(heading, s) for heading, part in summary(results) for s in part if s.verdict]
    assert judged
    for heading, statement in judged:
        assert any(point.model in heading for point in results.points), heading
        assert SIZE.search(statement.evidence), statement


@pytest.fixture(scope="module")
def partial(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, list[Stage]]:
    """Four trials at two ratios and two seeds, three of them done; the fourth was not begun."""
    axes: dict[str, list[object]] = {"finetune.complexity_ratio": [0.0, 1.0], "finetune.seed": [0, 1]}
    sweep = tiny_study(tmp_path_factory.mktemp("results"), stages=["finetune"], axes=axes)
    points = resolve(sweep, ["finetune"])
    found = open_study(sweep, points, ["finetune"])
    drawn = fake_trials(np.random.default_rng(0))
    for number, point in enumerate(points[:3]):
        tune, stage = point.run.finetune, point.stages["finetune"]
        row = drawn[number].with_columns(
            trial=pl.lit(stage.digest), complexity_ratio=pl.lit(tune.complexity_ratio), seed=pl.lit(tune.seed)
        )
        stage.open({})
        stage.write_shard(0, {"trials": check_table(row, "trials")})
        stage.mark_done({})
    return found, [point.stages["finetune"] for point in points]


def test_a_report_of_missing_trials_says_how_many_it_holds(partial: tuple[Study, list[Stage]]) -> None:
    results = gather_results(partial[0])
    model = results.points[0].model
    assert missing_trials(results.points) == {model: (3, 4)}
    page = render_page(results)
    assert f"3 of 4 trials of {model} are finished" in page
    assert "ratios 0, 1, 2 seeds (0, 1)" in page
    whole = replace(results.points[0], planned_trials=results.points[0].planned_trials[:3])
    assert missing_trials((whole,)) == {}
    swept = replace(results.points[0], sweep={"contrasts": CONTRASTS})
    first = answers(replace(results, points=(swept,)), [])[0]
    assert first.sentence.endswith("Only 3 of 4 trials are finished.")
    none = replace(results, points=(replace(results.points[0], trials=None),))
    assert f"0 of 4 trials of {model} are finished" in render_page(none)


def test_trials_of_several_points_of_a_model_count_together() -> None:
    points = fake_study(2).points
    pair = tuple(
        replace(p, model="m", planned_trials=(name, "shared"), trials=None)
        for p, name in zip(points, "ab", strict=True)
    )
    assert missing_trials(pair) == {"m": (0, 3)}
