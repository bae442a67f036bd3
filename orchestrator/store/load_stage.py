"""A stage from its folder alone, once its name and its record are what they should be."""

from __future__ import annotations

import re
from typing import Any

from orchestrator.errors import AbsentError, StorageError
from orchestrator.store.filesystem import Storage
from orchestrator.store.stage_folder import STAGE_FILE, Stage

_NAME = re.compile(r"[a-z][a-z_]{0,31}")
_DIGEST = re.compile(r"[0-9a-f]{16}")


def _check_name(name: Any, stage_digest: Any) -> None:
    """Refuse a stage's name and digest that could stand for another place than a stage's folder."""
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise StorageError(f"{str(name)[:80]!r} is no stage's name")
    if not (isinstance(stage_digest, str) and _DIGEST.fullmatch(stage_digest)):
        raise StorageError(f"{str(stage_digest)[:80]!r} is no stage's digest: 16 hex digits are expected")


def load_stage(storage: Storage, name: str, stage_digest: str) -> Stage:
    """The stage directory `name/stage_digest` of `storage`, from its files alone.

    Raises:
        AbsentError: there is no such directory.
        StorageError: its `stage.json` does not match its name.
    """
    _check_name(name, stage_digest)
    try:
        record = storage.read_json(f"{name}/{stage_digest}/{STAGE_FILE}")
    except FileNotFoundError as error:
        raise AbsentError(f"no stage {name}/{stage_digest} in {storage.uri}") from error
    try:
        if not isinstance(record["what"], dict):
            raise TypeError("`what` is no mapping")
        for key, value in dict(record["inputs"]).items():
            _check_name(key, value)
        stage = Stage(storage, name, record["what"], record["inputs"])
        stored = stage.digest
    except KeyError as error:
        raise StorageError(f"{name}/{stage_digest}: stage.json is damaged: no {error}") from error
    except (TypeError, ValueError) as error:  # numbers that are not finite and broken surrogates have no digest
        raise StorageError(f"{name}/{stage_digest}: stage.json is damaged: {str(error)[:200]}") from error
    if stored != stage_digest:
        raise StorageError(f"{name}/{stage_digest}: stage.json belongs to {stage.digest}; the folder was altered")
    return stage
