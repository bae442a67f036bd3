"""Question files, checked once and kept as a table of rows that any process can read at any place.

The table is a Parquet file in the user's cache folder, named by the files' content and the settings that shape it. It
is made in one pass, a batch at a time: 10^6 rows take no more memory than 10^3, but 8 bytes a row for their ids.

Why rows are not read by Ray Data or polars: both give each column of a file one type, so that a number among texts
becomes null or text before it can be named with its line. Rows are small; the pictures, which are not, are loaded by
Ray's tasks.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import re
import tempfile
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from orchestrator.config.data import MISSING_SPELLINGS, AttributeKind
from orchestrator.data.attributes import Kind
from orchestrator.data.columns import MOSTLY, NUMBER, WHOLE
from orchestrator.data.content import cache_folder, file_digests
from orchestrator.data.files.layouts import Files, Layout
from orchestrator.data.files.records import Record
from orchestrator.data.files.rows import Row, RowMaker
from orchestrator.errors import DataError, did_you_mean

VERSION = 4
"""Raised whenever the same files give other rows; part of the table's name and of the fingerprint."""
BATCH = 1024
"""Rows of a row group: what is read to get one row."""
MAX_NAMED = 10
"""Bad rows named in one message."""

_SCHEMA = pa.schema(
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


def files_digest(fs: Any, root: str, names: Sequence[str]) -> str:
    """Digest of the question files' content."""
    return hashlib.sha256("\n".join(file_digests(fs, root, names)).encode()).hexdigest()


@dataclass(frozen=True)
class Shape:
    """Settings that shape the table: names of fields, kinds of attributes, spellings of missing values."""

    fields: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, AttributeKind] = field(default_factory=dict)
    missing: Sequence[str] = MISSING_SPELLINGS


def build_index(key: Mapping[str, Any], files: Files, layout: Layout, shape: Shape) -> Path:
    """The table of the files' rows, made unless it is there. Bad rows are in it, with their reason."""
    key = {**key, "shape": asdict(shape)}
    name = hashlib.sha256(json.dumps({"version": VERSION, **key}, sort_keys=True).encode()).hexdigest()[:32]
    path = cache_folder("questions") / f"{name}.parquet"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as part:
            try:
                _write(part, files, layout, shape)
            except BaseException:
                with contextlib.suppress(OSError):
                    Path(part.name).unlink()
                raise
        Path(part.name).replace(path)
    return path


def _write(part: Any, files: Files, layout: Layout, shape: Shape) -> None:
    hashes: list[np.ndarray] = []
    kinds = _Kinds(shape.attributes, shape.missing)
    with pq.ParquetWriter(part, _SCHEMA, compression="zstd") as writer:
        rows = _rows(files, layout, shape.fields, kinds)
        while batch := list(itertools.islice(rows, BATCH)):
            columns = dict(zip(_SCHEMA.names, zip(*batch, strict=True), strict=True))
            good = [name for name, reason in zip(columns["id"], columns["reason"], strict=True) if reason is None]
            hashes.append(pl.Series(good, dtype=pl.String).hash().to_numpy())
            arrays = [pa.array(values, kind.type) for values, kind in zip(columns.values(), _SCHEMA, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA), row_group_size=BATCH)
        every = np.sort(np.concatenate(hashes)) if hashes else np.zeros(0)
        summary = {"kinds": kinds.found(), "twice": bool((every[1:] == every[:-1]).any())}
        writer.add_key_value_metadata({"vtsweep": json.dumps(summary)})


def _rows(files: Files, layout: Layout, fields: Mapping[str, str], kinds: _Kinds) -> Iterator[tuple[Any, ...]]:
    """Values of each row in the order of `_SCHEMA`."""
    names = {name: number for number, name in enumerate(files.names)}
    make = RowMaker(fields)
    for number, (name, record) in enumerate(layout.read(files)):
        place = f"{name}, {record.place}"
        try:
            row, image_row = _checked(record, number, make)
        except DataError as error:
            reason = f"{place}: {error}"
            yield (f"bad-{number:07d}", *[None] * 9, None, False, None, "{}", reason)
            continue
        numbers = kinds.add(row.attributes, place)
        held = image_row is not None
        stored = {**vars(row), "place": place}
        yield (
            row.id,
            row.images[0] if row.images else None,
            len(row.images) or int(held),
            names[name] if held else None,
            image_row,
            row.family,
            row.tier,
            row.complexity,
            row.group,
            row.split,
            row.answers[0] if row.answers else None,
            bool(row.answers or row.box or row.point),
            numbers,
            orjson.dumps(stored).decode(),
            None,
        )


def _checked(record: Record, number: int, make: RowMaker) -> tuple[Row, int | None]:
    if record.reason is not None:
        raise DataError(record.reason)
    value = record.value
    image_row = None
    if isinstance(value, Mapping) and "image_row" in value:
        image_row = value["image_row"]
        value = {key: one for key, one in value.items() if key != "image_row"}
    return make(value, number), image_row


@dataclass
class _Seen:
    """What the values of one attribute look like."""

    n_whole: int = 0
    n_numbers: int = 0
    n_texts: int = 0
    first_text: str = ""


class _Kinds:
    """Kinds of free attributes over all rows; numbers in text, as CSV has them, are numbers."""

    def __init__(self, declared: Mapping[str, AttributeKind], missing: Sequence[str]) -> None:
        self.declared, self.missing = declared, frozenset(missing)
        self.seen: dict[str, _Seen] = {}

    def add(self, row: Mapping[str, Any], place: str) -> list[tuple[str, float]]:
        """Take note of a row's attributes, and return those that are numbers."""
        numbers = []
        for key, value in row.items():
            seen = self.seen.get(key)
            if seen is None:
                seen = self.seen[key] = _Seen()
            number = as_number(value, self.missing) if type(value) is str else value
            if number is None:
                continue
            if isinstance(number, str):
                seen.first_text = seen.first_text or f"{place}, field {key!r}: found {number!r:.60}"
                seen.n_texts += 1
            else:
                seen.n_numbers += 1
                seen.n_whole += isinstance(number, int)
                numbers.append((key, float(number)))
        return numbers

    def found(self) -> dict[str, Kind]:
        """Kind of each attribute.

        Raises:
            DataError: a value does not have the declared kind, or most values are numbers and one is not.
        """
        for key in self.declared:
            if key not in self.seen:
                raise DataError(f"data.attributes: no row has a field {key!r}.{did_you_mean(key, self.seen)}")
        return {key: self._kind(key, seen) for key, seen in self.seen.items()}

    def _kind(self, key: str, seen: _Seen) -> Kind:
        n = seen.n_numbers + seen.n_texts
        declared = self.declared.get(key)
        if declared == "category" or (declared is None and seen.n_numbers < max(1.0, MOSTLY * n)):
            return "categorical"
        if seen.n_texts:
            raise DataError(
                f"{seen.first_text}, but {seen.n_numbers} of {n} values are numbers; add a spelling of missing values "
                f"to data.missing, or declare data.attributes: {{{key}: category}}"
            )
        if declared == "count" and seen.n_whole < n:
            raise DataError(f"data.attributes: {key} is declared a count, and {n - seen.n_whole} values are not whole")
        return "continuous" if declared == "number" or seen.n_whole < n else "count"


def as_number(value: Any, missing: Collection[str]) -> int | float | str | None:
    """A value as a number where it is one, in whatever notation; else the text; None where it is missing."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if not text or text in missing:
        return None
    if re.fullmatch(WHOLE, text):
        return int(text)
    return float(text) if re.fullmatch(NUMBER, text) and math.isfinite(float(text)) else text


class Index:
    """Rows of a table made by `build_index`, read a row group at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = pq.ParquetFile(path)
        facts = json.loads(self.file.metadata.metadata[b"vtsweep"])
        self.kinds: dict[str, Kind] = facts["kinds"]
        self.twice: bool = facts["twice"]
        self._lock = threading.Lock()
        self._group: tuple[int, list[dict[str, Any]]] = (-1, [])
        sizes = [self.file.metadata.row_group(i).num_rows for i in range(self.file.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]) if sizes else np.zeros(1, dtype=int)

    def __len__(self) -> int:
        return self.file.metadata.num_rows

    def column(self, name: str) -> pa.ChunkedArray:
        return self.file.read(columns=[name])[name]

    def numbers(self, name: str) -> np.ndarray:
        """A free attribute of every row as a number: float64, NaN where a row has none."""
        parts = []
        for chunk in self.column("numbers").chunks:
            values = np.full(len(chunk), np.nan)
            found = pc.equal(chunk.keys, name).to_numpy(zero_copy_only=False).nonzero()[0]
            offsets = chunk.offsets.to_numpy() - chunk.offsets[0].as_py()
            rows = np.searchsorted(offsets, found, side="right") - 1
            values[rows] = chunk.items.to_numpy(zero_copy_only=False)[found]
            parts.append(values)
        return np.concatenate(parts) if parts else np.zeros(0)

    def attribute(self, name: str) -> list[Any]:
        """A free attribute of every row, as it is in the file; None where a row has none."""
        found: list[Any] = []
        for batch in self.file.iter_batches(8192, columns=["row"]):
            rows = (orjson.loads(text) for text in batch.column(0).to_pylist())
            found += [row["attributes"].get(name) if row else None for row in rows]
        return found

    def __getitem__(self, place: int) -> dict[str, Any]:
        group = int(np.searchsorted(self._starts, place, side="right")) - 1
        with self._lock:
            if self._group[0] != group:
                self._group = group, self.file.read_row_group(group).to_pylist()
            held = self._group
        return held[1][place - int(self._starts[group])]

    def check(self, max_rejected_fraction: float) -> list[str]:
        """Reasons of all bad rows.

        Raises:
            DataError: no rows, more bad rows than allowed, or an id that stands twice, with both places.
        """
        if not len(self):
            raise DataError("data.file: the question files hold no rows")
        reasons = self.column("reason").drop_null().to_pylist()
        if len(reasons) > max_rejected_fraction * len(self) + 1e-9:
            more = f"\n  and {len(reasons) - MAX_NAMED} more" if len(reasons) > MAX_NAMED else ""
            raise DataError(
                f"data.file: {len(reasons)} of {len(self)} rows are bad; data.max_rejected_fraction="
                f"{max_rejected_fraction:g} allows fewer:\n  " + "\n  ".join(reasons[:MAX_NAMED]) + more
            )
        if self.twice:
            self._name_twice()
        return reasons

    def _name_twice(self) -> None:
        ids = self.column("id").to_pylist()
        for name, n in Counter(ids).most_common(1):
            if n > 1:
                first = ids.index(name)
                second = ids.index(name, first + 1)
                places = [json.loads(self[i]["row"])["place"] for i in (first, second)]
                raise DataError(f"data.file: the id {name!r} stands twice: {places[0]} and {places[1]}")
