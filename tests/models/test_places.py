"""Points and boxes lie where the model sees them: a white box is found in the pixels that the model is given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.answers.evaluate import predict
from orchestrator.answers.judging import judge
from orchestrator.answers.places import as_judged, as_seen, window_of
from orchestrator.answers.prepared import Prepared
from orchestrator.config import ModelConfig
from orchestrator.data.questions import Question, parse_point
from orchestrator.models.adapter import Adapter
from orchestrator.models.fitting import WHOLE, shown_window
from orchestrator.models.loading import load_adapter
from tests.models.test_asked import cutting_copy

FITS = ("pad", "crop", "stretch")
SIZES = ((80, 120), (120, 80), (100, 100))


@pytest.fixture(scope="module")
def cutting(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    """The reference model with a processor that cuts the middle out of a picture."""
    return load_adapter(ModelConfig(name=str(cutting_copy(tmp_path_factory.mktemp("cutting") / "model"))))


def boxed(height: int, width: int, box: tuple[int, int, int, int], *, from_file: bool) -> Any:
    """A black picture with one white box (x0, y0, x1, y1), px, and the question for it."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    x0, y0, x1, y1 = box
    image[y0:y1, x0:x1] = 255
    shares = [100 * value / (width, height)[i % 2] for i, value in enumerate(box)]
    answer = " ".join(f"{min(99, round(s) if from_file else int(s)):02d}" for s in shares)
    detail = {"scoring": "box", "answers": [" ".join(f"{s:.4f}" for s in shares)]} if from_file else {}
    question = Question("q", "i", "point", "low", "where is the red circle ?", answer, detail=detail)
    return SimpleNamespace(question=question, image=lambda: image)


def seen_box(pixels: np.ndarray) -> list[float]:
    """The white box of the pixels that a model is given, in hundredths of them."""
    bright = pixels.mean(axis=0) > pixels.max() - 0.3 * (pixels.max() - pixels.min())
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    height, width = bright.shape
    corners = (columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height)
    return [100 * float(corner) for corner in corners]


@pytest.mark.parametrize("from_file", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fit", FITS)
def test_a_box_is_trained_where_it_is_seen_and_judged_where_it_is(
    cutting: Adapter, monkeypatch: pytest.MonkeyPatch, fit: str, size: tuple[int, int], from_file: bool
) -> None:
    monkeypatch.setattr(cutting, "fit", fit)
    asked = boxed(*size, (34, 30, 62, 70), from_file=from_file)
    prepared = Prepared(cutting)
    example = prepared.with_answer(asked)
    labels = example["labels"][0]
    trained = parse_point(cutting.tokenizer.decode(labels[labels >= 0], skip_special_tokens=True))
    assert trained is not None
    assert trained == pytest.approx(seen_box(example["pixel_values"][0].numpy()), abs=2)
    text = " ".join(f"{number:02d}" for number in trained)
    monkeypatch.setattr(cutting, "answer", lambda *_, **__: [(text, None)])
    (reply,) = predict(cutting, prepared, [asked], 1)
    found, right = ([float(n) for n in one.split()] for one in (reply.predicted, asked.question.answer))
    assert found == pytest.approx(right, abs=2)
    assert judge(asked.question, reply.predicted).correct
    assert (text == asked.question.answer) == (fit == "stretch" or size[0] == size[1])


def test_a_place_cut_off_is_judged_where_it_is(cutting: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "fit", "crop")
    image = np.zeros((60, 120, 3), dtype=np.uint8)
    question = Question("q", "i", "point", "low", "where is the red circle ?", "02 50")
    asked: Any = SimpleNamespace(question=question, image=lambda: image)
    window = window_of(cutting, asked)
    assert window == (0.25, 0.0, 0.75, 1.0)
    assert as_seen(question, window) == "00 50"
    assert as_judged(question, "00 50", window) == "25 50"
    assert not judge(question, "25 50").correct


def test_other_questions_and_texts_stay_as_they_are(cutting: Adapter) -> None:
    window = (-0.25, 0.0, 1.25, 1.0)
    count = Question("q", "i", "count", "low", "how many ?", "3")
    point = Question("q", "i", "point", "low", "where ?", "30 50")
    assert as_seen(count, window) == "3"
    assert as_judged(count, "3", window) == "3"
    for text in ("", "no", "12", "1 2 3"):
        assert as_judged(point, text, window) == text
    assert as_judged(point, "at 50 50", window) == "at 50 50"
    assert shown_window(SimpleNamespace(), "pad", 80, 120) == WHOLE
    assert window_of(cutting, SimpleNamespace(question=point, image=lambda: None)) == WHOLE


@given(st.integers(20, 900), st.integers(20, 900), st.tuples(st.integers(0, 99), st.integers(0, 99)))
def test_a_padded_place_comes_back(height: int, width: int, place: tuple[int, int]) -> None:
    wide, high = max(1.0, height / width), max(1.0, width / height)
    window = (0.5 - wide / 2, 0.5 - high / 2, 0.5 + wide / 2, 0.5 + high / 2)
    question = Question("q", "i", "point", "low", "where ?", f"{place[0]:02d} {place[1]:02d}")
    back = [int(n) for n in as_judged(question, as_seen(question, window), window).split()]
    for found, right, scale in zip(back, place, (wide, high), strict=True):
        assert abs(found - right) <= scale / 2 + 1
