"""Index of question files: a table of checked rows with random access from any process.

The table is a Parquet file in the user's cache folder, named by the files' content and the settings that shape it. It
is built in one pass in batches: memory is constant except for 8 bytes per row.

Rows are not read by `ray.data.read_json` or polars: both assign one type to each column of a file, so a number among
texts becomes null or text before it can be reported with its line. Rows are small; images are loaded by Ray's tasks.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from orchestrator.data.attributes import Kind
from orchestrator.data.content import file_digests
from orchestrator.data.files.layouts import Files, Layout
from orchestrator.data.files.table import Shape, write_table
from orchestrator.errors import DataError
from orchestrator.store.content_cache import cache_folder

VERSION = 6
"""Raised if the same files give other rows; part of the table's name and of the fingerprint."""
MAX_NAMED = 10
"""Maximum number of invalid rows listed in one message."""


def files_digest(fs: Any, root: str, names: Sequence[str]) -> str:
    """Digest of the question files' content."""
    return hashlib.sha256("\n".join(file_digests(fs, root, names)).encode()).hexdigest()


def build_index(key: Mapping[str, Any], files: Files, layout: Layout, shape: Shape) -> Path:
    """The table of the files' rows, built if it does not exist. It includes invalid rows, with the reason."""
    key = {**key, "shape": asdict(shape)}
    name = hashlib.sha256(json.dumps({"version": VERSION, **key}, sort_keys=True).encode()).hexdigest()[:32]
    path = cache_folder("questions") / f"{name}.parquet"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as part:
            try:
                write_table(part, files, layout, shape)
            except BaseException:
                with contextlib.suppress(OSError):
                    Path(part.name).unlink()
                raise
        Path(part.name).replace(path)
    return path


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
        """A free attribute of every row as a number: float64, NaN if missing."""
        parts = []
        for batch in self.file.iter_batches(65_536, columns=["numbers"]):
            chunk = batch.column(0)
            values = np.full(len(chunk), np.nan)
            positions = pc.equal(chunk.keys, name).to_numpy(zero_copy_only=False).nonzero()[0]
            offsets = chunk.offsets.to_numpy() - chunk.offsets[0].as_py()
            rows = np.searchsorted(offsets, positions, side="right") - 1
            values[rows] = chunk.items.to_numpy(zero_copy_only=False)[positions]
            parts.append(values)
        return np.concatenate(parts) if parts else np.zeros(0)

    def attribute(self, name: str) -> list[Any]:
        """A free attribute of every row, as in the file; None if missing."""
        values: list[Any] = []
        for batch in self.file.iter_batches(8192, columns=["row"]):
            rows = (orjson.loads(text) for text in batch.column(0).to_pylist())
            values += [row["attributes"].get(name) if row else None for row in rows]
        return values

    def __getitem__(self, place: int) -> dict[str, Any]:
        group = int(np.searchsorted(self._starts, place, side="right")) - 1
        with self._lock:
            if self._group[0] != group:
                self._group = group, self.file.read_row_group(group).to_pylist()
            held = self._group
        return held[1][place - int(self._starts[group])]

    def check(self, max_rejected_fraction: float) -> list[str]:
        """Reasons of all invalid rows.

        Raises:
            DataError: no rows, more invalid rows than allowed, or a duplicate id, with both places.
        """
        if not len(self):
            raise DataError("data.file: the question files hold no rows")
        reasons = self.column("reason").drop_null().to_pylist()
        if len(reasons) > max_rejected_fraction * len(self) + 1e-9:
            omitted = f"\n  and {len(reasons) - MAX_NAMED} more" if len(reasons) > MAX_NAMED else ""
            raise DataError(
                f"data.file: {len(reasons)} of {len(self)} rows are bad; data.max_rejected_fraction="
                f"{max_rejected_fraction:g} allows fewer:\n  " + "\n  ".join(reasons[:MAX_NAMED]) + omitted
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
