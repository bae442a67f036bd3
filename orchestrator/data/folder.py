"""Images of one's own: a folder and a CSV file with one row an image and one column an attribute."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import fsspec
import numpy as np
import polars as pl

from orchestrator.config import FolderConfig
from orchestrator.data.attributes import Kind
from orchestrator.data.images import read_image, safe_name
from orchestrator.data.sample import Sample
from orchestrator.errors import DataError, did_you_mean
from orchestrator.store.tables.core import TABLES

FOLDER_VERSION = 2
"""Raised whenever the same folder and table give other images or attributes; part of the fingerprint."""


class FolderSource:
    """The images that a CSV file lists, in its order (or a draw of them).

    The column `file` holds each image's path below the folder; a column `id`, where there is one, its id (else the
    path is the id). Every other column is an attribute, typed by its content: whole numbers are counts, other numbers
    continuous, anything else (truth values too) categorical. An empty cell, NA or NaN is a missing value.

    Raises DataError where the folder or table is missing, empty or malformed, or a path leaves the folder.
    """

    name = "folder"

    def __init__(self, config: FolderConfig) -> None:
        self.config = config
        self.fs, self.root = fsspec.core.url_to_fs(config.root)
        if not self.fs.isdir(self.root):
            raise DataError(f"data.root: no folder {config.root}")
        file = safe_name(config.attributes, "data.attributes")
        if not self.fs.isfile(f"{self.root}/{file}"):
            names = [path.rsplit("/", 1)[-1] for path in self.fs.ls(self.root, detail=False)]
            tables = [name for name in names if name.endswith(".csv")]
            raise DataError(f"data.attributes: {config.root} holds no {file}.{did_you_mean(file, tables)}")
        data = self.fs.cat_file(f"{self.root}/{file}")
        self.digest = hashlib.sha256(data).hexdigest()
        table = _read(data, file)
        if config.n_images is not None:
            if config.n_images > len(table):
                raise DataError(f"data.n_images: {config.n_images} asked for, {file} lists {len(table)}")
            drawn = np.random.default_rng([config.seed, len(table)]).permutation(len(table))[: config.n_images]
            table = table[np.sort(drawn).tolist()]
        self.names = [safe_name(name, f"{file}, row {i + 2}") for i, name in enumerate(table["file"].to_list())]
        self.ids: Sequence[str] = table["id"].cast(pl.String).to_list() if "id" in table.columns else self.names
        self.table = table.drop("file", "id", strict=False)
        self.attribute_kinds: Mapping[str, Kind] = {name: _kind(dtype) for name, dtype in self.table.schema.items()}

    def __len__(self) -> int:
        return len(self.ids)

    def load(self, index: int) -> Sample:
        name = self.names[index]
        image = read_image(self.fs, f"{self.root}/{name}", name, turn=True)
        return Sample(self.ids[index], image, self.table.row(index, named=True))

    def fingerprint(self) -> dict[str, Any]:
        settings = self.config.model_dump(mode="json", exclude={"root", "max_rejected_fraction"})
        return {**settings, "version": FOLDER_VERSION, "table": self.digest}


def _kind(dtype: pl.DataType) -> Kind:
    if dtype.is_integer():
        return "count"
    return "continuous" if dtype.is_float() else "categorical"


def _read(data: bytes, file: str) -> pl.DataFrame:
    try:
        table = pl.read_csv(
            io.BytesIO(data),
            infer_schema_length=None,
            schema_overrides={"file": pl.String, "id": pl.String},
            null_values=["NA", "NaN", "nan"],
        )
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not a CSV table: {error}") from None
    if "file" not in table.columns:
        raise DataError(
            f"{file}: expected a column `file`, found {table.columns}.{did_you_mean('file', table.columns)}"
        )
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
        if key in table.columns:
            if table[key].null_count():
                row = table[key].is_null().arg_max()
                raise DataError(f"{file}, row {(row or 0) + 2}: the column {key!r} is empty")
            if table[key].n_unique() < len(table):
                twice = table[key].filter(table[key].is_duplicated())[0]
                raise DataError(f"{file}: {key} {twice!r} occurs more than once")
    for name, dtype in table.schema.items():
        if dtype.is_integer() and dtype != pl.Int64:
            raise DataError(f"{file}: column {name!r} holds whole numbers of more than 64 bits")
        if dtype.is_float() and table[name].is_infinite().any():
            raise DataError(f"{file}: column {name!r} holds an infinite value; expected a number or an empty cell")
    truths = [name for name, dtype in table.schema.items() if dtype == pl.Boolean]
    return table.with_columns(pl.col(truths).cast(pl.String))
