"""A place for results, on a disk or an object store: atomic writes, tables, arrays."""

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
    """A folder or fsspec URI (`s3://bucket/prefix`, `gs://...`, a path). Picklable; opened where it is used."""

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
        """Absolute path of `name` inside this storage, as its filesystem wants it."""
        return f"{self._opened[1]}/{name}" if name else self._opened[1]

    def locate(self, name: str) -> str:
        """Where `name` is, as people and commands write it: a path, or the URI of an object store."""
        return self.path(name) if self.is_local else f"{self.uri.rstrip('/')}/{name}".rstrip("/")

    def sub(self, name: str) -> Storage:
        """A storage rooted at the folder `name` of this one."""
        return Storage(f"{self.uri.rstrip('/')}/{name}")

    def write(self, name: str, data: bytes) -> None:
        """Publish `data` at `name` in one atomic step.

        Raises:
            StorageError: no space, no permission, or the store cannot be reached; nothing is left at `name`.
        """
        with self._named_errors(f"cannot write {name}", ". What was finished is kept."):
            if self.is_local:
                retried(lambda: _write_local(Path(self.path(name)), data))
            else:
                retried(lambda: self.fs.pipe_file(self.path(name), data))

    def create(self, name: str, data: bytes) -> None:
        """Publish `data` at `name` unless a file is there. Of several writers one wins: read back what is there.

        A store without conditional writes lets the last of two simultaneous writers win.
        """
        if self.is_local:
            with self._named_errors(f"cannot write {name}"):
                retried(lambda: _write_local(Path(self.path(name)), data, replace=False))
            return
        try:
            self.fs.pipe_file(self.path(name), data, mode="create")
        except Exception:  # another writer was first, or the store knows no such mode
            if not self.exists(name):
                self.write(name, data)

    def remove(self, name: str) -> None:
        """Delete the file `name`; nothing where there is none (another process may have been first)."""
        with self._named_errors(f"cannot delete {name}"), contextlib.suppress(FileNotFoundError):
            retried(lambda: self.fs.rm_file(self.path(name)))

    def read(self, name: str) -> bytes:
        """Bytes of `name`; `FileNotFoundError` when absent, `StorageError` when it cannot be read."""
        with self._named_errors(f"cannot read {name}", missing=(FileNotFoundError,)):
            return retried(lambda: self.fs.cat_file(self.path(name)))

    def exists(self, name: str) -> bool:
        with self._named_errors(f"cannot look for {name}"):
            return bool(retried(lambda: self.fs.exists(self.path(name))))

    def modified(self, name: str) -> float:
        """When `name` was written, seconds since 1970."""
        with self._named_errors(f"cannot read {name}"):
            return float(self.fs.modified(self.path(name)).timestamp())

    @contextlib.contextmanager
    def _named_errors(self, what: str, end: str = "", missing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """Turn whatever a file system raises into a `StorageError`, but for `missing`."""
        try:
            yield
        except missing:
            raise
        except StorageError:
            raise
        except Exception as error:  # clients of object stores have exceptions of their own: no credentials, no endpoint
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = "no space left" if full else str(error)
            raise StorageError(f"{what} in {self.uri}: {reason}{end}") from error

    def files(self, folder: str) -> list[str]:
        """Sorted names of the files directly below `folder`; empty when there is none."""
        self.fs.invalidate_cache()
        with self._named_errors(f"cannot list {folder}", missing=(FileNotFoundError,)):
            try:
                found = retried(lambda: self.fs.ls(self.path(folder), detail=False))
            except FileNotFoundError:
                return []
        return sorted(PurePosixPath(p).name for p in found)

    def states(self, folder: str) -> dict[str, FileState]:
        """Name below `folder` -> size and time of writing of each of its files, by one listing."""
        self.fs.invalidate_cache()
        with self._named_errors(f"cannot list {folder}", missing=(FileNotFoundError,)):
            try:
                found = retried(lambda: self.fs.ls(self.path(folder), detail=True))
            except FileNotFoundError:
                return {}
        lead = f"{folder}/" if folder else ""
        return {lead + PurePosixPath(info["name"]).name: _state(info) for info in found}

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, encode_json(value))

    def read_json(self, name: str) -> Any:
        """The value in `name`; `FileNotFoundError` when absent, `StorageError` when it is no JSON."""
        try:
            value = json.loads(data := self.read(name), parse_int=_whole_number)
            if b"\\u" in data:
                encode_json(value)  # an escaped half of a surrogate pair is no character
            return value
        except (ValueError, RecursionError) as error:
            raise DamagedError(f"{name} in {self.uri} is damaged: {str(error)[:200]}") from error

    def write_table(self, name: str, table: pl.DataFrame) -> FileMark:
        """Publish `table` as zstd Parquet; returns what it can be known by later."""
        buffer = io.BytesIO()
        table.write_parquet(buffer, compression="zstd")
        return self.write_marked(name, buffer.getvalue())

    def write_array(self, name: str, array: np.ndarray) -> FileMark:
        """Publish `array` as `.npy` (never pickled); returns what it can be known by later."""
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        return self.write_marked(name, buffer.getvalue())

    def write_marked(self, name: str, data: bytes) -> FileMark:
        """Publish `data`; returns what it can be known by later."""
        self.write(name, data)
        return {"bytes": len(data), "blake2b": checksum(data)}

    def read_array(self, name: str) -> np.ndarray:
        """The array at `name`: memory-mapped on a local disk, read whole from an object store."""
        try:
            if self.is_local:
                with self._named_errors(f"cannot read {name}", missing=(ValueError, EOFError)):
                    return retried(lambda: np.load(self.path(name), mmap_mode="r", allow_pickle=False))
            return np.load(io.BytesIO(self.read(name)), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise DamagedError(f"{name} in {self.uri} is damaged: {str(error)[:200]}") from error

    def scan(self, names: list[str]) -> pl.LazyFrame:
        """Lazy table over Parquet files: read column by column from a local disk, whole from an object store."""
        try:
            if self.is_local:
                return pl.scan_parquet([self.path(n) for n in names])
            return pl.concat([pl.read_parquet(self.read(n)).lazy() for n in names])
        except pl.exceptions.PolarsError as error:
            raise DamagedError(f"a table in {self.uri} is damaged: {str(error)[:200]}") from error


FileMark = dict[str, Any]
"""Size and checksum of a file."""


class FileState(NamedTuple):
    """A file as a listing shows it."""

    size: int
    modified: float | None
    """Seconds since 1970; None where the store does not say."""
    identity: str
    """Another one for another writing of the file, as far as the store tells them apart."""


def _state(info: dict[str, Any]) -> FileState:
    """Stores have their own names for the time of writing, and their own types."""
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
    """JSON has whole numbers of any length; what 64 bits do not hold is no count, seed or size of ours."""
    if len(text) > 19:
        raise ValueError(f"a whole number of {len(text)} digits")
    return int(text)


def encode_json(value: Any) -> bytes:
    """JSON as it is stored: for people to read, keys sorted."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).encode()


def _write_local(target: Path, data: bytes, *, replace: bool = True) -> None:
    """Write `target` in one step; without `replace`, leave a file that is there."""
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
            except OSError:  # a file system without hard links
                replace = not target.exists()
        if replace:
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
