"""Scores of whole files in their official forms equal the official rules, computed here in another way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from orchestrator.answers.evaluate import Reply, answer_table, benchmark_figures
from orchestrator.config import QuestionsConfig
from orchestrator.data.file_questions import FileQuestions
from orchestrator.data.files.source import QuestionSource
from orchestrator.data.mixture import Example

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VTSWEEP_CACHE", str(tmp_path / "cache"))


def open_layout(root: Path, layout: str, **options: Any) -> QuestionSource:
    return QuestionSource(QuestionsConfig.model_validate({"root": str(root), "layout": layout, **options}))


def write(root: Path, name: str, document: Any) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(document))


def judged(source: QuestionSource, said: Sequence[str]) -> pl.DataFrame:
    items = [Example(source.asked(i), image_index=i, source=source) for i in range(len(source))]
    return answer_table(items, [Reply(text, text) for text in said])


def test_gqa_is_exact_match(tmp_path: Path) -> None:
    gold = ["yes", "left", "dog", "no", "light blue"]
    types = {"structural": "query", "semantic": "rel", "detailed": "relS"}
    rows = {
        str(i): {"imageId": f"n{i}", "question": f"q {i}?", "answer": a, "types": types, "isBalanced": True}
        for i, a in enumerate(gold)
    }
    write(tmp_path, "questions1.2/val_balanced_questions.json", rows)
    said = ["yes", "right", "dog", "yes", "blue"]
    table = judged(open_layout(tmp_path, "gqa"), said)
    assert table["score"].to_list() == [float(a == b) for a, b in zip(gold, said, strict=True)]


@pytest.mark.skipif(not (SHARED / "pope_mini").is_dir(), reason="needs POPE's files in shared/data/pope_mini")
@pytest.mark.parametrize("sampling", ["random", "popular", "adversarial"])
def test_pope_on_its_published_rows(sampling: str) -> None:
    name = f"pope_mini/coco_pope_{sampling}.json"
    lines = [json.loads(line) for line in (SHARED / name).read_text().splitlines()]
    rng = np.random.default_rng(len(lines))
    yes = rng.random(len(lines)) < 0.6
    said = [("Yes, there is one." if one else "No, there is not.") for one in yes]
    source = open_layout(SHARED, "pope", file=name)
    table = judged(source, said)
    right = np.array([line["label"] == "yes" for line in lines])
    true_positive, false_positive = (yes & right).sum(), (yes & ~right).sum()
    precision, recall = true_positive / (true_positive + false_positive), true_positive / right.sum()
    figures = benchmark_figures(table)
    assert figures["yes_no/f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert figures["yes_no/precision"] == pytest.approx(precision)
    assert figures["yes_no/yes_share"] == pytest.approx(yes.mean())
    assert table["correct"].to_numpy().mean() == pytest.approx((yes == right).mean())
    assert set(table["family"]) == {sampling}


def soft(said: str, given: Sequence[str]) -> float:
    """Ten annotators, each left out in turn; three of the others are enough."""
    return sum(min(1.0, sum(o == said for o in given[:i] + given[i + 1 :]) / 3) for i in range(len(given))) / len(given)  # type: ignore[operator]


def test_vqa_and_textvqa_are_soft_over_ten_annotators(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    given = [rng.choice(["dog", "cat", "2"], 10, p=[0.6, 0.3, 0.1]).tolist() for _ in range(30)]
    said = rng.choice(["dog", "cat", "2", "cow"], 30).tolist()
    numbered = [[{"answer": a, "answer_confidence": "yes", "answer_id": k} for k, a in enumerate(g, 1)] for g in given]
    asked = [{"image_id": i, "question": "What?", "question_id": i} for i in range(30)]
    notes = [
        {"question_id": i, "image_id": i, "answer_type": "other", "question_type": "what", "answers": numbered[i]}
        for i in reversed(range(30))
    ]
    write(tmp_path, "v2_OpenEnded_mscoco_val2014_questions.json", {"info": {}, "questions": asked})
    write(tmp_path, "v2_mscoco_val2014_annotations.json", {"info": {}, "annotations": notes})
    official = [soft(s, g) for s, g in zip(said, given, strict=True)]
    assert judged(open_layout(tmp_path, "vqa"), said)["score"].to_list() == pytest.approx(official)
    rows = [
        {"question_id": i, "question": "what?", "image_id": f"i{i}", "answers": given[i], "set_name": "val"}
        for i in range(30)
    ]
    write(tmp_path, "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": rows})
    assert judged(open_layout(tmp_path, "textvqa"), said)["score"].to_list() == pytest.approx(official)


def test_refcoco_is_overlap_by_half_counted_in_pixels(tmp_path: Path) -> None:
    """On pictures of 100 x 100 px a hundredth is a pixel, so that boxes can be counted out."""
    rng = np.random.default_rng(2)
    (tmp_path / "train2014").mkdir()
    Image.new("RGB", (100, 100)).save(tmp_path / "train2014" / "a.jpg")
    rows, said, official = [], [], []
    for i in range(60):
        x, y = rng.integers(0, 40, 2).tolist()
        w, h = rng.integers(20, 50, 2).tolist()
        rows.append(
            {"ref_id": i, "image_id": 1, "file_name": "a.jpg", "bbox": [x, y, w, h], "sentences": [{"sent": "it"}]}
        )
        dx, dy, dw, dh = rng.integers(-8, 9, 4).tolist()
        box = [max(0, x + dx), max(0, y + dy), x + w + dw, y + h + dh]
        said.append(" ".join(f"{v:02d}" for v in box))
        right, found = np.zeros((100, 100), bool), np.zeros((100, 100), bool)
        right[y : y + h, x : x + w] = True
        found[box[1] : box[3], box[0] : box[2]] = True
        official.append(bool((right & found).sum() / (right | found).sum() >= 0.5))
    write(tmp_path, "refs.json", rows)
    table = judged(open_layout(tmp_path, "refcoco", file="refs.json"), said)
    assert table["correct"].to_list() == official
    assert 10 < sum(official) < 50


def test_clevr_is_exact_match_and_captions_ask_nothing(tmp_path: Path) -> None:
    gold, said = ["3", "yes", "cube", "no"], ["3", "no", "Cube", "no"]
    program = [{"function": "scene"}, {"function": "query_shape"}]
    rows = [
        {"question_index": i, "image_filename": "a.png", "question": "What?", "answer": a, "program": program}
        for i, a in enumerate(gold)
    ]
    write(tmp_path, "questions/CLEVR_val_questions.json", {"info": {}, "questions": rows})
    assert judged(open_layout(tmp_path, "clevr"), said)["correct"].to_list() == [True, False, True, True]
    captions = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"id": 2, "image_id": 1, "caption": "a"}]}
    write(tmp_path, "annotations/captions_val2017.json", captions)
    (tmp_path / "val2017").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "val2017" / "1.jpg")
    assert FileQuestions(open_layout(tmp_path, "captions")).rows == {}


def test_answers_without_their_question_and_questions_without_answers_are_told_by_line(tmp_path: Path) -> None:
    asked = [{"image_id": i, "question": "What?", "question_id": i} for i in range(3)]
    write(tmp_path, "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": asked})
    write(tmp_path, "v2_mscoco_val2014_annotations.json", {"annotations": [{"question_id": 1}, {"answers": []}]})
    with pytest.raises(Exception, match=r"annotations\.json, \[1\]: .*no field 'question_id'|no field 'answers'"):
        open_layout(tmp_path, "vqa", max_rejected_fraction=0.0)
