"""Mixtures and evaluations from question files: tiers by a column, nested ratios, held-out images, answers by rule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from orchestrator.answers.judging import judge
from orchestrator.config import FinetuneConfig, QuestionsConfig
from orchestrator.data.file_questions import FileQuestions
from orchestrator.data.files.source import QuestionSource
from orchestrator.data.mixture import make_evaluation, make_mixture
from orchestrator.errors import ConfigError, DataError

N = 120


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> QuestionSource:
    monkeypatch.setenv("VTSWEEP_CACHE", str(tmp_path / "cache"))
    lines = []
    for i in range(N):
        Image.new("RGB", (32, 32), (2 * i, 0, 0)).save(tmp_path / f"{i}.png")
        row = {"id": f"q{i}", "image": f"{i}.png", "question": f"is it {i} ?", "answer": "yes" if i % 2 else "no"}
        lines.append(json.dumps({**row, "family": "ab"[i % 3 == 0], "complexity": i / N}))
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    return QuestionSource(QuestionsConfig(root=str(tmp_path), file=("q.jsonl",), layout="rows", scoring="exact"))


def config(**task: object) -> FinetuneConfig:
    given = {"source": "questions", "families": ["a", "b"], "complexity": "complexity", **task}
    return FinetuneConfig.model_validate({"n_examples": 24, "n_eval_per_family": 8, "task": given})


def test_tiers_are_thirds_of_a_column_and_ratios_are_exact_and_nested(source: QuestionSource) -> None:
    by_ratio = {ratio: make_mixture(config(), ratio, 0, source) for ratio in (0.0, 0.25, 1.0)}
    for ratio, examples in by_ratio.items():
        high = [e for e in examples if float(e.question.detail["complexity"]) >= 2 / 3 - 0.01]
        low = [e for e in examples if float(e.question.detail["complexity"]) <= 1 / 3 + 0.01]
        assert (len(high), len(low)) == (round(24 * ratio), 24 - round(24 * ratio))
        assert {e.question.family for e in examples} == {"a", "b"}
    low, mixed = by_ratio[0.0], by_ratio[0.25]
    changed = [a.question != b.question for a, b in zip(low, mixed, strict=True)]
    assert sum(changed) == 6
    image = mixed[0].image()
    assert image is not None
    assert image[0, 0, 0] == 2 * int(mixed[0].question.question_id[1:])


def test_held_out_questions_are_about_other_images(source: QuestionSource) -> None:
    trained = {e.question.image_id for e in make_mixture(config(), 0.5, 0, source)}
    asked = make_evaluation(config(), source)
    ids = [e.question.question_id for e in asked]
    assert len(ids) == len(set(ids)) == 28  # of one family and tier there are 4 rows alone: none is asked twice
    assert not trained & {e.question.image_id for e in asked}
    assert {e.question.tier for e in asked} == {"low", "high"}


def test_rows_whose_picture_is_missing_are_not_asked(source: QuestionSource) -> None:
    for i in (4, 5):
        Path(source.root, f"{i}.png").unlink()
    asked = make_evaluation(config(), source) + make_mixture(config(), 0.5, 0, source)
    assert not {"q4", "q5"} & {e.question.question_id for e in asked}
    strict = source.config.model_copy(update={"max_rejected_fraction": 0.0})
    with pytest.raises(DataError, match=r"2 of 120 rows have no image file, the first q\.jsonl, line 5: 4\.png"):
        make_evaluation(config(), QuestionSource(strict))


def test_rows_that_cannot_be_asked_are_passed_over_and_the_draw_of_others_stays(source: QuestionSource) -> None:
    before = {e.question.question_id for e in make_evaluation(config(), source)}
    broken = sorted(before)[0]
    Path(source.root, f"{broken[1:]}.png").write_bytes(b"no picture")
    again = QuestionSource(source.config)
    after = [e.question.question_id for e in make_evaluation(config(), again)]
    assert broken not in after
    assert len(after) == len(set(after))
    assert before - {broken} <= set(after)
    place = int(broken[1:])
    assert (again.fault(place) or "").endswith(
        f", line {place + 1}: {place}.png: not an image that can be read (10 bytes)"
    )
    with pytest.raises(DataError, match=r"1 of 120 rows cannot be asked.*(?s:.)*not an image"):
        make_evaluation(config(), QuestionSource(source.config.model_copy(update={"max_rejected_fraction": 0.0})))


def test_a_box_outside_its_picture_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VTSWEEP_CACHE", str(tmp_path / "cache"))
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    rows = [{"id": f"q{i}", "question": "where ?", "image": "a.png", "box": [1, 1, 9 + 8 * i, 9]} for i in range(5)]
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    source = QuestionSource(QuestionsConfig(root=str(tmp_path), file=("q.jsonl",), max_rejected_fraction=0.5))
    questions = FileQuestions(source)
    n = questions.at_most("question", "all", 0, 10)
    assert n == 4 - 1 + (1 + 8 * 3 + 8 <= 33)
    assert {questions.make("question", "all", 0, i)[0] for i in range(20)} == set(range(n))


def test_answers_are_judged_by_the_rule_of_the_file(source: QuestionSource) -> None:
    question = source.question(1)
    assert judge(question, "Yes.") == (True, None, 1.0)
    assert judge(question, "no") == (False, None, 0.0)


def test_what_cannot_be_drawn_is_named(source: QuestionSource) -> None:
    with pytest.raises(ConfigError, match=r"no numeric column 'complexty'.*Did you mean 'complexity'"):
        make_mixture(config(complexity="complexty"), 0.5, 0, source)
    with pytest.raises(ConfigError, match=r"no answered .* rows of family 'c'"):
        make_mixture(config(families=["c"]), 0.5, 0, source)
    with pytest.raises(ConfigError, match=r"no row has a tier"):
        make_mixture(config(complexity=None), 0.5, 0, source)
