"""One row of a question file: the row model, and how a record of any format becomes one, or a reason why not."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.data.columns import NUMBER
from orchestrator.data.images import safe_name
from orchestrator.data.questions import Question
from orchestrator.errors import DataError, did_you_mean

FIELDS = (
    "id",
    "image",
    "question",
    "answer",
    "choices",
    "box",
    "point",
    "family",
    "tier",
    "complexity",
    "group",
    "split",
)
"""Fields of the row model. Any other field of a record is a free attribute."""
TIERS = ("low", "high")


@dataclass(frozen=True)
class Row:
    """One question about one image, whatever file it came from."""

    id: str
    question: str
    image: str | None = None
    """Name of the image, to which `data.images` gives the path; None for bytes in a column, or no image."""
    answers: tuple[str, ...] = ()
    """Right answers; several where annotators differ (VQA). Empty for a prompt without one."""
    choices: tuple[str, ...] | None = None
    box: tuple[float, float, float, float] | None = None
    """Right box (x0, y0, x1, y1) in px of the image."""
    point: tuple[float, float] | None = None
    """Right point (x, y) in px of the image."""
    family: str = "question"
    tier: str | None = None
    complexity: float | None = None
    group: str | None = None
    """What rows have in common beyond chance (one picture, one annotator): the unit of clustering."""
    split: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Texts, numbers or None."""

    def as_question(self, image_id: str) -> Question:
        """The row as the question that stages ask; the most frequent answer stands for several."""
        answer = max(self.answers, key=self.answers.count) if self.answers else ""
        facts = {"answers": self.answers, "box": self.box, "point": self.point, "group": self.group}
        detail = {"wording": self.family, "complexity": self.complexity, **facts, **self.attributes}
        return Question(self.id, image_id, self.family, self.tier, self.question, answer, self.choices, 0, detail)


def make_row(record: Mapping[str, Any], number: int, names: Mapping[str, str] | None = None) -> Row:
    """Check a record and make a row of it.

    Args:
        record: field -> value, as JSON has it. Null and absent are the same.
        number: the row's place, for the id of a row without one.
        names: field of the row model -> field of the record, where they differ.

    Raises:
        DataError: a field is missing, empty or of a wrong type, or the answer is not among the choices; the message
            names field and value, and the caller adds file and line.
    """
    if not isinstance(record, Mapping):
        raise DataError(f"expected an object with fields, found {record!r:.80}")
    names = names or {}
    given = {key: record.get(names.get(key, key)) for key in FIELDS}
    used = {names.get(key, key) for key in FIELDS}
    if given["question"] is None:
        raise DataError(f"no field {names.get('question', 'question')!r}.{did_you_mean('question', map(str, record))}")
    choices = _texts(given["choices"], "choices")
    answers = _texts(given["answer"], "answer") or ()
    if choices is not None:
        if len(set(choices)) < len(choices) or len(choices) < 2:
            raise DataError(f"choices: expected two or more different texts, found {list(choices)}")
        if wrong := [answer for answer in answers if answer not in choices]:
            raise DataError(f"answer {wrong[0]!r} is not among the choices {list(choices)}")
    tier = _text(given["tier"], "tier")
    if tier not in (None, *TIERS):
        raise DataError(f"tier: expected low or high, found {tier!r}; name another measure in `complexity`")
    image = _text(given["image"], "image")
    box = _numbers(given["box"], "box", 4)
    if box is not None and not (0 <= box[0] < box[2] and 0 <= box[1] < box[3]):
        raise DataError(f"box: expected x0 < x1 and y0 < y1, all from 0, in px, found {list(box)}")
    point = _numbers(given["point"], "point", 2)
    measure = given["complexity"]
    if isinstance(measure, str) and re.fullmatch(NUMBER, measure.strip()):
        measure = float(measure)
    complexity = _numbers([measure], "complexity", 1) if measure is not None else None
    return Row(
        id=_text(given["id"], "id") or f"row-{number:07d}",
        question=_needed(given["question"], "question"),
        image=None if image is None else safe_name(image, "image"),
        answers=answers,
        choices=choices,
        box=box,  # type: ignore[arg-type]
        point=point,  # type: ignore[arg-type]
        family=_text(given["family"], "family") or "question",
        tier=tier,
        complexity=None if complexity is None else complexity[0],
        group=_text(given["group"], "group"),
        split=_text(given["split"], "split"),
        attributes={str(key): _attribute(value, key) for key, value in record.items() if key not in used},
    )


def _text(value: Any, key: str) -> str | None:
    """A text, or a whole number as one; None for null and for an empty cell."""
    if value is None or value == "":
        return None
    if type(value) is int:
        return str(value)
    if not isinstance(value, str):
        raise DataError(f"{key}: expected text, found {value!r:.80}")
    if not value.strip():
        raise DataError(f"{key}: expected text, found only spaces")
    return value.strip()


def _needed(value: Any, key: str) -> str:
    found = _text(value, key)
    if found is None:
        raise DataError(f"{key}: it is empty")
    return found


def _texts(value: Any, key: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    values = value if isinstance(value, list | tuple) else [value]
    if not values:
        raise DataError(f"{key}: the list is empty")
    return tuple(_needed(one, key) for one in values)


def _numbers(value: Any, key: str, n: int) -> tuple[float, ...] | None:
    if value is None:
        return None
    good = isinstance(value, list | tuple) and len(value) == n
    if not good or not all(type(one) in (int, float) and math.isfinite(one) for one in value):
        raise DataError(f"{key}: expected {n} finite number(s), found {value!r:.80}")
    return tuple(float(one) for one in value)


def _attribute(value: Any, key: str) -> Any:
    if value is None or isinstance(value, str | bool):
        return str(value).lower() if isinstance(value, bool) else value
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return value
    raise DataError(f"{key}: expected text, a number or null as an attribute, found {value!r:.80}")
