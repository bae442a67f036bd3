"""Records of question files, one after another: JSON lines, JSON, CSV and Parquet, local or by URI.

Lines, CSV rows and Parquet batches are streamed, and so are the members of a JSON document larger than `WHOLE_BYTES`.
"""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import ijson
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from orchestrator.errors import DataError, did_you_mean

FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
BATCH = 1024
"""Rows of a Parquet file per batch."""
BATCH_OF_PICTURES = 64
"""The same if images must be read to count them."""


WHOLE_BYTES = 2**25
"""JSON documents up to this size are parsed at once, which is ten times as fast; larger ones are streamed."""


class Record(NamedTuple):
    """A record and its place in the file."""

    place: str
    """`line 7`, `row 7` or `[7]`."""
    value: Any
    reason: str | None = None
    """Why there is no record at this place."""


def read_records(fs: Any, path: str, name: str) -> Iterator[Record]:
    """Records of a file by its suffix; a `.json` file with one object per line is read as lines.

    Images stored as bytes in a Parquet column (`picture_column`) are not read: the record has `image_row` instead, a
    tuple (row, number of images), unless its cell is null or an empty list.

    Raises:
        DataError: an unknown suffix, a pickle, or a file that does not have the format of its suffix.
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
        for number, value in enumerate(json_members(fs, path, name)):
            yield Record(f"[{number}]", value)
    else:
        yield from _lines(fs, path)


def json_members(fs: Any, path: str, name: str, key: str | None = None) -> Iterator[Any]:
    """Members of a JSON document that is a list, or of a list in its object.

    Args:
        key: name of the list in the object; None for its only list.

    Raises:
        DataError: invalid JSON, no such list, or several lists and no key.
    """
    if _is_small(fs, path):
        yield from _listed(_parsed(fs, path, name), name, key)
        return
    kinds = dict(_top_level(fs, path, name))
    prefix = "item" if kinds.get("") == "list" else f"{_only_list(kinds, name, key)}.item"
    yield from _streamed(fs, path, name, lambda file: ijson.items(file, prefix, use_float=True))


def json_pairs(fs: Any, path: str, name: str) -> Iterator[tuple[str, Any]]:
    """Keys and values of a JSON document that is an object; DataError if it is not."""
    if not _is_small(fs, path):
        if dict(_top_level(fs, path, name)).get("") != "dict":
            raise DataError(f"{name}: expected an object")
        yield from _streamed(fs, path, name, lambda file: ijson.kvitems(file, "", use_float=True))
        return
    document = _parsed(fs, path, name)
    if not isinstance(document, dict):
        raise DataError(f"{name}: expected an object, found {type(document).__name__}")
    yield from document.items()


def _is_small(fs: Any, path: str) -> bool:
    return int(fs.size(path) or 0) <= WHOLE_BYTES


def _parsed(fs: Any, path: str, name: str) -> Any:
    try:
        return orjson.loads(fs.cat_file(path))
    except orjson.JSONDecodeError as error:
        raise DataError(f"{name}: broken JSON: {error}") from None


def _listed(document: Any, name: str, key: str | None) -> list[Any]:
    if isinstance(document, dict):
        document = document[_only_list({k: type(value).__name__ for k, value in document.items()}, name, key)]
    if not isinstance(document, list):
        raise DataError(f"{name}: expected a list of records, found {type(document).__name__}")
    return document


def _only_list(kinds: Mapping[str, str], name: str, key: str | None) -> str:
    """The name of the list among an object's members, given their types."""
    lists = [member for member, kind in kinds.items() if kind == "list"]
    if key is None and len(lists) != 1:
        names = sorted(member for member in kinds if member)
        raise DataError(f"{name}: expected a list of records, or an object with one, found keys {names}")
    if key is not None and key not in lists:
        raise DataError(f"{name}: expected a list {key!r} in an object.{did_you_mean(key, lists)}")
    return key or lists[0]


def _top_level(fs: Any, path: str, name: str) -> Iterator[tuple[str, str]]:
    """Type of a document (key: empty name), and of the members of an object (key: name)."""
    depth, key = 0, ""
    names = {"start_array": "list", "start_map": "dict"}
    for event, value in _streamed(fs, path, name, ijson.basic_parse):
        if depth == 1 and event == "map_key":
            key = value
        elif event in names:
            if depth == 0 or (depth == 1 and key):
                yield key, names[event]
            depth += 1
        elif event in ("end_array", "end_map"):
            depth -= 1


def _streamed(fs: Any, path: str, name: str, read: Callable[[Any], Iterator[Any]]) -> Iterator[Any]:
    try:
        with fs.open(path, "rb") as file:
            yield from read(file)
    except ijson.JSONError as error:
        raise DataError(f"{name}: broken JSON: {error}") from None


def _is_lines(fs: Any, path: str) -> bool:
    """Whether the first line is a complete JSON object (POPE's `.json` files)."""
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
    """A cell's value: None if empty, a list if it is a JSON list (`["yes", "no"]`), else its text."""
    if text.startswith("[") and text.endswith("]"):
        with contextlib.suppress(orjson.JSONDecodeError):
            return orjson.loads(text)
    return text or None


def _parquet(fs: Any, path: str, name: str) -> Iterator[Record]:
    try:
        with fs.open(path, "rb") as raw:
            file = pq.ParquetFile(raw)
            held = picture_column(file.schema_arrow)
            columns = [column for column in file.schema_arrow.names if column != held]
            leaf, is_light = (None, True) if held is None else _counting_leaf(file, held)
            read = columns if leaf is None else [*columns, leaf]
            row = 0
            for batch in file.iter_batches(BATCH if is_light else BATCH_OF_PICTURES, columns=read):
                counts = [int(held is not None)] * len(batch) if leaf is None else _counts(batch.column(held))
                for value, count in zip(batch.select(columns).to_pylist(), counts, strict=True):
                    yield Record(f"row {row}", {**value, "image_row": (row, count)} if count else value)
                    row += 1
    except pa.ArrowInvalid as error:
        raise DataError(f"{name}: not a Parquet file: {error}") from None


def picture_column(schema: pa.Schema) -> str | None:
    """The column with encoded images: `image`, else `images`; None if there is none.

    A cell is one image or a list of several, each binary or a struct with `bytes`, as in Hugging Face data sets.
    """
    return next((name for name in ("image", "images") if name in schema.names and _held(schema.field(name).type)), None)


def _held(kind: pa.DataType) -> bool:
    if _is_list(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _counting_leaf(file: pq.ParquetFile, column: str) -> tuple[str | None, bool]:
    """The column to read to count the images of each row, and whether image bytes remain unread.

    That is a field beside the bytes, such as names, if there is one. A column of single images is not read: each row
    has one image.
    """
    leaves = [file.schema.column(i).path for i in range(len(file.schema))]
    own_leaves = [leaf for leaf in leaves if leaf.split(".")[0] == column]
    light = [leaf for leaf in own_leaves if leaf.rsplit(".", 1)[-1] != "bytes" and leaf != column]
    listed = _is_list(file.schema_arrow.field(column).type)
    if listed and not pa.types.is_struct(file.schema_arrow.field(column).type.value_type):
        light = []
    return (light[0], True) if light else (own_leaves[0], False) if listed else (None, True)


def _counts(cells: pa.Array) -> list[int]:
    """Number of images of each cell of a column."""
    if _is_list(cells.type):
        return pc.fill_null(pc.list_value_length(cells), 0).to_pylist()
    return cells.is_valid().cast(pa.int64()).to_pylist()
