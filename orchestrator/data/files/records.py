"""Records of question files, one after another: JSON lines, JSON, CSV and Parquet, local or by URI.

Lines, CSV rows and Parquet batches are streamed. A JSON document is one value and is parsed whole.
"""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.errors import DataError

FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
BATCH = 1024
"""Rows of a Parquet file read at once."""


class Record(NamedTuple):
    """A record and its place in the file."""

    place: str
    """`line 7`, `row 7` or `[7]`."""
    value: Any
    reason: str | None = None
    """Why the place holds no record."""


def read_records(fs: Any, path: str, name: str) -> Iterator[Record]:
    """Records of a file by its suffix; a `.json` file that holds one object a line is read as lines.

    Images that lie as bytes in a Parquet column (`image`, binary or a struct with `bytes`) are left there; the record's
    `image` is then None, and `image_row` its place.

    Raises:
        DataError: an unknown suffix, a pickle, or a file that is not what its suffix says.
    """
    suffix = "." + name.rsplit(".", 1)[-1].lower()
    if suffix in (".p", ".pkl", ".pickle"):
        raise DataError(
            f"{name}: a pickle can run any code when it is opened. Convert it to JSON or Parquet first (RefCOCO's "
            "refs(unc).p: the `refer` package's authors publish the loader; Parquet conversions are on the hub)"
        )
    if suffix not in FORMATS:
        raise DataError(f"{name}: expected a file that ends in {', '.join(FORMATS)}")
    if suffix == ".parquet":
        yield from _parquet(fs, path, name)
    elif suffix in (".csv", ".tsv"):
        yield from _csv(fs, path, name, "\t" if suffix == ".tsv" else ",")
    elif suffix == ".json" and not _is_lines(fs, path):
        yield from _document(read_json(fs, path, name), name)
    else:
        yield from _lines(fs, path)


def read_json(fs: Any, path: str, name: str) -> Any:
    """A JSON document; DataError where it is none."""
    try:
        return orjson.loads(fs.cat_file(path))
    except orjson.JSONDecodeError as error:
        raise DataError(f"{name}: broken JSON: {error}") from None


def _is_lines(fs: Any, path: str) -> bool:
    """Whether the first line alone is a JSON object (POPE's `.json` files)."""
    with fs.open(path, "rb") as file:
        first = file.readline(1 << 20)
    try:
        return isinstance(orjson.loads(first), dict) and first.endswith(b"\n")
    except orjson.JSONDecodeError:
        return False


def _lines(fs: Any, path: str) -> Iterator[Record]:
    with fs.open(path, "rb", block_size=1 << 22) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield Record(f"line {number}", orjson.loads(line))
            except orjson.JSONDecodeError as error:
                yield Record(f"line {number}", None, f"broken JSON: {error}")


def _document(document: Any, name: str) -> Iterator[Record]:
    if isinstance(document, dict):
        lists = [key for key, value in document.items() if isinstance(value, list)]
        if len(lists) != 1:
            raise DataError(f"{name}: expected a list of records, or an object with one, found keys {sorted(document)}")
        document = document[lists[0]]
    if not isinstance(document, list):
        raise DataError(f"{name}: expected a list of records, found {type(document).__name__}")
    for number, value in enumerate(document):
        yield Record(f"[{number}]", value)


def _csv(fs: Any, path: str, name: str, separator: str) -> Iterator[Record]:
    with fs.open(path, "rb", block_size=1 << 22) as raw:
        text = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
        reader = csv.reader(text, delimiter=separator, strict=True)
        try:
            header = next(reader, None)
            if not header or len(set(header)) < len(header):
                raise DataError(f"{name}: expected a header of different names, found {header}")
            for cells in reader:
                place = f"line {reader.line_num}"
                if len(cells) != len(header):
                    yield Record(place, None, f"expected {len(header)} cells, found {len(cells)}")
                    continue
                yield Record(place, {key: _cell(cell) for key, cell in zip(header, cells, strict=True)})
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{name}, line {reader.line_num}: not a CSV table: {error}") from None


def _cell(text: str) -> Any:
    """A cell: null if empty, a list where it is a JSON list (`["yes", "no"]`), else its text."""
    if text.startswith("[") and text.endswith("]"):
        with contextlib.suppress(orjson.JSONDecodeError):
            return orjson.loads(text)
    return text or None


def _parquet(fs: Any, path: str, name: str) -> Iterator[Record]:
    try:
        with fs.open(path, "rb") as raw:
            file = pq.ParquetFile(raw)
            held = has_bytes(file.schema_arrow)
            columns = [column for column in file.schema_arrow.names if column != "image" or not held]
            row = 0
            for batch in file.iter_batches(BATCH, columns=columns):
                for value in batch.to_pylist():
                    yield Record(f"row {row}", {**value, "image_row": row} if held else value)
                    row += 1
    except pa.ArrowInvalid as error:
        raise DataError(f"{name}: not a Parquet file: {error}") from None


def has_bytes(schema: pa.Schema) -> bool:
    """Whether the column `image` holds encoded pictures, plain or as data sets on a hub store them."""
    if "image" not in schema.names:
        return False
    kind = schema.field("image").type
    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
