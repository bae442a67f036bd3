"""Verification of shard files: by a listing if sufficient, else by checksums."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import TypeVar

from orchestrator.store.filesystem import FileMark, FileState, Storage, checksum

A = TypeVar("A")
B = TypeVar("B")

_CHECKED: dict[str, str] = {}
"""Files whose checksums this process has verified, with their identity at that time."""


def side_by_side(store: Storage, work: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """`work` of each item, concurrently, to hide the latency of an object store."""
    with ThreadPoolExecutor(4 if store.is_local else 32) as readers:
        return list(readers.map(work, items))


class Listings:
    """File states of a stage from listings; each folder is listed once, on first use."""

    def __init__(self, store: Storage) -> None:
        self.store, self.lock = store, threading.Lock()
        self.known: dict[str, dict[str, FileState]] = {}

    def _state(self, name: str) -> FileState | None:
        folder = str(PurePosixPath(name).parent)
        folder = "" if folder == "." else folder
        with self.lock:
            if folder not in self.known:
                self.known[folder] = self.store.states(folder)
        return self.known[folder].get(name)

    def size(self, name: str) -> int | None:
        """Size of a file in bytes; None for a missing one."""
        state = self._state(name)
        return None if state is None else state.size

    def untouched(self, name: str, size: int, shard: int) -> bool:
        """Whether a file has its recorded size and was not written after its shard's record."""
        state, record = self._state(name), self._state(f"shards/{shard:05d}.json")
        if state is None or record is None or state.modified is None or record.modified is None:
            return False
        return state.size == size and state.modified <= record.modified


def read_against(
    store: Storage,
    names: Sequence[str],
    mark_of: Callable[[str], FileMark | None],
    damaged: Callable[[str, str], Exception],
) -> None:
    """Verify the checksums of files of one folder, except those that this process has verified since they were
    written.

    Args:
        store: the stage's own storage.
        names: files of one folder.
        mark_of: name -> recorded size and checksum.
        damaged: name and problem -> the error to raise for a damaged file.
    """
    states = store.states(str(PurePosixPath(names[0]).parent)) if names else {}

    def check(name: str) -> None:
        mark, data = mark_of(name), store.read(name)
        if mark is None or len(data) != mark["bytes"] or checksum(data) != mark["blake2b"]:
            raise damaged(name, "its content is not what was written")
        _CHECKED[f"{store.uri}/{name}"] = states[name].identity

    side_by_side(store, check, [n for n in names if _CHECKED.get(f"{store.uri}/{n}") != states[n].identity])
