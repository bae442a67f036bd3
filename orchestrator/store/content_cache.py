"""SHA-256 of files, cached by size and time of change: pictures and weights are read once, not by every command.

The cache is one Parquet file per root (columns name, size, changed, digest) in the user's cache folder
(`VTSWEEP_CACHE`, else `$XDG_CACHE_HOME/vtsweep`, else `~/.cache/vtsweep`). A file is read again if its size, its
modification time or (on a local disk) its status-change time differs. The cache can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from fsspec.implementations.local import LocalFileSystem

from orchestrator.errors import StorageError
from orchestrator.store.reading import retrying

FRESH_NS = 2_000_000_000
"""Files modified less than this before reading are not cached: a second change may have the same time stamp."""
MISSING = "missing"
"""Digest of a missing file."""

_SCHEMA = {"name": pl.String, "size": pl.Int64, "changed": pl.String, "digest": pl.String}
_LENGTH = 64
"""Hex digits of a whole digest; entries of other lengths are of an older cache."""
_NEVER = 2**63 - 1


class FileDigest(NamedTuple):
    """What is known of a file."""

    digest: str
    """SHA-256 of its content in hex, `MISSING` for a missing file."""
    file: tuple[int, int]
    """Device and inode on a local disk, which two names of one file share; inode 0: unknown."""


def file_digests(fs: Any, root: str, names: Sequence[str]) -> list[FileDigest]:
    """Digest of each file `root/name` of an fsspec file system; those that have changed are read, in threads.

    Raises:
        StorageError: a transient error persists after retries (`reading.retrying`).
    """
    local = isinstance(fs, LocalFileSystem)
    started = time.time_ns()
    states = _local_states(root, names) if local else _remote_states(fs, root, names)
    columns = {"name": list(names), "size": [state.size for state in states], "changed": [s.changed for s in states]}
    frame = pl.DataFrame(columns, schema={key: _SCHEMA[key] for key in columns})
    file = _cache_file(fs.unstrip_protocol(root))
    kept = _read_cache(file)
    digests = frame.join(kept, on=["name", "size", "changed"], how="left", maintain_order="left")["digest"].to_list()
    todo = [i for i, state in enumerate(states) if state.size >= 0 and digests[i] is None]
    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1)), "hashing") as pool:
        for i, digest in zip(todo, pool.map(lambda i: _hash(fs, root, names[i], local), todo), strict=True):
            digests[i] = digest
    stable = [i for i in todo if digests[i] != MISSING and states[i].newest_ns < started - FRESH_NS]
    if stable:
        new = frame[stable].with_columns(digest=pl.Series([digests[i] for i in stable], dtype=pl.String))
        _write_cache(file, pl.concat([kept.join(new, on="name", how="anti"), new]))
    return [FileDigest(digest or MISSING, state.file) for digest, state in zip(digests, states, strict=True)]


class _State(NamedTuple):
    """File state from the file system, without reading the file."""

    size: int
    """Size in bytes; -1 for a missing file."""
    changed: str
    """Times of change, or an object store's version."""
    newest_ns: int
    """Time of the last change since 1970, ns; far in the future if the file system provides no version."""
    file: tuple[int, int] = (0, 0)
    """Device and inode on a local disk, which two names of one file share; inode 0: unknown."""


_ABSENT = _State(-1, "", _NEVER)


def _local_states(root: str, names: Sequence[str]) -> list[_State]:
    def state(name: str) -> _State:
        path = f"{root}/{name}"
        try:
            status = retrying(lambda: os.stat(path), name)  # noqa: PTH116 - a third of the time of Path.stat
        except StorageError:
            raise
        except OSError:
            return _ABSENT
        newest = max(status.st_mtime_ns, status.st_ctime_ns)
        return _State(
            status.st_size, f"{status.st_mtime_ns}/{status.st_ctime_ns}", newest, (status.st_dev, status.st_ino)
        )

    return [state(name) for name in names]


def _remote_states(fs: Any, root: str, names: Sequence[str]) -> list[_State]:
    """One listing per folder, bypassing the client's cache."""
    entries: dict[str, dict[str, Any]] = {}
    for folder in sorted({f"{root}/{name}".rsplit("/", 1)[0] for name in names}):
        fs.invalidate_cache(folder)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            listing = retrying(lambda folder=folder: fs.ls(folder, detail=True), folder)  # type: ignore[misc]
            entries |= {entry["name"].rstrip("/"): entry for entry in listing}
    states = []
    for name in names:
        entry = entries.get(f"{root}/{name}")
        if entry is None or entry.get("type") == "directory":
            states.append(_ABSENT)
            continue
        version = [str(entry[key]) for key in ("ETag", "etag", "LastModified", "mtime", "created") if entry.get(key)]
        states.append(_State(int(entry.get("size") or 0), "/".join(version), 0 if version else _NEVER))
    return states


def _hash(fs: Any, root: str, name: str, local: bool) -> str:
    path = f"{root}/{name}"
    try:
        if local:
            return retrying(lambda: _hash_local(path), name)
        return hashlib.sha256(retrying(lambda: fs.cat_file(path), name)).hexdigest()
    except StorageError:
        raise
    except OSError:  # removed since it was listed, or no permission
        return MISSING


def _hash_local(path: str) -> str:
    with open(path, "rb") as file:  # noqa: PTH123
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------- cache


def cache_folder(kind: str) -> Path:
    """Folder of one kind of cache; it may not exist yet."""
    folder = os.environ.get("VTSWEEP_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "vtsweep"
    return Path(folder).expanduser() / kind


def _cache_file(root: str) -> Path:
    return cache_folder("content") / f"{hashlib.sha256(root.encode()).hexdigest()[:32]}.parquet"


def _read_cache(file: Path) -> pl.DataFrame:
    """The cache, or an empty one if it is absent or unreadable."""
    try:
        kept = pl.read_parquet(file).select(*_SCHEMA).cast(_SCHEMA)  # type: ignore[arg-type]
        return kept.filter(pl.col("digest").str.len_bytes() == _LENGTH)
    except (OSError, pl.exceptions.PolarsError):
        return pl.DataFrame(schema=_SCHEMA)


def _write_cache(file: Path, frame: pl.DataFrame) -> None:
    """Replace the whole cache; the last of two writers wins. Write errors are ignored."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as part:
            frame.write_parquet(part)
        Path(part.name).replace(file)
