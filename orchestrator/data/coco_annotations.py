"""COCO's annotation file as validated columns: each value converts exactly, or an error names its record.

JSON numbers convert between integer and decimal notation if exact (`1.0` is 1); strings, Booleans (except for
`iscrowd`) and fractions do not. Ids and names are unique.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson

from orchestrator.data.images import safe_name
from orchestrator.errors import DataError

SLACK_PX = 1.0
"""Tolerance by which a box may exceed the image, as annotations are rounded."""
MAX_BAD = 5
"""Maximum number of invalid annotations in one message."""


class ImageRecord(NamedTuple):
    """A listed image: path below the image folder, and (width, height) in px."""

    name: str
    size: tuple[int, int]


class Annotations(NamedTuple):
    """All annotations of a file as columns."""

    image: np.ndarray
    """Image id, int64."""
    category: np.ndarray
    """Index of the category in the file's order, int16."""
    crowd: np.ndarray
    """Whether it marks a crowd, bool."""
    box: np.ndarray
    """(x, y, width, height) in px from the top left, float64 (n, 4)."""
    area: np.ndarray
    """Annotated area, px^2, float64."""


def parse(data: bytes, file: str) -> dict[str, Any]:
    """The file's JSON object; DataError if it is not one."""
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise DataError(f"{file}: broken JSON: {error}") from None
    if not isinstance(document, dict):
        raise DataError(f"{file}: expected an object with images, annotations and categories")
    return document


def read_categories(document: dict[str, Any], file: str) -> tuple[list[str], list[str], dict[int, int]]:
    """Names, supercategories, and the index of each category id; DataError for a duplicate.

    Names are compared without letter case and outer spaces: a question can only use the name.
    """
    records = _records(document, "categories", file, ("id", "name"))
    for number, record in enumerate(records):
        if not isinstance(record["name"], str) or not record["name"].strip():
            raise DataError(f"{file}: categories[{number}].name: expected a name, found {record['name']!r}")
    names = [record["name"].strip() for record in records]
    ids = [_whole(r["id"], f"{file}: categories[{i}].id (a category id)") for i, r in enumerate(records)]
    _unique(ids, file, "categories", "id")
    _unique([name.casefold() for name in names], file, "categories", "name", names)
    return names, [str(r.get("supercategory", n)) for r, n in zip(records, names, strict=True)], _places(ids)


def read_images(document: dict[str, Any], file: str) -> dict[int, ImageRecord]:
    """Listed images by id; DataError for a duplicate id or file (in any spelling)."""
    records = _records(document, "images", file, ("id", "file_name", "width", "height"))
    ids = [_whole(r["id"], f"{file}: images[{i}].id (an image id)") for i, r in enumerate(records)]
    _unique(ids, file, "images", "id")
    names = []
    for number, record in enumerate(records):
        if not isinstance(record["file_name"], str):
            raise DataError(f"{file}: images[{number}].file_name: expected text, found {record['file_name']!r}")
        names.append(safe_name(record["file_name"], f"{file}, image {ids[number]}"))
    _unique(names, file, "images", "file_name")
    sizes = [_size(record, f"{file}, image {i}") for i, record in zip(ids, records, strict=True)]
    return {i: ImageRecord(name, size) for i, name, size in zip(ids, names, sizes, strict=True)}


def read_annotations(
    document: dict[str, Any], file: str, categories: Mapping[int, int], sizes: Mapping[int, tuple[int, int]]
) -> Annotations:
    """All annotations; those of images that are not listed are kept without a check against an image size.

    Args:
        document: the parsed file.
        file: its name, for messages.
        categories: index of each category id.
        sizes: (width, height) of each listed image, px.

    Raises:
        DataError: names up to `MAX_BAD` invalid annotations: a malformed, infinite or negative box, a box or area
            larger than the picture, an unknown category, an id that is no whole number or stands twice, an `iscrowd`
            other than 0, 1, true or false.
    """
    records = _records(document, "annotations", file, ("image_id", "category_id", "bbox"))
    image = _column([r["image_id"] for r in records], int, _exact, records, file, "image_id", "a whole number")
    kind = _column([r["category_id"] for r in records], int, _exact, records, file, "category_id", "a whole number")
    crowd = _column(
        [r.get("iscrowd", 0) for r in records], int, _truth, records, file, "iscrowd", "0, 1, true or false"
    )
    if any("id" in r for r in records):
        numbered = [r["id"] for r in records if "id" in r]
        if len(set(map(repr, numbered))) < len(numbered):
            _unique([repr(r.get("id", f"none {i}")) for i, r in enumerate(records)], file, "annotations", "id")
    unknown = [i for i, number in enumerate(kind) if number not in categories]
    _refuse(unknown, records, file, lambda r: f"names category {r['category_id']}, which `categories` lacks")
    box = _boxes(records, file)
    area = [r.get("area", b[2] * b[3]) for r, b in zip(records, box.tolist(), strict=True)]
    areas = np.array(_column(area, float, _finite, records, file, "area", "a number of px^2"), dtype=np.float64)
    side = np.array([sizes.get(number, (np.inf, np.inf)) for number in image], dtype=np.float64)
    ends = box[:, :2] + box[:, 2:]
    outside = (box[:, :2] < -SLACK_PX) | (ends > side + SLACK_PX)
    beyond = outside.any(1) | (areas > (side[:, 0] + SLACK_PX) * (side[:, 1] + SLACK_PX))
    _refuse(
        np.flatnonzero((box[:, 2:] < 0).any(1) | (areas < 0)).tolist(),
        records,
        file,
        lambda r: f"a box or area is negative: bbox {r['bbox']}, area {r.get('area')}",
    )
    _refuse(
        np.flatnonzero(beyond).tolist(),
        records,
        file,
        lambda r: (
            f"bbox {r['bbox']} or area {r.get('area')} reaches beyond the picture of "
            f"{' x '.join(map(str, sizes[int(r['image_id'])]))} px"
        ),
    )
    category = np.array([categories[number] for number in kind], dtype=np.int16)
    return Annotations(np.array(image, dtype=np.int64), category, np.array(crowd, dtype=bool), box, areas)


def _boxes(records: Sequence[dict[str, Any]], file: str) -> np.ndarray:
    def is_box(box: Any) -> bool:
        return isinstance(box, list) and len(box) == 4 and all(_finite(value) is not None for value in box)

    boxes = [r["bbox"] for r in records]
    plain = all(type(b) is list and len(b) == 4 for b in boxes)
    flat = [value for box in boxes for value in box] if plain else []
    if not plain or not set(map(type, flat)) <= {int, float} or not np.isfinite(np.array(flat, dtype=np.float64)).all():
        wrong = [i for i, box in enumerate(boxes) if not is_box(box)]
        _refuse(
            wrong,
            records,
            file,
            lambda r: f"malformed: expected bbox [x, y, width, height] in px, not a number in bbox {r['bbox']}",
        )
    return np.array(flat or boxes, dtype=np.float64).reshape(len(records), 4)


def _column(
    values: list[Any],
    plain: type,
    convert: Callable[[Any], Any],
    records: Sequence[dict[str, Any]],
    file: str,
    field: str,
    expected: str,
) -> list[Any]:
    """`values` converted, with a fast path if all have the type `plain`; DataError names values that do not convert."""
    if set(map(type, values)) == {plain} and field != "iscrowd" and _all_small(values):
        return values
    converted = [convert(value) for value in values]
    wrong = [i for i, value in enumerate(converted) if value is None]
    _refuse(
        wrong,
        records,
        file,
        lambda r: f"malformed: expected {field} as {expected}, not a number of that kind: {field} {r.get(field)!r}",
    )
    return converted


def _all_small(values: list[Any]) -> bool:
    return min(values) >= -(2**63) and max(values) < 2**63 and math.isfinite(sum(values))


def _refuse(
    wrong: Sequence[int], records: Sequence[dict[str, Any]], file: str, describe: Callable[[dict[str, Any]], str]
) -> None:
    if not wrong:
        return
    lines = [f"annotations[{i}] (image {records[i]['image_id']!r}): {describe(records[i])}"[:400] for i in wrong]
    omitted = f"\n  and {len(wrong) - MAX_BAD} more" if len(wrong) > MAX_BAD else ""
    raise DataError(f"{file}: " + "\n  ".join(lines[:MAX_BAD]) + omitted)


def _exact(value: Any) -> int | None:
    """A 64-bit integer; None for any other value."""
    if type(value) is float and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value if type(value) is int and -(2**63) <= value < 2**63 else None


def _truth(value: Any) -> bool | None:
    return bool(value) if type(value) in (int, float, bool) and value in (0, 1) else None


def _finite(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and abs(value) < 1e300 else None


def _whole(value: Any, place: str) -> int:
    number = _exact(value)
    if number is None:
        raise DataError(f"{place}: expected a whole number, found {value!r}")
    return number


def _size(record: Mapping[str, Any], place: str) -> tuple[int, int]:
    width, height = (_exact(record[key]) for key in ("width", "height"))
    if width is None or height is None or not 1 <= width < 2**31 or not 1 <= height < 2**31:
        raise DataError(
            f"{place}: expected a width and height of 1 px or more, found {record['width']!r} x {record['height']!r}"
        )
    return width, height


def _places(values: Iterable[Hashable]) -> dict[Any, int]:
    return {value: place for place, value in enumerate(values)}


def _unique(values: Sequence[Hashable], file: str, key: str, field: str, shown: Sequence[Any] | None = None) -> None:
    first: dict[Hashable, int] = {}
    for number, value in enumerate(values):
        if value in first:
            raise DataError(
                f"{file}: {key}[{first[value]}] and {key}[{number}]: the {field} {(shown or values)[number]!r} stands "
                "twice; merge the records, or give one of them another"
            )
        first[value] = number


def _records(document: dict[str, Any], key: str, file: str, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    records = document.get(key)
    if not isinstance(records, list):
        raise DataError(f"{file}: expected a list under {key!r}; found keys {sorted(document)}")
    if not records:
        raise DataError(f"{file}: no {key}")
    for number, record in enumerate(records):
        if not isinstance(record, dict) or any(f not in record for f in fields):
            have = sorted(record) if isinstance(record, dict) else record
            raise DataError(f"{file}: {key}[{number}]: expected the fields {list(fields)}, found {have}")
    return records
