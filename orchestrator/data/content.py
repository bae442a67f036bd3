"""Identity of image files by content, not by path; files that have not changed are not read again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import DataError
from orchestrator.store import content_cache
from orchestrator.store.content_cache import FileDigest

TRUSTED_FILES = 10_000
"""A listing of more files than this is reused for `TRUSTED_S` in one process."""
TRUSTED_S = 60.0

_DIGITS = 32
_recent: dict[tuple[str, str], tuple[float, str]] = {}


def content_digest(fs: Any, root: str, names: Sequence[str], listed_in: str | None = None) -> str:
    """Digest of the content of the files `root/name`, in the order of `names`; names and absences count.

    Args:
        fs: an fsspec file system.
        root: folder, in the notation of `fs`.
        names: paths below `root`.
        listed_in: table of the names, each of which must be a file of its own (seen on local disks).

    Raises:
        DataError: two names are one file, by a link or a disk that ignores case; names both.
        StorageError: a transient error persists after retries (`reading.retrying`).
    """
    listing = hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()
    key = f"{fs.unstrip_protocol(root)}", listing
    if len(names) > TRUSTED_FILES and key in _recent and time.monotonic() - _recent[key][0] < TRUSTED_S:
        return _recent[key][1]
    digests = file_digests(fs, root, names, listed_in)
    text = "".join(f"{name}\0{digest}\n" for name, digest in zip(names, digests, strict=True))
    found = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    _recent[key] = time.monotonic(), found
    return found


def file_digests(fs: Any, root: str, names: Sequence[str], listed_in: str | None = None) -> list[str]:
    """SHA-256 (first 32 hex digits) of each file's content, `content_cache.MISSING` for a missing file; for `listed_in`
    see `content_digest`."""
    found = content_cache.file_digests(fs, root, names)
    if listed_in is not None:
        _check_apart(root, names, found, listed_in)
    return [known.digest[:_DIGITS] for known in found]


def _check_apart(root: str, names: Sequence[str], found: Sequence[FileDigest], listed_in: str) -> None:
    """Refuse two names of one file: it would count as two independent pictures."""
    first: dict[tuple[int, int], str] = {}
    for name, known in zip(names, found, strict=True):
        other = first.setdefault(known.file, name) if known.file[1] else name
        if other != name:
            file = Path(root, name).resolve()
            raise DataError(
                f"{listed_in}: {other!r} and {name!r} are one file, {file}; each picture counts once. Leave one of them"
                " out, or put a copy in place of the link if both are meant."
            )
