"""Versions of a study: a record is replaced only by one with all its points; other settings get a new name."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from orchestrator.config import RunConfig, StageName
from orchestrator.config.section import STAGES
from orchestrator.config.sweep import Sweep
from orchestrator.errors import StorageError
from orchestrator.scrub import scrub_tree
from orchestrator.store.filesystem import Storage
from orchestrator.store.record_format import check_record
from orchestrator.store.stage_folder import canonical_json
from orchestrator.store.study_record import STUDY_FILE


def version_name(sweep: Sweep, storage: Storage) -> tuple[str, dict[str, Any] | None]:
    """The name of a sweep's record, and the existing record of that name, if any.

    The first settings of a study have its plain name, later ones `NAME.v2`, `NAME.v3`, ... A record whose points are a
    subset of the sweep's belongs to the sweep: more seeds or ratios extend it. Equal sets are preferred to subsets.
    """
    sweep_settings = {_settings(point.run.model_dump(mode="json")) for point in sweep.points}
    extended: tuple[str, dict[str, Any] | None] | None = None
    for number in itertools.count(1):
        name = sweep.study.name if number == 1 else f"{sweep.study.name}.v{number}"
        record = _record(storage, name)
        if record is None:
            return extended or (name, None)
        record_settings = settings_of(record["points"])
        if record_settings == sweep_settings:
            return name, record
        if record_settings and record_settings < sweep_settings:
            extended = name, record
    raise AssertionError("unreachable")


def listed_stages(sweep: Sweep, stages: Sequence[StageName]) -> list[StageName]:
    """The stages in the study's record, in order of execution: configured, running now, and recorded earlier."""
    _, before = version_name(sweep, Storage(sweep.study.storage))
    listed = {*sweep.study.stages, *stages, *(before["stages"] if before else ())}
    return [name for name in STAGES if name in listed]


def settings_of(points: Iterable[Mapping[str, Any]]) -> set[str]:
    """Settings of a record's points without `how`; samples that a search added are not points of the sweep."""
    return {_settings(p["config"]) for p in points if p["axes"] or not str(p["label"]).startswith("sample ")}


def _settings(config: Mapping[str, Any]) -> str:
    """A point's settings as text; settings of another version of the package are used unchanged."""
    try:
        tree = RunConfig.model_validate(config).model_dump(mode="json")
    except ValidationError:
        tree = dict(config)
    tree.pop("how", None)
    return canonical_json(dict(scrub_tree(tree)))


def _record(storage: Storage, name: str) -> dict[str, Any] | None:
    """The record of a study; None if it is absent or unreadable."""
    try:
        return check_record(storage.read_json(f"studies/{name}/{STUDY_FILE}"), name, name)
    except (FileNotFoundError, StorageError):
        return None
