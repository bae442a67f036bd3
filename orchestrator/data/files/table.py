"""Writing of the table of checked rows that `index.py` reads: one pass over question files in batches."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.config.data import MISSING_SPELLINGS, AttributeKind
from orchestrator.data.files.kinds import Kinds
from orchestrator.data.files.layouts import Files, Layout
from orchestrator.data.files.records import Record
from orchestrator.data.files.rows import FIELDS, RowMaker, Rows

GROUP_ROWS = 1024
"""Rows of a row group, the unit of random access."""
BATCH = 8 * GROUP_ROWS
"""Rows per batch of checking."""

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.string()),
        ("n_images", pa.int32()),
        ("image_file", pa.int32()),
        ("image_row", pa.int64()),
        ("family", pa.string()),
        ("tier", pa.string()),
        ("complexity", pa.float64()),
        ("group", pa.string()),
        ("split", pa.string()),
        ("answer", pa.string()),
        ("answered", pa.bool_()),
        ("numbers", pa.map_(pa.string(), pa.float64())),
        ("row", pa.string()),
        ("reason", pa.string()),
    ]
)
"""`row` is JSON of the row model's fields (with `images` for `image` and `answers` for `answer`), `attributes` and
`place`; `{}` for an invalid row, which has only its `reason`. `image` is the first of its images."""
_NAMES = {"image": "images", "answer": "answers"}


@dataclass(frozen=True)
class Shape:
    """Settings that shape the table: names of fields, kinds of attributes, spellings of missing values."""

    fields: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, AttributeKind] = field(default_factory=dict)
    missing: Sequence[str] = MISSING_SPELLINGS


def write_table(file: Any, files: Files, layout: Layout, shape: Shape) -> None:
    """Write the rows of question files as Parquet, and in its metadata `vtsweep` the kinds of attributes.

    Raises:
        DataError: a file is malformed, or an attribute has no single kind.
    """
    hashes: list[np.ndarray] = []
    kinds = Kinds(shape.attributes, shape.missing)
    numbers = {name: number for number, name in enumerate(files.names)}
    make, first = RowMaker(shape.fields), 0
    with pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
        for batch in _batches(layout.read(files)):
            table, good = _table(batch, numbers, first, make, kinds)
            hashes.append(pl.Series(good, dtype=pl.String).hash().to_numpy())
            writer.write_table(table, row_group_size=GROUP_ROWS)
            first += len(batch)
        sorted_hashes = np.sort(np.concatenate(hashes)) if hashes else np.zeros(0)
        summary = {"kinds": kinds.found(), "twice": bool((sorted_hashes[1:] == sorted_hashes[:-1]).any())}
        writer.add_key_value_metadata({"vtsweep": json.dumps(summary)})


def _batches(records: Iterator[tuple[str, Record]]) -> Iterator[list[tuple[str, Record]]]:
    while batch := list(itertools.islice(records, BATCH)):
        yield batch


def _table(
    batch: list[tuple[str, Record]], files: Mapping[str, int], first: int, make: RowMaker, kinds: Kinds
) -> tuple[pa.Table, list[str]]:
    """The rows of a batch, and the ids of the valid ones."""
    values, image_rows = _apart([record.value if record.reason is None else {} for _, record in batch])
    rows = make(values, first)
    reasons = {**rows.reasons, **{i: record.reason for i, (_, record) in enumerate(batch) if record.reason is not None}}
    places = [f"{name}, {record.place}" for name, record in batch]
    good = [i for i in range(len(batch)) if i not in reasons]
    names = [*(_NAMES.get(key, key) for key in FIELDS), "attributes", "place"]
    free = [dict(zip(rows.attributes, row, strict=True)) for row in zip(*rows.attributes.values(), strict=True)]
    free = free or [{}] * len(batch)
    stored = zip(*(rows.fields[key] for key in FIELDS), free, places, strict=True)
    texts = [orjson.dumps(dict(zip(names, row, strict=True))).decode() for row in stored]
    columns: dict[str, list[Any]] = {
        **{key: rows.fields[key] for key in ("id", "family", "tier", "complexity", "group", "split")},
        "image": [images[0] if images else None for images in rows.fields["image"]],
        "n_images": [
            image_rows[i][1] if i in image_rows else len(paths) for i, paths in enumerate(rows.fields["image"])
        ],
        "image_file": [files[name] if i in image_rows else None for i, (name, _) in enumerate(batch)],
        "image_row": [image_rows[i][0] if i in image_rows else None for i in range(len(batch))],
        "answer": [answers[0] if answers else None for answers in rows.fields["answer"]],
        "answered": [bool(a or b or p) for a, b, p in zip(*(rows.fields[k] for k in _ANSWERS), strict=True)],
        "row": texts,
        "reason": [None] * len(batch),
    }
    for i, reason in reasons.items():
        for values_of in columns.values():
            values_of[i] = None
        columns["id"][i], columns["answered"][i], columns["row"][i] = f"bad-{first + i:07d}", False, "{}"
        columns["reason"][i] = f"{places[i]}: {reason}"
    arrays = {name: pa.array(column, SCHEMA.field(name).type) for name, column in columns.items()}
    arrays["numbers"] = _numbers(rows, good, places, kinds)
    ids = columns["id"] if len(good) == len(batch) else [columns["id"][i] for i in good]
    return pa.Table.from_arrays([arrays[name] for name in SCHEMA.names], schema=SCHEMA), ids


_ANSWERS = ("answer", "box", "point")


def _apart(values: list[Any]) -> tuple[list[Any], dict[int, tuple[int, int]]]:
    """Records without `image_row`, and index -> (row, number of images) of those that have it."""
    rows = {
        i: value["image_row"]
        for i, value in enumerate(values)
        if type(value) is dict and isinstance(value.get("image_row", 0), tuple | None)
    }
    for i in rows:
        values[i] = {key: entry for key, entry in values[i].items() if key != "image_row"}
    return values, {i: row for i, row in rows.items() if row is not None}


def _numbers(rows: Rows, good: Sequence[int], places: Sequence[str], kinds: Kinds) -> pa.Array:
    """Column `numbers`: numeric attributes of a valid row by name; null for an invalid row."""
    n, numbers = len(places), np.full((len(places), len(rows.attributes)), np.nan)
    for k, (key, values) in enumerate(rows.attributes.items()):
        valid = values if len(good) == n else [values[i] for i in good]
        numbers[good, k] = kinds.add(key, valid, lambda i: places[good[i]])
    row, key_of = np.isfinite(numbers).nonzero()
    keys = pa.array(list(rows.attributes), pa.string()).take(pa.array(key_of))
    ends = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=n))])
    offsets = pa.array(ends, pa.int32(), mask=np.append(~np.isin(np.arange(n), good), False))
    return pa.MapArray.from_arrays(offsets, keys, pa.array(numbers[row, key_of]))
