"""Is an answer right? By the rule of its benchmark, or of its question's family; and has it the form of an answer?

Coordinates cannot be hit exactly: a point is right within `POINT_TOLERANCE` of the centre, a box when it overlaps the
expected one by `BOX_OVERLAP` (the usual rule for referring expressions, Yu et al. 2016). The raw distance is kept
beside it. Rows of question files are judged by the rule of their benchmark (`data/files/scoring.py`), whose score may
lie between wrong and right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import NamedTuple

from orchestrator.data.files.extraction import find_extractor
from orchestrator.data.files.scoring import listed_place, score
from orchestrator.data.questions import Question

POINT_TOLERANCE = 0.05
"""Largest distance of a right point from the object's centre, in shares of the image."""
BOX_OVERLAP = 0.5
"""Least intersection over union of a right box."""
RIGHT_FROM = 0.5
"""Score from which an answer counts as right."""

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBER_WORDS = {word: str(number) for number, word in enumerate(_NUMBERS)}


def normalise(text: str) -> str:
    """Lower case, one space between words, no closing punctuation, no article in front, digits for number words.

    >>> normalise(" The  Red circle. ")
    'red circle'
    >>> normalise("Three")
    '3'
    """
    words = re.sub(r"\s+", " ", text.strip().lower()).strip(" .!\"'").split(" ")
    if len(words) > 1 and words[0] in ("a", "an", "the"):
        words = words[1:]
    return " ".join(_NUMBER_WORDS.get(word, word) for word in words)


def read_answer(question: Question, text: str) -> str:
    """The answer in a generated text, by the question file's own rule of extraction; the text itself without one."""
    name = question.detail.get("extract")
    return find_extractor(name)(text) if name else text


class Judgement(NamedTuple):
    """An answer judged."""

    correct: bool
    """Whether it is right; of a soft score, whether that is at least `RIGHT_FROM`."""
    error: float | None
    """Error of a count in objects, of a point or box in shares of the image; None for other families and for answers
    without the numbers it needs."""
    score: float
    """What the rule gives for it, 0 to 1: 1 for right and 0 for wrong where the rule knows no more."""


def judge(question: Question, predicted: str) -> Judgement:
    """Judge an answer by the rule of its question: that of its benchmark, or of its family."""
    if rule := question.detail.get("scoring"):  # rows of question files name their benchmark's rule
        detail = question.detail
        answer = read_answer(question, predicted)
        given = score(rule, answer, detail["answers"], detail.get("options") or question.choices)
        return Judgement(given >= RIGHT_FROM, None, given)
    correct, error = _judge_scene(question, predicted)
    return Judgement(correct, error, float(correct))


def _judge_scene(question: Question, predicted: str) -> tuple[bool, float | None]:
    if question.family == "point":
        return judge_place(question.answer, predicted)
    correct = normalise(predicted) == normalise(question.answer)
    if question.family.startswith("count"):
        numbers = numbers_in(normalise(predicted))
        return correct, float(abs(numbers[0] - int(question.answer))) if numbers else None
    return correct, None


@lru_cache(maxsize=4096)
def numbers_in(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d{1,6}", text))


def judge_place(answer: str, predicted: str) -> tuple[bool, float | None]:
    wanted, found = numbers_in(answer), numbers_in(predicted)
    if len(found) != len(wanted):
        return False, None
    corners = [
        ((found[i] - wanted[i]) ** 2 + (found[i + 1] - wanted[i + 1]) ** 2) ** 0.5 / 100
        for i in range(0, len(wanted), 2)
    ]
    distance = sum(corners) / len(corners)
    if len(wanted) == 2:
        return distance <= POINT_TOLERANCE, distance
    return _overlap(wanted, found) >= BOX_OVERLAP, distance


def _overlap(a: Sequence[int], b: Sequence[int]) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1)."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, width) * max(0, height)
    areas = [max(0, c[2] - c[0]) * max(0, c[3] - c[1]) for c in (a, b)]
    union = sum(areas) - shared
    return shared / union if union else 0.0


def is_valid(question: Question, generated: str) -> bool:
    """Whether a generated answer has the form of one: a choice of the question, or as many numbers as asked for."""
    if question.family == "point":
        return len(numbers_in(generated)) == len(numbers_in(question.answer))
    generated = read_answer(question, generated)
    if question.detail.get("options"):
        return listed_place(generated, question.detail["options"]) is not None
    if question.choices is None:
        return bool(generated)
    return normalise(generated) in _normal(question.choices)


@cache
def _normal(choices: tuple[str, ...]) -> frozenset[str]:
    return frozenset(map(normalise, choices))
