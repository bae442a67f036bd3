"""Where results lie: digests, stage directories, shards, `_SUCCESS`, and tables read lazily.

    STORAGE/
      capture/DIGEST/            one directory a stage and *what*; equal work is never done twice
        stage.json               the *what*, its inputs' digests and the shard plan; written first
        shards/00000.json        what shard 0 holds: rows, shapes, dtypes, checksums; written after its files
        layer_metrics/00000.parquet
        features/decoder/00000.npy
        _SUCCESS                 written last
      studies/NAME/              points of a study, its report, figures and tables

A file is written under a temporary name and renamed (on an object store: one atomic put). A shard counts only if
its record equals its own checksum and every file it names has the recorded size and checksum.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import polars as pl

from orchestrator import interrupt
from orchestrator.errors import AbsentError, DamagedError, StorageError
from orchestrator.store.filesystem import FileMark, Storage, checksum, encode_json
from orchestrator.store.shard_files import Listings, read_against, side_by_side

SUCCESS = "_SUCCESS"
STAGE_FILE = "stage.json"


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces; the only form that is hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of `value`'s canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Stage:
    """One stage's directory, keyed by the digest of its *what* and its inputs.

    Args:
        storage: the study's storage.
        name: stage name (`capture`, `correlate`, ...).
        what: everything that determines the stage's result, as plain JSON values.
        inputs: input name -> digest of the stage it comes from.
    """

    storage: Storage
    name: str
    what: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        return digest({"stage": self.name, "what": dict(self.what), "inputs": dict(self.inputs)})

    @property
    def folder(self) -> str:
        return f"{self.name}/{self.digest}"

    @cached_property
    def store(self) -> Storage:
        return self.storage.sub(self.folder)

    # -- plan and completion

    def open(self, plan: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Create `stage.json` on first use and return its plan; the first run's plan where there was one.

        Of two runs that begin a stage at the same moment one's plan holds for both.

        Raises:
            StorageError: `stage.json` is there and damaged; what its shards hold is not known.
        """
        if not self.store.exists(STAGE_FILE):
            record = {"stage": self.name, "what": self.what, "inputs": self.inputs, "plan": dict(plan or {})}
            self.store.create(STAGE_FILE, encode_json({**record, "checksum": digest(record["plan"])}))
        try:
            stored = self.store.read_json(STAGE_FILE)
            if stored["checksum"] != digest(stored["plan"]):
                raise ValueError(f"{self.folder}/{STAGE_FILE} is damaged: its plan is not the one that was written")
            return dict(stored["plan"])
        except (DamagedError, KeyError, TypeError, ValueError) as error:
            found_fault = str(error) if isinstance(error, DamagedError | ValueError) else f"{STAGE_FILE} is damaged"
            raise StorageError(f"{found_fault}; remove the folder {self.store.uri} to begin the stage again") from error

    def is_done(self) -> bool:
        """Whether `_SUCCESS` is there (written only after every shard was checked)."""
        return self.store.exists(SUCCESS)

    def mark_done(self, summary: Mapping[str, Any] | None = None) -> None:
        """Write `_SUCCESS`, unless this process was asked to stop: what was verified may then be what was left."""
        interrupt.check()
        record = json.loads(encode_json(dict(summary or {})))
        self.store.write_json(SUCCESS, {**record, "checksum": checksum(encode_json(record))})

    def summary(self) -> dict[str, Any]:
        """What `mark_done` recorded."""
        return self._signed(SUCCESS)

    # -- shards

    def write_shard(
        self,
        index: int,
        tables: Mapping[str, pl.DataFrame],
        arrays: Mapping[str, np.ndarray] | None = None,
        extra: Mapping[str, Any] | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        """Write a shard's files under deterministic names, then its record. Writing a shard twice is harmless.

        Args:
            index: number of the shard.
            tables: name -> rows.
            arrays: name -> array, never pickled.
            extra: plain values for the record.
            files: name below the stage's folder -> content of further files, which the record vouches for too.
        """
        record: dict[str, Any] = {"tables": {}, "arrays": {}, "dtypes": {}, "files": {}, "extra": dict(extra or {})}
        for name, table in tables.items():
            file = f"{name}/{index:05d}.parquet"
            record["files"][file] = self.store.write_table(file, table)
            record["tables"][name] = table.height
        for name, array in (arrays or {}).items():
            file = f"{name}/{index:05d}.npy"
            record["files"][file] = self.store.write_array(file, array)
            record["arrays"][name], record["dtypes"][name] = list(array.shape), str(array.dtype)
        for file, data in (files or {}).items():
            record["files"][file] = self.store.write_marked(file, data)
        record = json.loads(encode_json(record))  # as it will be read: keys are text, tuples are lists
        self.store.write_json(f"shards/{index:05d}.json", {**record, "checksum": checksum(encode_json(record))})

    def read_shard(self, index: int) -> dict[str, Any] | None:
        """The record of a shard whose every file is as it was written, else None (missing, cut short or altered).

        Raises:
            StorageError: the storage does not answer: not a reason to do the shard again.
        """
        return self._shard_record(index) if self.check_shard(index)[0] is None else None

    def check_shard(self, index: int) -> tuple[str | None, int]:
        """What is wrong with a shard's files, None for nothing, and the bytes that were read."""
        size = 0
        try:
            record = self._shard_record(index)
            for name, mark in record["files"].items():
                data = self.store.read(name)
                size += len(data)
                if len(data) != mark["bytes"]:
                    return f"{name}: {len(data)} bytes, expected {mark['bytes']}", size
                if checksum(data) != mark["blake2b"]:
                    return f"{name}: its content is not what was written", size
        except FileNotFoundError as error:
            return f"missing: {PurePosixPath(str(error.filename or error)).name}", size
        except DamagedError as error:
            return str(error), size
        return None, size

    def written_shards(self) -> list[int]:
        """Indices of the shards that have a record, ascending; one listing, nothing is read."""
        stems = [PurePosixPath(n).stem for n in self.store.files("shards") if n.endswith(".json")]
        return sorted(int(stem) for stem in stems if stem.isdigit())

    def finished_shards(self) -> dict[int, dict[str, Any]]:
        """Index -> record of every whole shard, ascending. Read side by side: an object store answers in its own time.

        Of a finished stage only the records are read. Of an unfinished one a file counts that has its recorded size and
        was not written after its record; the others are read. Whoever uses a table or an array reads all of it against
        its checksum (`scan`, `arrays`), as does `store.verify`.
        """
        states = None if self.is_done() else Listings(self.store)

        def read(index: int) -> dict[str, Any] | None:
            if states is None:
                return self._shard_record(index)
            try:
                record = self._shard_record(index)
            except (DamagedError, FileNotFoundError):
                return None
            untouched = all(states.untouched(name, mark["bytes"], index) for name, mark in record["files"].items())
            return record if untouched else self.read_shard(index)

        indices = self.written_shards()
        pairs = zip(indices, side_by_side(self.store, read, indices), strict=True)
        return {index: record for index, record in pairs if record is not None}

    def _shard_record(self, index: int) -> dict[str, Any]:
        return self._signed(f"shards/{index:05d}.json")

    def _signed(self, name: str) -> dict[str, Any]:
        """A JSON object that equals the checksum it holds."""
        content = self.store.read_json(name)
        record = (
            {key: value for key, value in content.items() if key != "checksum"} if isinstance(content, dict) else {}
        )
        if not isinstance(content, dict) or content.get("checksum") != checksum(encode_json(record)):
            raise self.damaged(name, "it does not equal its checksum")
        return record

    def damaged(self, name: str, problem: str) -> DamagedError:
        """The error for a file that is not what was written."""
        return DamagedError(
            f"{self.storage.locate(self.folder)}: {name} is damaged: {problem}. "
            "`vtsweep verify STUDY --redo` takes it back; the same command then does it again"
        )

    # -- reading

    def scan(self, table: str) -> pl.LazyFrame:
        """Lazy table over the shards of `table`, in shard order, each file read once a process against its checksum.

        Raises:
            AbsentError: the stage has no such table.
            DamagedError: a file is not what was written.
        """
        names = self.check_files(table, ".parquet")
        if not names:
            raise AbsentError(f"{self.name} {self.digest} in {self.storage.uri} holds no table {table!r}")
        return self.store.scan(names)

    def arrays(self, name: str) -> list[np.ndarray]:
        """The shards of array `name`, in shard order, memory-mapped where storage is local.

        Each file is read once a process against its checksum.

        Raises:
            AbsentError: the stage has no such array.
            DamagedError: a file is not what was written.
        """
        names = self.check_files(name, ".npy")
        if not names:
            raise AbsentError(f"{self.name} {self.digest} in {self.storage.uri} holds no array {name!r}")
        return [self.store.read_array(n) for n in names]

    def check_files(self, folder: str, suffix: str = ".npy") -> list[str]:
        """Read the shards' files of a table or array against their checksums; those that were read before in this
        process and not written since are not read again.

        Returns:
            names of the files, in shard order.

        Raises:
            DamagedError: a file is not what was written.
        """
        names = self._shard_files(folder, suffix)
        read_against(self.store, names, self._mark, self.damaged)
        return names

    def _mark(self, name: str) -> FileMark | None:
        """What was recorded of a table's or an array's file when it was written."""
        return dict(self._shard_record(int(PurePosixPath(name).stem))["files"]).get(name)

    def read_file(self, name: str) -> bytes:
        """One of the further files of a shard (`write_shard`), against its checksum.

        Raises:
            DamagedError: it is not what was written, or no shard vouches for it.
        """
        data = self.store.read(name)
        marks = (self._shard_record(index)["files"].get(name) for index in reversed(self.written_shards()))
        mark = next((mark for mark in marks if mark), None)
        if mark is None or checksum(data) != mark["blake2b"]:
            raise self.damaged(name, "its content is not what was written")
        return data

    def _shard_files(self, folder: str, suffix: str) -> list[str]:
        """Files of `folder` that belong to a recorded shard, in the order of the shards.

        A shard cut short has some files and no record; a copy made by hand has another name. Neither counts.
        """
        there = set(self.store.files(folder))
        names = [f"{index:05d}{suffix}" for index in self.written_shards()]
        return [f"{folder}/{name}" for name in names if name in there]
