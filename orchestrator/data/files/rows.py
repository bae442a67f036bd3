"""One row of a question file: the row model, and how a record of any format becomes one, or a reason why not."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.data.columns import NUMBER
from orchestrator.data.images import safe_name
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
MAX_CHOICES = 26
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


@dataclass(frozen=True)
class Row:
    """One question about one image, whatever file it came from."""

    id: str
    question: str
    images: tuple[str, ...] = ()
    """Names of the images, to which `data.images` gives the paths; none for bytes in a column, or no image."""
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


class RowMaker:
    """Checks records and makes rows of them.

    Args:
        names: field of the row model -> field of the record, where they differ.
    """

    def __init__(self, names: Mapping[str, str] | None = None) -> None:
        self.names = {key: (names or {}).get(key, key) for key in FIELDS}
        self.used = frozenset(self.names.values())

    def __call__(self, record: Mapping[str, Any], number: int) -> Row:
        """Make the row of a record.

        Args:
            record: field -> value, as JSON has it. Null and absent are the same.
            number: the row's place, for the id of a row without one.

        Raises:
            DataError: a field is missing, empty or of a wrong type, or the answer is not among the choices; the message
                names field and value, and the caller adds file and line.
        """
        if not isinstance(record, Mapping):
            raise DataError(f"expected an object with fields, found {record!r:.80}")
        names, get = self.names, record.get
        question = get(names["question"])
        if question is None:
            asked = names["question"]
            raise DataError(f"no field {asked!r}.{did_you_mean(asked, map(str, record))}")
        choices = _texts(get(names["choices"]), "choices")
        answers = _texts(get(names["answer"]), "answer") or ()
        if choices is not None:
            _check_choices(choices, answers)
        tier = _text(get(names["tier"]), "tier")
        if tier not in (None, *TIERS):
            raise DataError(f"tier: expected low or high, found {tier!r}; name another measure in `complexity`")
        box, point = get(names["box"]), get(names["point"])
        return Row(
            id=_text(get(names["id"]), "id") or f"row-{number:07d}",
            question=_needed(question, "question"),
            images=_images(get(names["image"])),
            answers=answers,
            choices=choices,
            box=None if box is None else _box(box),  # type: ignore[arg-type]
            point=None if point is None else _numbers(point, "point", 2),  # type: ignore[arg-type]
            family=_text(get(names["family"]), "family") or "question",
            tier=tier,
            complexity=_measure(get(names["complexity"])),
            group=_text(get(names["group"]), "group"),
            split=_text(get(names["split"]), "split"),
            attributes={str(key): _attribute(record[key], key) for key in record if key not in self.used},
        )


def _check_choices(choices: tuple[str, ...], answers: tuple[str, ...]) -> None:
    if len(set(choices)) < len(choices) or len(choices) < 2:
        raise DataError(f"choices: expected two or more different texts, found {list(choices)}")
    if len(choices) > MAX_CHOICES:
        raise DataError(f"choices: {len(choices)} of them; at most {MAX_CHOICES}, a letter each")
    if wrong := [answer for answer in answers if answer not in choices]:
        raise DataError(f"answer {wrong[0]!r} is not among the choices {list(choices)}")


def _images(value: Any) -> tuple[str, ...]:
    """Names of images, of one or a list; those of videos are refused."""
    if value is None:
        return ()
    names = _texts(value, "image") if isinstance(value, list | tuple) else (_text(value, "image"),)
    found = tuple(safe_name(name, "image") for name in names or () if name is not None)
    for name in found:
        if name.lower().endswith(VIDEOS):
            raise DataError(f"image: {name!r} is a video; expected pictures (its frames as a list of files, say)")
    return found


def _box(value: Any) -> tuple[float, ...] | None:
    box = _numbers(value, "box", 4)
    if box is not None and not (0 <= box[0] < box[2] and 0 <= box[1] < box[3]):
        raise DataError(f"box: expected x0 < x1 and y0 < y1, all from 0, in px, found {list(box)}")
    return box


def _measure(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, str) and re.fullmatch(NUMBER, value.strip()):
        value = float(value)
    found = _numbers([value], "complexity", 1)
    return None if found is None else found[0]


def _text(value: Any, key: str) -> str | None:
    """A text, or a whole number as one; None for null and for an empty cell."""
    if value is None or value == "":
        return None
    if type(value) is str and (plain := value.strip()):
        return plain
    if type(value) is int:
        return str(value)
    if not isinstance(value, str):
        raise DataError(f"{key}: expected text, found {value!r:.80}")
    raise DataError(f"{key}: expected text, found only spaces")


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
    if key in ("video", "videos") and value is not None:
        raise DataError(f"{key}: found {value!r:.80}; videos are not read. Give their frames as a list in `image`")
    if value is None or isinstance(value, str | bool):
        return str(value).lower() if isinstance(value, bool) else value
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return value
    raise DataError(f"{key}: expected text, a number or null as an attribute, found {value!r:.80}")
