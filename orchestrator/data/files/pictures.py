"""The images of question files: files below the root, or bytes in a Parquet column."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from orchestrator.data.files.records import picture_column
from orchestrator.data.images import decode, read_image, safe_name
from orchestrator.errors import DataError
from orchestrator.store.reading import retrying


class _Listed:
    """Whether paths below a root exist, by one listing per folder."""

    def __init__(self, fs: Any, root: str) -> None:
        self.fs, self.root = fs, root
        self.folders: dict[str, frozenset[str]] = {}

    def __call__(self, path: str) -> bool:
        folder, _, name = f"{self.root}/{path}".rpartition("/")
        if folder not in self.folders:
            self.folders[folder] = self._names(folder)
        return name in self.folders[folder]

    def _names(self, folder: str) -> frozenset[str]:
        try:
            self.fs.invalidate_cache(folder)
            listing = retrying(lambda: self.fs.ls(folder, detail=False), folder)
        except (FileNotFoundError, NotADirectoryError):
            return frozenset()
        return frozenset(path.rstrip("/").rsplit("/", 1)[-1] for path in listing)


@dataclass(frozen=True)
class Pictures:
    """Locates and reads images; small when pickled."""

    fs: Any
    """An fsspec file system."""
    root: str
    """Folder, as a path of `fs`."""
    patterns: Sequence[str]
    """Paths of an image below the root (`data.images`); of several the first that exists."""
    files: Sequence[str]
    """The question files, whose columns may contain images."""
    version: str
    """Digest of the question files."""

    def pixels(self, record: Mapping[str, Any], images: Sequence[str]) -> list[np.ndarray]:
        """The images of a stored row, in order, each RGB uint8 (height, width, 3).

        Args:
            record: the row as stored in the index.
            images: names of its images: files, or entries of a Parquet column.
        """
        if record["image_row"] is not None:
            return self._from_column(record["image_file"], record["image_row"])
        names = [self.path(image) for image in images]
        return [read_image(self.fs, f"{self.root}/{name}", name) for name in names]

    def path(self, image: str, present: Callable[[str], bool] | None = None) -> str:
        """Path of an image below the root.

        Args:
            present: whether a path below the root exists; None asks the file system.
        """
        number = re.search(r"\d{12}", image)
        filled = [
            safe_name(
                pattern.replace("{image}", image).replace("{number}", number[0] if number else image), "data.images"
            )
            for pattern in self.patterns
        ]
        if len(filled) == 1:
            return filled[0]
        present = present or (lambda path: self.fs.isfile(f"{self.root}/{path}"))
        return next((path for path in filled if present(path)), filled[0])

    def _from_column(self, file: int, row: int) -> list[np.ndarray]:
        name = self.files[file]
        cell = _row_group(self.fs, f"{self.root}/{name}", self.version, row)
        pictures = []
        for value in cell if isinstance(cell, list) else [cell]:
            data = value.get("bytes") if isinstance(value, dict) else value
            if not data:
                raise DataError(f"{name}, row {row}: its column of images holds no bytes")
            pictures.append(decode(data, f"{name}, row {row}"))
        return pictures

    def there(self, names: Sequence[str]) -> list[bool]:
        """Whether each name has a file."""
        listed = _Listed(self.fs, self.root)
        return [listed(self.path(name, listed)) for name in names]

    def paths(self, names: Sequence[str]) -> list[str]:
        """`path` of each name, with one listing per folder."""
        listed = _Listed(self.fs, self.root)
        return [self.path(name, listed) for name in names]


@lru_cache(maxsize=4)
def _picture_groups(path: str, fs: Any, version: str) -> tuple[pq.ParquetFile, np.ndarray]:  # noqa: ARG001 - key
    file = pq.ParquetFile(fs.open(path, "rb"))
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    return file, np.concatenate([[0], np.cumsum(sizes)])


@lru_cache(maxsize=2)
def _group_values(path: str, fs: Any, version: str, group: int) -> list[Any]:
    file, _ = _picture_groups(path, fs, version)
    column = picture_column(file.schema_arrow)
    return file.read_row_group(group, columns=[column])[column].to_pylist()


def _row_group(fs: Any, path: str, version: str, row: int) -> Any:
    """The cell of images of a row; its row group is cached."""
    _, starts = _picture_groups(path, fs, version)
    group = int(np.searchsorted(starts, row, side="right")) - 1
    return _group_values(path, fs, version, group)[row - int(starts[group])]
