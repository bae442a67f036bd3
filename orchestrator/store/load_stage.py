"""A stage from its folder alone, once its name and its record are what they should be."""

from __future__ import annotations

import re
from typing import Any

from orchestrator.errors import AbsentError, DamagedError
from orchestrator.store.filesystem import Storage
from orchestrator.store.stage_folder import STAGE_FILE, Stage

_NAME = re.compile(r"[a-z][a-z_]{0,31}")
_DIGEST = re.compile(r"[0-9a-f]{16}")


def _check_name(name: Any, stage_digest: Any) -> None:
    """Refuse a stage's name and digest that could stand for another place than a stage's folder."""
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise DamagedError(f"{str(name)[:80]!r} is no stage's name")
    if not (isinstance(stage_digest, str) and _DIGEST.fullmatch(stage_digest)):
        raise DamagedError(f"{str(stage_digest)[:80]!r} is no stage's digest: 16 hex digits are expected")


def load_stage(storage: Storage, name: str, stage_digest: str) -> Stage:
    """The stage directory `name/stage_digest` of `storage`, from its files alone.

    Raises:
        AbsentError: there is no such directory.
        DamagedError: its `stage.json` does not match its name; the message says how to begin the stage again.
    """
    _check_name(name, stage_digest)
    try:
        record = storage.read_json(f"{name}/{stage_digest}/{STAGE_FILE}")
        what, inputs = record["what"], dict(record["inputs"])
        if not isinstance(what, dict):
            raise TypeError("`what` is no mapping")
        for key, value in inputs.items():
            _check_name(key, value)
        stage = Stage(storage, name, what, inputs)
        if stage.digest != stage_digest:  # numbers that are not finite and unpaired surrogates have none
            raise ValueError(f"it belongs to {stage.digest}")
    except FileNotFoundError as error:
        raise AbsentError(f"no stage {name}/{stage_digest} in {storage.uri}") from error
    except (DamagedError, KeyError, TypeError, ValueError) as error:
        fault = f"no {error}" if isinstance(error, KeyError) else str(error)[:200]
        folder = storage.sub(f"{name}/{stage_digest}").uri
        raise DamagedError(
            f"{name}/{stage_digest}: {STAGE_FILE} is damaged: {fault}; "
            f"remove the folder {folder} to begin the stage again"
        ) from error
    return stage
