"""A folder of images with a CSV file: one row per image, one column per attribute."""

from __future__ import annotations

import csv
import hashlib
import io
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import fsspec
import numpy as np
import polars as pl

from orchestrator.config import FolderConfig
from orchestrator.data.attributes import Kind
from orchestrator.data.columns import Column, type_column
from orchestrator.data.content import content_digest
from orchestrator.data.images import read_image, safe_name
from orchestrator.data.sample import Sample
from orchestrator.errors import ConfigError, DataError, did_you_mean
from orchestrator.store.reading import read_bytes
from orchestrator.store.tables.core import TABLES

FOLDER_VERSION = 3
"""Incremented whenever the same folder and table give different images or attributes; part of the fingerprint."""


class FolderSource:
    """The images listed in a CSV file, in its order (or a sample of them).

    The column `file` holds each image's path below the folder; an optional column `id` its id (default: the
    path). Every other column is an attribute of a declared kind, or typed by its values (`type_column`).

    Raises DataError if the folder or table is missing, empty or malformed, a value does not have its column's kind,
    a path leaves the folder, or two rows name one file.
    """

    name = "folder"

    def __init__(self, config: FolderConfig) -> None:
        self.config = config
        self.fs, self.root = fsspec.core.url_to_fs(config.root)
        if not self.fs.isdir(self.root):
            raise DataError(f"data.root: no folder {config.root}")
        file = safe_name(config.table, "data.table")
        if not self.fs.isfile(f"{self.root}/{file}"):
            names = [path.rsplit("/", 1)[-1] for path in self.fs.ls(self.root, detail=False)]
            tables = [name for name in names if name.endswith(".csv")]
            raise DataError(f"data.table: {config.root} holds no {file}.{did_you_mean(file, tables)}")
        data = read_bytes(self.fs, f"{self.root}/{file}", file)
        self.digest = hashlib.sha256(data).hexdigest()
        table = _read(data, file)
        names = [safe_name(name, f"{file}, row {i + 2}") for i, name in enumerate(table["file"].to_list())]
        check_unique(names, file, "file", self.fs, self.root)
        ids = table["id"].to_list() if "id" in table.columns else names
        columns = _typed(table.drop("file", "id", strict=False), file, config)
        self.attribute_kinds: Mapping[str, Kind] = {name: column.kind for name, column in columns.items()}
        self.missing_spellings = {name: column.missing for name, column in columns.items() if column.missing}
        self.table = pl.DataFrame([column.values for column in columns.values()])
        if config.n_images is not None:
            if config.n_images > len(names):
                raise DataError(f"data.n_images: {config.n_images} asked for, {file} lists {len(names)}")
            drawn = np.random.default_rng([config.seed, len(names)]).permutation(len(names))[: config.n_images]
            chosen = np.sort(drawn).tolist()
            names, ids, self.table = [names[i] for i in chosen], [ids[i] for i in chosen], self.table[chosen]
        self.names: list[str] = names
        self.ids: Sequence[str] = ids

    def __len__(self) -> int:
        return len(self.ids)

    def attributes(self, index: int) -> dict[str, Any]:
        """Return the attributes of an image without opening its file."""
        return self.table.row(index, named=True)

    def load(self, index: int) -> Sample:
        name = self.names[index]
        image = read_image(self.fs, f"{self.root}/{name}", name)
        return Sample(self.ids[index], image, self.attributes(index))

    def fingerprint(self) -> dict[str, Any]:
        settings = self.config.model_dump(mode="json", exclude={"root", "max_rejected_fraction"})
        content = content_digest(self.fs, self.root, self.names, self.config.table)
        return {**settings, "version": FOLDER_VERSION, "table": self.digest, "images": content}


def open_folder(config: FolderConfig) -> FolderSource:
    """`FolderSource`, cached per process. Raises as it does."""
    fs, root = fsspec.core.url_to_fs(config.root)
    path = f"{root}/{config.table}"
    return _opened(config.model_dump_json(), fs.ukey(path) if fs.isfile(path) else "")


@lru_cache(maxsize=4)
def _opened(config: str, version: str) -> FolderSource:  # noqa: ARG001 - part of the key
    """`version` depends on the table."""
    return FolderSource(FolderConfig.model_validate_json(config))


def check_unique(values: Sequence[str], file: str, column: str, fs: Any = None, root: str = "") -> None:
    """DataError with both rows if a value is duplicated, or two spellings name one file of `root`."""
    rows: dict[str, int] = {}
    for row, value in enumerate(values, 2):
        if value in rows:
            raise DataError(f"{file}, rows {rows[value]} and {row}: {column} {value!r} occurs more than once")
        rows[value] = row
    if fs is None:
        return
    # Names that differ in letter case or Unicode normalisation are one file on some file systems.
    folded: dict[str, str] = {}
    for value in values:
        other = folded.setdefault(unicodedata.normalize("NFC", value).casefold(), value)
        if other != value and _same_file(fs, f"{root}/{other}", f"{root}/{value}"):
            raise DataError(f"{file}, rows {rows[other]} and {rows[value]}: {other!r} and {value!r} are one file here")


def _same_file(fs: Any, first: str, second: str) -> bool:
    try:
        return bool((inode := fs.info(first).get("ino")) and inode == fs.info(second).get("ino"))
    except OSError:
        return False


def _typed(table: pl.DataFrame, file: str, config: FolderConfig) -> dict[str, Column]:
    for name in config.attributes:
        if name not in table.columns:
            raise ConfigError(f"data.attributes: {file} has no attribute {name!r}.{did_you_mean(name, table.columns)}")
    return {name: type_column(table[name], file, config.attributes.get(name), config.missing) for name in table.columns}


def _read(data: bytes, file: str) -> pl.DataFrame:
    """The table as text; checks its encoding, its header and its columns `file` and `id`."""
    try:
        header = next(csv.reader(io.StringIO(data.decode("utf-8-sig"))), [])
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{file}, line {line}: byte {data[error.start]:#04x} is no UTF-8; save it as UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{file}: not a CSV table: {error}") from None
    for place, name in enumerate(header):
        if name and (first := header.index(name)) != place:
            raise DataError(f"{file}: columns {first + 1} and {place + 1} have one name, {name!r}")
    try:
        table = pl.read_csv(io.BytesIO(data), infer_schema=False)
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not a CSV table: {error}") from None
    if "file" not in table.columns:
        columns = table.columns
        hint = " Separate the columns by commas." if len(columns) == 1 and columns[0].count(";") else ""
        raise DataError(f"{file}: expected a column `file`, found {columns}.{hint or did_you_mean('file', columns)}")
    for name in table.columns:
        if not name or name != name.strip():
            raise DataError(f"{file}: expected a name without spaces around it for every column, found {table.columns}")
        if name in TABLES["images"].columns:
            raise DataError(f"{file}: column {name!r} is one that the table of images has itself; give it another name")
    if table.is_empty():
        raise DataError(f"{file}: the table lists no images")
    if table.width - (2 if "id" in table.columns else 1) < 1:
        raise DataError(f"{file}: expected at least one attribute column beside `file`, found {table.columns}")
    for key in ("file", "id"):
        if key not in table.columns:
            continue
        empty = table[key].is_null() | (table[key].str.strip_chars() == "")
        if empty.any():
            raise DataError(f"{file}, row {(empty.arg_max() or 0) + 2}: the column {key!r} is empty")
        check_unique(table[key].to_list(), file, key)
    return table
