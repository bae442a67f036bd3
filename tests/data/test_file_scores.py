"""Benchmarks' own figures reach the tables: soft scores, POPE's figures, position bias, extracted answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image
from sklearn.metrics import f1_score, precision_score

from orchestrator import plugins
from orchestrator.answers.evaluate import Reply, accuracy_columns, answer_table, figures
from orchestrator.answers.judging import is_valid, judge
from orchestrator.config import QuestionsConfig
from orchestrator.data.files import extraction
from orchestrator.data.files.source import QuestionSource
from orchestrator.data.mixture import Example
from orchestrator.errors import ConfigError
from orchestrator.report.benchmark_words import trial_figures


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VTSWEEP_CACHE", str(tmp_path / "cache"))


def open_rows(root: Path, rows: Sequence[dict[str, Any]], **options: Any) -> QuestionSource:
    root.mkdir(parents=True, exist_ok=True)
    (root / "q.jsonl").write_text("".join(json.dumps({"id": f"q{i}", **row}) + "\n" for i, row in enumerate(rows)))
    return QuestionSource(QuestionsConfig.model_validate({"root": str(root), "file": "q.jsonl", **options}))


def asked(source: QuestionSource) -> list[Example]:
    return [Example(source.asked(i), image_index=i, source=source) for i in range(len(source))]


def replies(words: Sequence[str]) -> list[Reply]:
    return [Reply(word, word) for word in words]


def test_soft_accuracy_is_in_the_answers_and_their_summary(tmp_path: Path) -> None:
    given = [["dog"] * n + ["cat"] * (10 - n) for n in (10, 3, 2, 1)]
    rows = [{"question": "what ?", "answer": answers, "tier": "low"} for answers in given]
    items = asked(open_rows(tmp_path, rows, scoring="vqa"))
    table = answer_table(items, replies(["dog"] * 4))
    # The official rule by its closed form: n of 10 agree, so (n min(1, (n-1)/3) + (10-n) min(1, n/3)) / 10.
    official = [(n * min(1, (n - 1) / 3) + (10 - n) * min(1, n / 3)) / 10 for n in (10, 3, 2, 1)]
    assert table["score"].to_list() == pytest.approx(official)
    assert table["correct"].to_list() == [score >= 0.5 for score in official]
    columns = accuracy_columns(table)
    assert columns["score/low"] == pytest.approx(np.mean(official))
    assert columns["score/low_low"] <= columns["score/low"] <= columns["score/low_high"]
    assert figures(items, ["dog"] * 4)["score"] == pytest.approx(np.mean(official))


def test_pope_figures_are_in_tables_and_report(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    right, said = rng.choice(["yes", "no"], 40), rng.choice(["yes", "no"], 40, p=[0.8, 0.2])
    rows = [{"question": "is it ?", "answer": a, "choices": ["yes", "no"], "tier": "high"} for a in right]
    items = asked(open_rows(tmp_path, rows, scoring="yes_no"))
    wordy = ["Yes, there is." if word == "yes" else "There is not. Yes" for word in said]
    columns = accuracy_columns(answer_table(items, replies(wordy)))
    assert columns["yes_no/high/f1"] == pytest.approx(f1_score(right == "yes", said == "yes"))
    assert columns["yes_no/high/precision"] == pytest.approx(precision_score(right == "yes", said == "yes"))
    assert columns["yes_no/high/yes_share"] == pytest.approx(np.mean(said == "yes"))
    assert columns["accuracy/high"] == pytest.approx(np.mean(right == said))
    shown = figures(items, wordy)
    assert (shown["f1"], shown["yes_share"]) == (columns["yes_no/high/f1"], columns["yes_no/high/yes_share"])
    words = " ".join(text for text, _ in trial_figures(pl.DataFrame([columns])))
    assert "F1 of yes is" in words
    assert "share of yes is" in words
    assert "score" not in "".join(columns), "right or wrong alone: its mean is the accuracy"


def test_listed_choices_are_asked_by_letter_and_a_preferred_place_shows(tmp_path: Path) -> None:
    choices = ["dog", "cat", "horse", "sheep"]
    rows = [
        {"question": "what is it ?", "answer": choices[i % 4], "choices": choices, "tier": "low"} for i in range(400)
    ]
    listed = open_rows(tmp_path / "a", rows, show_choices="listed").question(1)
    assert listed.text == "what is it ?\nA. dog\nB. cat\nC. horse\nD. sheep"
    assert (listed.answer, listed.choices) == ("B", ("A", "B", "C", "D"))
    source = open_rows(tmp_path / "b", rows, show_choices="shuffled", seed=3)
    items = asked(source)
    orders = {item.question.text for item in items}
    assert len(orders) == 24
    for item in items[:20]:
        shown = dict(line.split(". ") for line in item.question.text.splitlines()[1:])
        right = shown[item.question.answer]
        assert judge(item.question, item.question.answer).correct
        assert judge(item.question, right).correct
        assert judge(item.question, f"({item.question.answer}) {right}").correct
        assert is_valid(item.question, right)
        assert not is_valid(item.question, "a cow")
    always = accuracy_columns(answer_table(items, replies(["A"] * 400)))
    assert always["position_bias/low"] == pytest.approx(0.75)
    assert always["position_bias_right/low"] < 0.08
    assert always["accuracy/low"] == pytest.approx(0.25, abs=0.08)
    fair = accuracy_columns(answer_table(items, replies([item.question.answer for item in items])))
    assert fair["position_bias/low"] == fair["position_bias_right/low"]
    again = open_rows(tmp_path / "b", rows, show_choices="shuffled", seed=3, n_images=50)
    texts = {item.question.question_id: item.question.text for item in items}
    assert all(texts[again.question(i).question_id] == again.question(i).text for i in range(50))
    assert source.fingerprint() != open_rows(tmp_path / "b", rows, show_choices="listed", seed=3).fingerprint()


def test_choices_are_part_of_the_prompt_that_capture_asks(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    row = {"question": "what ?", "answer": "dog", "choices": ["dog", "cat"], "image": "a.png"}
    assert open_rows(tmp_path, [row], show_choices="listed").load(0).prompt == "what ?\nA. dog\nB. cat"
    assert open_rows(tmp_path, [row]).load(0).prompt == "what ?"


def test_an_answer_is_extracted_by_a_pattern(tmp_path: Path) -> None:
    rows = [{"question": "what ?", "answer": "dog", "tier": "low"}]
    items = asked(open_rows(tmp_path, rows, extract=r"[Aa]nswer: (\w+)"))
    for text, right in (("A cat? No. Answer: dog.", True), ("Answer: dog. No, answer: cat", False), ("dog", True)):
        table = answer_table(items, replies([text]))
        assert table["correct"].item() is right
        assert table["generated"].item() == text
    assert answer_table(items, replies(["So the answer: dog"]))["predicted"].item() == "dog"
    with pytest.raises(ConfigError, match=r"expected one group in .* found 2"):
        open_rows(tmp_path, rows, extract="(a)(b)")
    with pytest.raises(ConfigError, match="is no regular expression"):
        open_rows(tmp_path, rows, extract="(a")


def test_an_answer_is_extracted_by_a_function_of_another_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    info = site / "mine-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "my_answers.py").write_text("def last_word(text):\n    return text.split()[-1]\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vtsweep.answers]\nlast_word = my_answers:last_word\n")
    monkeypatch.syspath_prepend(str(site))
    for cached in (extraction._points, extraction.find_extractor, plugins._packages):
        cached.cache_clear()
    rows = [{"question": "what ?", "answer": "dog", "tier": "low"}]
    source = open_rows(tmp_path / "d", rows, extract="last_word")
    assert judge(source.question(0), "this must be a dog").correct
    assert source.fingerprint()["answers"] == {"last_word": "mine 1.0"}
    with pytest.raises(ConfigError, match=r"no function 'last_wort'.*Did you mean 'last_word'"):
        open_rows(tmp_path / "d", rows, extract="last_wort")
    for cached in (extraction._points, extraction.find_extractor, plugins._packages):
        cached.cache_clear()


def test_boxes_are_asked_in_hundredths_and_judged_in_exact_numbers(tmp_path: Path) -> None:
    Image.new("RGB", (300, 200)).save(tmp_path / "a.png")
    row = {"question": "where ?", "image": "a.png", "tier": "low"}
    source = open_rows(tmp_path, [{**row, "box": [31, 20, 62, 101]}, {**row, "point": [150, 50]}])
    box, point = source.asked(0), source.asked(1)
    assert box.answer == "10 10 21 50"
    assert judge(box, box.answer).correct
    exact = [float(v) for v in box.detail["answers"][0].split()]
    assert exact == pytest.approx([100 * 31 / 300, 10, 100 * 62 / 300, 50.5], abs=1e-3)
    # IoU 0.5 by hand: half of the width of the exact box, the full height.
    x0, y0, x1, y1 = exact
    for share, right in ((0.51, True), (0.49, False)):
        assert judge(box, f"{x0} {y0} {x0 + share * (x1 - x0)} {y1}").correct is right
    assert point.answer == "50 25"
    assert judge(point, "53 28").correct
    assert not judge(point, "50 31").correct
