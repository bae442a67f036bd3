"""The files of a saved adapter as a folder on this machine, wherever they lie; a trial's own against its checksums."""

from __future__ import annotations

import re
import tempfile
from functools import lru_cache
from pathlib import Path

from orchestrator.errors import AbsentError
from orchestrator.store.filesystem import FileState, Storage
from orchestrator.store.load_stage import load_stage
from orchestrator.store.scratch import scratch_folder
from orchestrator.store.stage_folder import Stage

_OF_TRIAL = re.compile(r"(?P<root>.+)/finetune/(?P<digest>[0-9a-f]{16})/adapter/?")


def adapter_folder(name: str) -> Path:
    """The folder of an adapter that is named by a path or by an object store's URI; a copy of it for the latter.

    Files are read again only when they have changed.

    Raises:
        DamagedError: it is a finished trial's, and a file is not what was written.
        StorageError: the storage does not answer.
    """
    storage = Storage(name if "://" in name else str(Path(name).expanduser()))
    return _checked(storage.uri, tuple(sorted(storage.states("").items())), storage.is_local)


@lru_cache(maxsize=16)
def _checked(uri: str, states: tuple[tuple[str, FileState], ...], is_local: bool) -> Path:
    storage, trial = Storage(uri), _trial_of(uri)
    files = [name for name, _ in states if "." in name]
    if is_local and trial is not None:
        for name in files:
            trial.read_file(f"adapter/{name}")
    if is_local:
        return Path(storage.path("") if "://" in uri else uri)
    place = Path(tempfile.mkdtemp(prefix="adapter-", dir=scratch_folder()))
    for name in files:
        (place / name).write_bytes(trial.read_file(f"adapter/{name}") if trial else storage.read(name))
    return place


def _trial_of(uri: str) -> Stage | None:
    """The finished trial whose adapter a folder is, if it is one's."""
    matches = _OF_TRIAL.fullmatch(uri)
    if matches is None:
        return None
    try:
        stage = load_stage(Storage(matches["root"]), "finetune", matches["digest"])
    except AbsentError:
        return None
    return stage if stage.is_done() else None
