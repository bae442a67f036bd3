"""One copy of a checkpoint folder on each node's own disk, for checkpoints that lie on a slow or shared one.

The copy is named by the folder and by name, size and time of change of its files, so that a changed checkpoint is
copied anew. It is made under a lock by the first process of the node that asks, and appears whole or not at all; the
others wait for it and map the same file, whose pages the node then holds once. Where it cannot be made (full or
read-only disk), the checkpoint is read where it lies. Imports neither torch nor transformers.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.models.checkpoint import PICKLED

SPARE_BYTES = 10**9
"""Free space that a copy must leave on the disk."""


def local_copy(folder: Path, cache: Path) -> Path:
    """The copy of a checkpoint folder below `cache`, made if it is not there; `folder` itself if that is impossible.

    A failure is a warning, not an error: only speed depends on the copy.
    """
    try:
        cache = cache.expanduser().resolve()
        if folder.resolve().is_relative_to(cache):
            return folder
        cache.mkdir(parents=True, exist_ok=True)
        place = cache / f"{folder.name}-{_key(folder)}"
        if not place.is_dir():
            with _lock(cache / f".{place.name}.lock"):
                if not place.is_dir():  # else another process has made it meanwhile
                    _copy(folder, place)
    except OSError as error:
        warnings.warn(
            f"how.weights_cache={cache}: no copy of {folder} ({error.strerror or error}); it is read where it lies",
            stacklevel=2,
        )
        return folder
    return place


def _files(folder: Path) -> list[Path]:
    """The files that a model may be loaded from, below `folder`; pickled weights are never read."""
    return sorted(
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.is_file()
        and path.suffix not in PICKLED
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _key(folder: Path) -> str:
    """Digest of the folder's path and of name, size and time of change of its files."""
    states = [(str(file), (state := (folder / file).stat()).st_size, state.st_mtime_ns) for file in _files(folder)]
    return hashlib.blake2b(repr((str(folder.resolve()), states)).encode(), digest_size=8).hexdigest()


def _copy(folder: Path, place: Path) -> None:
    """Copy the files under another name, then rename: a process that is killed leaves no half copy under `place`.

    Raises:
        OSError: the disk is too small, or a file cannot be read or written; nothing of the copy is left.
    """
    for left in place.parent.glob(f".{place.name}.*.part"):  # of a process that was killed: the lock is ours
        shutil.rmtree(left, ignore_errors=True)
    key, needed = _key(folder), sum((folder / file).stat().st_size for file in _files(folder))
    if (free := shutil.disk_usage(place.parent).free) < needed + SPARE_BYTES:
        raise OSError(f"{needed / 1e9:.1f} GB and {SPARE_BYTES / 1e9:g} GB to spare are needed, {free / 1e9:.1f} free")
    part = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".part", dir=place.parent))
    try:
        for file in _files(folder):
            (part / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / file, part / file)
            with (part / file).open("rb") as written:
                os.fsync(written.fileno())
        if _key(folder) != key:
            raise OSError("its files changed while they were copied")
        part.rename(place)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


@contextmanager
def _lock(file: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes; the system releases it when its holder ends, whatever ends it."""
    try:
        import fcntl
    except ImportError:  # not on Windows: two processes may copy there at once, and the later rename fails
        yield
        return
    with file.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
