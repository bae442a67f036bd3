"""The row model of question files, and conversion of records to rows, or to reasons why they are invalid.

Records are checked in batches, column by column, for speed. A value that does not suit its field invalidates its row.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any

from orchestrator.data.columns import NUMBER
from orchestrator.data.images import safe_name
from orchestrator.errors import DataError, did_you_mean

FIELDS = {
    "id": "unique text; the row's number when absent",
    "image": "name of the image below the root, or a list of names; absent where it lies in a column, or there is none",
    "question": "text, needed",
    "answer": "right answer, or several where annotators differ (VQA); absent for a prompt without one",
    "choices": "two or more texts; answers are among them",
    "box": "right box (x0, y0, x1, y1) in px of the image",
    "point": "right point (x, y) in px of the image",
    "family": "text; `question` when absent",
    "tier": "low or high",
    "complexity": "any number",
    "group": "what rows have in common beyond chance (one picture, one annotator): the unit of clustering",
    "split": "text",
}
"""Fields of the row model. Any other field of a record is a free attribute: text, a number or None."""
SEVERAL = "images"
"""Alternative name of the field `image`, for records without a field of that name."""
TIERS = ("low", "high")
MAX_CHOICES = 26
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


@dataclass(frozen=True)
class Rows:
    """A batch of n checked records; values of an invalid record are meaningless."""

    fields: Mapping[str, list[Any]]
    """Field -> n values. `image` and `answer` are tuples, empty for none; other missing values are None."""
    attributes: Mapping[str, list[Any]]
    """Free attribute -> n values: text, number or None."""
    reasons: Mapping[int, str]
    """Index in the batch -> reason why the row is invalid."""


class RowMaker:
    """Checks records and makes rows of them.

    Args:
        names: field of the row model -> field of the record, if they differ.
    """

    def __init__(self, names: Mapping[str, str] | None = None) -> None:
        self.names = {key: (names or {}).get(key, key) for key in FIELDS}

    def __call__(self, records: Sequence[Any], first: int) -> Rows:
        """Make the rows of a batch of records.

        Args:
            records: field -> value, as in JSON. Null and absent are equivalent.
            first: index of the first record among all, for ids of rows without one.

        Returns:
            The rows. A row is invalid if a field is missing, empty or of a wrong type, or the answer is not among the
            choices; the reason names field and value, and the caller adds file and line.
        """
        columns = _Columns(records, self.names)
        fields: dict[str, list[Any]] = {}
        fields["question"] = columns.texts("question", needed=True)
        fields["image"] = columns.converted("image", columns.images(), _images)
        for key, convert in _CONVERT.items():
            fields[key] = columns.converted(key, columns.raw(key), convert)
        for key in ("id", "family", "group", "split"):
            fields[key] = columns.texts(key)
        for key in ("image", "answer"):
            fields[key] = [value or () for value in fields[key]]
        columns.check_choices(fields["choices"], fields["answer"])
        fields["id"] = [f"row-{first + i:07d}" if value is None else value for i, value in enumerate(fields["id"])]
        fields["family"] = [value or "question" for value in fields["family"]]
        return Rows(fields, columns.attributes(), columns.reasons)


class _Columns:
    """The values of a batch of records by field, and the first error of each record."""

    def __init__(self, records: Sequence[Any], names: Mapping[str, str]) -> None:
        self.names, self.reasons = names, dict[int, str]()
        self.records: list[Mapping[str, Any]] = list(records)
        for i, record in enumerate(records):
            if type(record) is not dict:
                self.records[i] = dict(record) if isinstance(record, Mapping) else {}
            if not isinstance(record, dict | Mapping):
                self.reasons[i] = f"expected an object with fields, found {record!r:.80}"

    def raw(self, key: str) -> list[Any]:
        name = self.names[key]
        return [record.get(name) for record in self.records]

    def images(self) -> list[Any]:
        """Values of field `image`, or of `images` in records without it."""
        name = self.names["image"]
        return [record[name] if name in record else record.get(SEVERAL) for record in self.records]

    def converted(self, key: str, values: list[Any], convert: Callable[[Any, str], Any]) -> list[Any]:
        """Values converted one by one; conversions of equal texts and lists of texts are cached."""
        kinds = set(map(type, values))
        if kinds == {NoneType}:
            return [convert(None, key)] * len(values)
        cache: dict[Any, tuple[Any, str | None]] = {}
        results = []
        for i, value in enumerate(values):
            kind = type(value)
            plain = kind is str or (kind is list and {str}.issuperset(map(type, value)))
            name = value if kind is str else tuple(value) if plain else None
            result = cache.get(name) if plain else None
            if result is None:
                try:
                    result = convert(value, key), None
                except DataError as error:
                    result = None, str(error)
                if plain:
                    cache[name] = result
            if result[1] is not None:
                self.reasons.setdefault(i, result[1])
            results.append(result[0])
        return results

    def texts(self, key: str, *, needed: bool = False) -> list[Any]:
        """Values of a text field, stripped of surrounding spaces."""
        values = self.raw(key)
        if set(map(type, values)) == {str}:
            stripped = list(map(str.strip, values))
            if "" not in stripped:
                return stripped
        if needed:
            name = self.names[key]
            for i, value in enumerate(values):
                if value is None:
                    absent = f"no field {name!r}.{did_you_mean(name, map(str, self.records[i]))}"
                    self.reasons.setdefault(i, absent)
                    values[i] = "absent"
        return self.converted(key, values, _needed if needed else _text)

    def check_choices(self, choices: list[Any], answers: list[Any]) -> None:
        """Mark rows as invalid if choices are too few, too many or equal, or lack the answer."""
        wrong: dict[Any, str | None] = {}
        for i, pair in enumerate(zip(choices, answers, strict=True)):
            if pair[0] is None:
                continue
            if pair not in wrong:
                wrong[pair] = _choices_fault(*pair)
            if (fault := wrong[pair]) is not None:
                self.reasons.setdefault(i, fault)

    def attributes(self) -> dict[str, list[Any]]:
        used = set(self.names.values())
        keys = {key: None for names in dict.fromkeys(map(tuple, self.records)) for key in names}
        columns: dict[str, list[Any]] = {}
        for key in keys:
            if key in used:
                continue
            values = [record.get(key) for record in self.records]
            if key == SEVERAL:
                beside = self.names["image"]  # records without it use `images`
                values = [record.get(key) if beside in record else None for record in self.records]
                if set(map(type, values)) == {NoneType}:
                    continue
            columns[str(key)] = self._attribute(str(key), values)
        return columns

    def _attribute(self, key: str, values: list[Any]) -> list[Any]:
        kinds = set(map(type, values))
        plain = kinds <= {str, int, float, NoneType} and key not in ("video", "videos")
        if plain and all(math.isfinite(value) for value in values if type(value) is float):
            return values
        return self.converted(key, values, _attribute)


def _choices_fault(choices: tuple[str, ...], answers: tuple[str, ...]) -> str | None:
    if len(set(choices)) < len(choices) or len(choices) < 2:
        return f"choices: expected two or more different texts, found {list(choices)}"
    if len(choices) > MAX_CHOICES:
        return f"choices: {len(choices)} of them; at most {MAX_CHOICES}, a letter each"
    if wrong := [answer for answer in answers if answer not in choices]:
        return f"answer {wrong[0]!r} is not among the choices {list(choices)}"
    return None


def _images(value: Any, key: str) -> tuple[str, ...]:
    """Names of images, one or a list; DataError for videos."""
    if value is None:
        return ()
    names = _texts(value, key) if isinstance(value, list | tuple) else (_text(value, key),)
    paths = tuple(safe_name(name, key) for name in names or () if name is not None)
    for name in paths:
        if name.lower().endswith(VIDEOS):
            raise DataError(f"image: {name!r} is a video; expected pictures (its frames as a list of files, say)")
    return paths


def _tier(value: Any, key: str) -> str | None:
    tier = _text(value, key)
    if tier not in (None, *TIERS):
        raise DataError(f"tier: expected low or high, found {tier!r}; name another measure in `complexity`")
    return tier


def _box(value: Any, key: str) -> tuple[float, ...] | None:
    box = _numbers(value, key, 4)
    if box is not None and not (0 <= box[0] < box[2] and 0 <= box[1] < box[3]):
        raise DataError(f"box: expected x0 < x1 and y0 < y1, all from 0, in px, found {list(box)}")
    return box


def _point(value: Any, key: str) -> tuple[float, ...] | None:
    return _numbers(value, key, 2)


def _measure(value: Any, key: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, str) and re.fullmatch(NUMBER, value.strip()):
        value = float(value)
    numbers = _numbers([value], key, 1)
    return None if numbers is None else numbers[0]


def _text(value: Any, key: str) -> str | None:
    """A text, or a whole number as text; None for null and for an empty cell."""
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
    text = _text(value, key)
    if text is None:
        raise DataError(f"{key}: it is empty")
    return text


def _texts(value: Any, key: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    values = value if isinstance(value, list | tuple) else [value]
    if not values:
        raise DataError(f"{key}: the list is empty")
    return tuple(_needed(entry, key) for entry in values)


def _numbers(value: Any, key: str, n: int) -> tuple[float, ...] | None:
    if value is None:
        return None
    good = isinstance(value, list | tuple) and len(value) == n
    if not good or not all(type(number) in (int, float) and math.isfinite(number) for number in value):
        raise DataError(f"{key}: expected {n} finite number(s), found {value!r:.80}")
    return tuple(float(number) for number in value)


def _attribute(value: Any, key: str) -> Any:
    if key in ("video", "videos") and value is not None:
        raise DataError(f"{key}: found {value!r:.80}; videos are not read. Give their frames as a list in `image`")
    if value is None or isinstance(value, str | bool):
        return str(value).lower() if isinstance(value, bool) else value
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return value
    raise DataError(f"{key}: expected text, a number or null as an attribute, found {value!r:.80}")


_CONVERT: dict[str, Callable[[Any, str], Any]] = {
    "choices": _texts,
    "answer": _texts,
    "tier": _tier,
    "box": _box,
    "point": _point,
    "complexity": _measure,
}
