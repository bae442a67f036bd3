"""Storage of results on a disk or an object store: atomic writes, tables, arrays."""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import io
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import fsspec
import numpy as np
import polars as pl
from fsspec.implementations.local import LocalFileSystem

from orchestrator.errors import DamagedError, StorageError
from orchestrator.store.transient import retried


@dataclass(frozen=True)
class Storage:
    """A folder or fsspec URI (`s3://bucket/prefix`, `gs://...`, a path). Picklable; opened on first use in each
    process."""

    uri: str

    @cached_property
    def _opened(self) -> tuple[fsspec.AbstractFileSystem, str]:
        try:
            fs, root = fsspec.core.url_to_fs(self.uri)
        except (ImportError, ValueError) as error:
            raise StorageError(f"storage {self.uri!r}: {error}") from error
        return fs, root.rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        return {"uri": self.uri}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        return self._opened[0]

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def path(self, name: str) -> str:
        """Absolute path of `name` in this storage, in the form of its filesystem."""
        return f"{self._opened[1]}/{name}" if name else self._opened[1]

    def locate(self, name: str) -> str:
        """Location of `name` for users and commands: a path, or the URI of an object store."""
        return self.path(name) if self.is_local else f"{self.uri.rstrip('/')}/{name}".rstrip("/")

    def sub(self, name: str) -> Storage:
        """A storage rooted at the folder `name` of this one."""
        return Storage(f"{self.uri.rstrip('/')}/{name}")

    def write(self, name: str, data: bytes) -> None:
        """Publish `data` at `name` in one atomic step.

        Raises:
            StorageError: no space, no permission, or the store is unreachable; nothing is written at `name`.
        """
        with self._named_errors(f"cannot write {name}", ". Finished work is kept."):
            if self.is_local:
                retried(lambda: _write_local(Path(self.path(name)), data))
            else:
                retried(lambda: self.fs.pipe_file(self.path(name), data))

    def create(self, name: str, data: bytes) -> None:
        """Publish `data` at `name` unless the file exists. One of several writers wins: read the file back.

        On a store without conditional writes the last of two simultaneous writers wins.
        """
        if self.is_local:
            with self._named_errors(f"cannot write {name}"):
                retried(lambda: _write_local(Path(self.path(name)), data, replace=False))
            return
        try:
            self.fs.pipe_file(self.path(name), data, mode="create")
        except Exception:  # another writer was first, or the store does not support this mode
            if not self.exists(name):
                self.write(name, data)

    def remove(self, name: str) -> None:
        """Delete the file `name`; no error if it is absent (another process may have deleted it)."""
        with self._named_errors(f"cannot delete {name}"), contextlib.suppress(FileNotFoundError):
            retried(lambda: self.fs.rm_file(self.path(name)))

    def read(self, name: str) -> bytes:
        """Bytes of `name`; `FileNotFoundError` if absent, `StorageError` if it cannot be read."""
        with self._named_errors(f"cannot read {name}", missing=(FileNotFoundError,)):
            return retried(lambda: self.fs.cat_file(self.path(name)))

    def exists(self, name: str) -> bool:
        with self._named_errors(f"cannot look for {name}"):
            return bool(retried(lambda: self.fs.exists(self.path(name))))

    def modified(self, name: str) -> float:
        """Modification time of `name`, seconds since 1970."""
        with self._named_errors(f"cannot read {name}"):
            return float(self.fs.modified(self.path(name)).timestamp())

    @contextlib.contextmanager
    def _named_errors(self, action: str, end: str = "", missing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """Convert exceptions of a file system into `StorageError`, except `missing`."""
        try:
            yield
        except missing:
            raise
        except StorageError:
            raise
        except Exception as error:  # object-store clients have their own exception types: no credentials, no endpoint
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = "no space left" if full else str(error)
            raise StorageError(f"{action} in {self.uri}: {reason}{end}") from error

    def files(self, folder: str) -> list[str]:
        """Sorted names of the files directly below `folder`; empty if there are none."""
        self.fs.invalidate_cache()
        with self._named_errors(f"cannot list {folder}", missing=(FileNotFoundError,)):
            try:
                entries = retried(lambda: self.fs.ls(self.path(folder), detail=False))
            except FileNotFoundError:
                return []
        return sorted(PurePosixPath(p).name for p in entries)

    def states(self, folder: str) -> dict[str, FileState]:
        """Name below `folder` -> size and modification time of each file, by one listing."""
        self.fs.invalidate_cache()
        with self._named_errors(f"cannot list {folder}", missing=(FileNotFoundError,)):
            try:
                entries = retried(lambda: self.fs.ls(self.path(folder), detail=True))
            except FileNotFoundError:
                return {}
        lead = f"{folder}/" if folder else ""
        return {lead + PurePosixPath(info["name"]).name: _state(info) for info in entries}

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, encode_json(value))

    def read_json(self, name: str) -> Any:
        """The value in `name`; `FileNotFoundError` if absent, `StorageError` if it is not valid JSON."""
        try:
            value = json.loads(data := self.read(name), parse_int=_whole_number)
            if b"\\u" in data:
                encode_json(value)  # an escaped unpaired surrogate is not a character
            return value
        except (ValueError, RecursionError) as error:
            raise DamagedError(f"{name} in {self.uri} is damaged: {str(error)[:200]}") from error

    def write_table(self, name: str, table: pl.DataFrame) -> FileMark:
        """Publish `table` as zstd Parquet; returns its size and checksum."""
        buffer = io.BytesIO()
        table.write_parquet(buffer, compression="zstd")
        return self.write_marked(name, buffer.getvalue())

    def write_array(self, name: str, array: np.ndarray) -> FileMark:
        """Publish `array` as `.npy` (never pickled); returns its size and checksum."""
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        return self.write_marked(name, buffer.getvalue())

    def write_marked(self, name: str, data: bytes) -> FileMark:
        """Publish `data`; returns its size and checksum."""
        self.write(name, data)
        return {"bytes": len(data), "blake2b": checksum(data)}

    def read_array(self, name: str) -> np.ndarray:
        """The array at `name`: memory-mapped on a local disk, downloaded from an object store."""
        try:
            if self.is_local:
                with self._named_errors(f"cannot read {name}", missing=(ValueError, EOFError)):
                    return retried(lambda: np.load(self.path(name), mmap_mode="r", allow_pickle=False))
            return np.load(io.BytesIO(self.read(name)), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise DamagedError(f"{name} in {self.uri} is damaged: {str(error)[:200]}") from error

    def scan(self, names: list[str]) -> pl.LazyFrame:
        """Lazy table over Parquet files: read by column from a local disk, completely from an object store."""
        try:
            if self.is_local:
                return pl.scan_parquet([self.path(n) for n in names])
            return pl.concat([pl.read_parquet(self.read(n)).lazy() for n in names])
        except pl.exceptions.PolarsError as error:
            raise DamagedError(f"a table in {self.uri} is damaged: {str(error)[:200]}") from error


FileMark = dict[str, Any]
"""Size and checksum of a file."""


class FileState(NamedTuple):
    """State of a file in a listing."""

    size: int
    modified: float | None
    """Modification time, seconds since 1970; None if the store does not provide it."""
    identity: str
    """Identity of this version of the file, as far as the store provides one."""


def _state(info: dict[str, Any]) -> FileState:
    """Stores differ in the name and type of the modification time."""
    keys = ("mtime", "LastModified", "last_modified", "updated", "created")
    when = next((info[key] for key in keys if info.get(key) is not None), None)
    if isinstance(when, str):
        with contextlib.suppress(ValueError):
            when = datetime.datetime.fromisoformat(when)
    if isinstance(when, datetime.datetime):
        when = when.timestamp()
    modified = float(when) if isinstance(when, int | float) else None
    return FileState(int(info.get("size") or 0), modified, f"{info.get('size')} {when} {info.get('ETag')}")


def checksum(data: bytes | memoryview) -> str:
    """BLAKE2b of 128 bits, in hex: about 1 GB/s on one core."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _whole_number(text: str) -> int:
    """Reject integers beyond 64 bits: JSON has integers of any length, but no count, seed or size exceeds 64 bits."""
    if len(text) > 19:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def encode_json(value: Any) -> bytes:
    """JSON as stored: readable, with sorted keys."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).encode()


def _write_local(target: Path, data: bytes, *, replace: bool = True) -> None:
    """Write `target` atomically; without `replace`, keep an existing file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        if not replace:
            try:
                os.link(temporary, target)
            except FileExistsError:
                return
            except OSError:  # this file system has no hard links
                replace = not target.exists()
        if replace:
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
