"""Schema of `study.json`, validated at every read, as files on shared storage are untrusted."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.config import StageName
from orchestrator.errors import StorageError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")]
"""Name of a study: a folder name, never a path."""
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class PointRecord(_Strict):
    """One point: its label, axis values, settings, and the digest of each of its stages."""

    label: str
    axes: dict[str, Any]
    config: dict[str, Any]
    stages: dict[StageName, Digest]


class StudyRecord(_Strict):
    """The content of `study.json`."""

    name: Name
    description: str
    file: str
    text: str
    command: str
    created: str
    stages: list[StageName]
    points: list[PointRecord]
    versions: dict[str, str]
    hardware: dict[str, Any]
    commit: str | None = None
    seconds: dict[str, Seconds]


def check_record(content: Any, name: str, place: str) -> dict[str, Any]:
    """Validate `content` as a study's record with the name of its folder; returns it unchanged.

    Raises:
        StorageError: it is invalid; names the file, the key, the found and the expected value.
    """
    try:
        record = StudyRecord.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        key = ".".join(map(str, first["loc"])) or "the record"
        raise StorageError(f"{place} is damaged: {key}: {first['msg']}, found {str(first['input'])[:80]!r}") from error
    if record.name != name:
        raise StorageError(f"{place} is damaged: name: expected {name!r} as its folder, found {record.name[:80]!r}")
    return dict(content)
