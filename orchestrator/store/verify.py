"""Every file of a study against what was recorded when it was written: names, sizes, checksums, digests."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from orchestrator.errors import StorageError
from orchestrator.store.load_stage import load_stage
from orchestrator.store.shard_files import Listings
from orchestrator.store.stage_folder import STAGE_FILE, SUCCESS, Stage
from orchestrator.store.study_record import Study

FOLLOWED = 6
"""How deep inputs of inputs are followed: no stage has more."""


@dataclass(frozen=True)
class Finding:
    """One stage of a study as its files are now."""

    stage: str
    digest: str
    n_shards: int
    n_bytes: int
    problems: tuple[str, ...]
    """What is damaged, a line each; empty when everything is as it was written."""
    shards: tuple[int, ...]
    """Shards to be done again."""


def verify_study(study: Study, note: Callable[[int], None] = lambda _: None) -> list[Finding]:
    """Read every recorded file of every stage of a study, and of the stages those read, side by side.

    Args:
        note: called with the number of shards just checked.

    Returns:
        One finding a stage that was begun.
    """
    stages: dict[str, Stage] = {}
    results: list[Finding] = []
    selected = [(name, digest) for point in study.record["points"] for name, digest in point["stages"].items()]
    for _ in range(FOLLOWED):
        inputs: list[tuple[str, str]] = []
        for name, digest in dict.fromkeys(selected):
            key = f"{name}/{digest}"
            if key in stages or any(f"{f.stage}/{f.digest}" == key for f in results):
                continue
            if not study.storage.exists(key) and not study.storage.files(key):
                continue  # not begun yet
            try:
                stages[key] = load_stage(study.storage, name, digest)
            except StorageError as error:
                results.append(Finding(name, digest, 0, 0, (str(error),), ()))
                continue
            inputs += stages[key].inputs.items()
        selected = inputs
    return results + [_verify_stage(stage, note) for stage in stages.values()]


def _verify_stage(stage: Stage, note: Callable[[int], None]) -> Finding:
    problems, damaged, n_bytes = [], [], 0
    indices = stage.written_shards()

    def check(index: int) -> tuple[int, str | None, int]:
        problem, size = stage.check_shard(index)
        note(1)
        return index, problem, size

    with ThreadPoolExecutor(4 if stage.store.is_local else 32) as readers:
        for index, problem, size in readers.map(check, indices):
            n_bytes += size
            if problem:
                damaged.append(index)
                problems.append(f"shard {index}: {problem}")
    if stage.is_done():
        try:
            stage.summary()
        except (StorageError, TypeError, ValueError) as error:
            problems.append(str(error))
        if not indices:
            problems.append("it is marked done and holds no shard")
        elif indices != list(range(len(indices))):
            problems.append(f"shards are missing: found {len(indices)}, the last is {indices[-1]}")
    return Finding(stage.name, stage.digest, len(indices), n_bytes, tuple(problems), tuple(damaged))


def check_unread(stage: Stage) -> None:
    """Check the records of a stage, and that a finished one's files have their recorded sizes; reads no table.

    Raises:
        DamagedError: a record or a file is not what was written, as far as that is known without reading all.
    """
    if not stage.store.exists(STAGE_FILE):
        return
    load_stage(stage.storage, stage.name, stage.digest)
    if not stage.is_done():
        return
    stage.summary()
    listed = Listings(stage.store)
    for record in stage.finished_shards().values():
        for name, mark in record["files"].items():
            if (size := listed.size(name)) != mark["bytes"]:
                found = "it is missing" if size is None else f"{size} bytes, expected {mark['bytes']}"
                raise stage.damaged(name, found)


def redo(study: Study, findings: list[Finding]) -> list[str]:
    """Take back what damaged stages are marked with, so that the study's next run does their damaged shards again.

    Returns:
        folders of the stages that were taken back.
    """
    taken = []
    for finding in findings:
        if not finding.problems:
            continue
        folder = study.storage.sub(f"{finding.stage}/{finding.digest}")
        folder.remove(SUCCESS)
        for index in finding.shards:
            folder.remove(f"shards/{index:05d}.json")
        taken.append(folder.uri)
    return taken
