"""Versions of a study: a record is replaced only by one that holds all its points; other settings get another name."""

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
    """The name under which a sweep's record lies or will lie, and the record that is there.

    The first settings of a study have its plain name, others `NAME.v2`, `NAME.v3`, ... A record whose points are all
    among the sweep's is the sweep's own: more seeds or ratios extend it. Equal points go before fewer ones.
    """
    asked = {_settings(point.run.model_dump(mode="json")) for point in sweep.points}
    extended: tuple[str, dict[str, Any] | None] | None = None
    for number in itertools.count(1):
        name = sweep.study.name if number == 1 else f"{sweep.study.name}.v{number}"
        found = _record(storage, name)
        if found is None:
            return extended or (name, None)
        held = settings_of(found["points"])
        if held == asked:
            return name, found
        if held and held < asked:
            extended = name, found
    raise AssertionError("unreachable")


def listed_stages(sweep: Sweep, wanted: Sequence[StageName]) -> list[StageName]:
    """The stages that the study's record names, in running order: its own, those that run now, those of before."""
    _, before = version_name(sweep, Storage(sweep.study.storage))
    listed = {*sweep.study.stages, *wanted, *(before["stages"] if before else ())}
    return [name for name in STAGES if name in listed]


def settings_of(points: Iterable[Mapping[str, Any]]) -> set[str]:
    """What the points of a record compute, without how; samples that a search added are no points of the sweep."""
    return {_settings(p["config"]) for p in points if p["axes"] or not str(p["label"]).startswith("sample ")}


def _settings(config: Mapping[str, Any]) -> str:
    """A point's settings as text; those of another version of the project are taken as they are."""
    try:
        tree = RunConfig.model_validate(config).model_dump(mode="json")
    except ValidationError:
        tree = dict(config)
    tree.pop("how", None)
    return canonical_json(dict(scrub_tree(tree)))


def _record(storage: Storage, name: str) -> dict[str, Any] | None:
    """The record of a study; None where there is none, or none that can be read."""
    try:
        return check_record(storage.read_json(f"studies/{name}/{STUDY_FILE}"), name, name)
    except (FileNotFoundError, StorageError):
        return None
