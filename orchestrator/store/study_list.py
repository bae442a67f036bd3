"""The studies of a storage, from their records and the names of their stages' files."""

from __future__ import annotations

import re
from dataclasses import dataclass

from orchestrator.errors import StorageError
from orchestrator.store.filesystem import Storage
from orchestrator.store.stage_folder import SUCCESS
from orchestrator.store.study_record import STUDY_FILE, Study


@dataclass(frozen=True)
class ListedStudy:
    """One study: its progress and the path of its report. `problem`: why a record could not be read."""

    name: str
    description: str = ""
    created: str = ""
    command: str = ""
    points: int = 0
    stages_done: int = 0
    stages: int = 0
    report: str | None = None
    problem: str = ""


def list_studies(storage: Storage) -> list[ListedStudy]:
    """Every study of a storage, the newest first; a record that cannot be read is listed with its problem."""
    names = [name for name in storage.files("studies") if storage.exists(f"studies/{name}/{STUDY_FILE}")]
    studies = [_listed(storage, name) for name in names]
    return sorted(studies, key=lambda study: study.created, reverse=True)


def _listed(storage: Storage, name: str) -> ListedStudy:
    try:
        study = Study.load(f"{storage.uri.rstrip('/')}/studies/{name}")
    except StorageError as error:
        return ListedStudy(name, problem=str(error))
    record = study.record
    stages = {(stage, digest) for point in record["points"] for stage, digest in point["stages"].items()}
    n_done = sum(storage.exists(f"{stage}/{digest}/{SUCCESS}") for stage, digest in stages)
    report = study.folder.locate("report/report.html") if study.folder.exists("report/report.html") else None
    return ListedStudy(
        name,
        record["description"],
        record["created"],
        record["command"],
        len(record["points"]),
        n_done,
        len(stages),
        report,
    )


def versions_of(storage: Storage, name: str) -> list[str]:
    """Names of the other versions of a study: `NAME`, `NAME.v2`, ... in that order."""
    base = re.sub(r"\.v\d+$", "", name)
    versions = [
        (int(match[1]) if match[1] else 1, listed)
        for listed in storage.files("studies")
        if (match := re.fullmatch(re.escape(base) + r"(?:\.v(\d+))?", listed)) and listed != name
    ]
    return [listed for _, listed in sorted(versions)]
