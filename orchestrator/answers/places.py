"""Points and boxes in hundredths of the picture that a model sees, and back in those of the picture itself.

A model whose processor cuts pictures sees them padded or cropped (`model.fit`). It is trained on places in what it
sees, as LLaVA-1.5 was (its boxes are shares of the padded square), and answers so. Answers are turned back before they
are judged, so that tables hold hundredths of the picture itself whatever the fit. Other families see the whole picture
at another size, where shares stay what they are; Molmo's and mllama's padding is none of a place's: Molmo points in
hundredths of the picture itself.
"""

from __future__ import annotations

import math
import re
from typing import Protocol

import numpy as np

from orchestrator.answers.judging import read_answer
from orchestrator.data.questions import Question
from orchestrator.models.adapter import Adapter
from orchestrator.models.fitting import WHOLE, Window, cut_shape, shown_window
from orchestrator.models.preparation import Pictures

PLACE_RULES = ("box", "point")
"""Rules of question files whose answers are places."""


class Asked(Protocol):
    """A question and its images."""

    @property
    def question(self) -> Question: ...

    def image(self) -> Pictures:
        """uint8 (H, W, 3), several of them, or None for a question without an image."""
        ...


def is_place(question: Question) -> bool:
    """Whether a question is answered by a point (x, y) or a box (x0, y0, x1, y1)."""
    rule = question.detail.get("scoring")
    return rule in PLACE_RULES if rule else question.family == "point"


def window_of(adapter: Adapter, asked: Asked) -> Window:
    """Return the part of its picture that a model sees; the whole of it for questions that ask for no place."""
    if not is_place(asked.question) or adapter.fit == "stretch" or cut_shape(adapter.processor) is None:
        return WHOLE
    image = asked.image()
    if not isinstance(image, np.ndarray):
        return WHOLE
    return shown_window(adapter.processor, adapter.fit, *image.shape[:2])


def as_seen(question: Question, window: Window) -> str:
    """Return the right answer in hundredths of what is seen, 00 to 99; a place outside lies at the edge."""
    if window == WHOLE or not is_place(question):
        return question.answer
    if question.detail.get("scoring"):
        exact = [float(number) / 100 for number in question.detail["answers"][0].split()]
        hundredths = [round(100 * value) for value in _into(exact, window)]
    else:  # the middle of each hundredth
        exact = [(int(number) + 0.5) / 100 for number in question.answer.split()]
        hundredths = [math.floor(100 * value) for value in _into(exact, window)]
    return " ".join(f"{min(99, max(0, value)):02d}" for value in hundredths)


def as_judged(question: Question, text: str, window: Window) -> str:
    """Return an answer with its hundredths of what is seen turned into those of the picture itself, 0 to 100.

    A text without exactly the numbers of a place stays as it is.
    """
    if window == WHOLE or not is_place(question):
        return text
    n = len(question.answer.split())
    answer = read_answer(question, text)
    exact = bool(question.detail.get("scoring"))
    pattern = re.compile(r"\d+(?:\.\d+)?" if exact else r"\d{1,6}")
    numbers = pattern.findall(answer)
    if len(numbers) != n:
        return text
    middle = 0.0 if exact else 0.5
    values = _out_of([(float(number) + middle) / 100 for number in numbers], window)
    if exact:
        written = iter([f"{min(100.0, max(0.0, 100 * value)):.2f}" for value in values])
    else:
        written = iter([f"{min(99, max(0, math.floor(100 * value))):02d}" for value in values])
    return text.replace(answer, pattern.sub(lambda _: next(written), answer), 1)


def _into(values: list[float], window: Window) -> list[float]:
    """Return shares (x, y, ...) of the picture as shares of the window."""
    return [(value - window[i % 2]) / (window[2 + i % 2] - window[i % 2]) for i, value in enumerate(values)]


def _out_of(values: list[float], window: Window) -> list[float]:
    """Return shares (x, y, ...) of the window as shares of the picture."""
    return [window[i % 2] + value * (window[2 + i % 2] - window[i % 2]) for i, value in enumerate(values)]
