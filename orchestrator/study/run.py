"""The main flow: from a sweep file to finished tables, MLflow runs and a report."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from orchestrator.config import RunConfig, SearchAxis, StageName
from orchestrator.config.sweep import Sweep
from orchestrator.progress import Progress
from orchestrator.store.filesystem import Storage
from orchestrator.store.resolved_point import ResolvedPoint, distinct
from orchestrator.store.study_record import STUDY_FILE, Study, make_record
from orchestrator.study.resolve import resolve
from orchestrator.study.stage_kinds import STAGE_KINDS, with_inputs
from orchestrator.study.versions import listed_stages, version_name

REPORT_FILE = "report/report.html"


def run_study(
    sweep: Sweep, *, stages: Sequence[StageName] | None = None, quiet: bool = False, command: str | None = None
) -> tuple[Study, str]:
    """Run a study's stages in order; finished work of earlier runs is skipped.

    Args:
        sweep: the validated study.
        stages: run only these and their inputs; None for all stages of the study.
        quiet: show no progress.
        command: command line that repeats this run, for the record.

    Returns:
        The study, and the path of its report.

    Raises:
        VtsweepError: invalid input (before work starts), or a stage that did not finish (finished work is kept).
    """
    names = with_inputs(stages or sweep.study.stages)
    if finished := finished_study(sweep, stages):
        return finished, finished.folder.locate(REPORT_FILE)
    from orchestrator.study.preflight import preflight
    from orchestrator.study.resources import check_resources
    from orchestrator.tracking.entries import report_entry, stage_entries, study_tracker
    from orchestrator.tracking.live import streamed

    check_resources(sweep, names)
    listed = listed_stages(sweep, names)
    points = preflight(sweep, names, listed)
    study = open_study(sweep, points, listed, command)
    tracker = study_tracker(study, sweep.study.track)
    with _ray(points, names):
        for stage in names:
            started = time.monotonic()
            todo = distinct(points, stage)
            pending = [point.stages[stage].digest for point in todo if not point.is_done(stage)]
            with streamed(tracker, study, stage, pending) as watch:
                completed = STAGE_KINDS[stage].run(todo, search_of(sweep, stage), quiet, watch)
            add_samples(study, stage, [point for point in completed if point not in todo])
            if pending or stage not in study.record["seconds"]:
                study.record["seconds"][stage] = round(time.monotonic() - started, 2)
            tracker.log(stage_entries(study, stage))
    started = time.monotonic()
    written = write_report(study, quiet=quiet)
    study.record["seconds"]["report"] = round(time.monotonic() - started, 2)
    study.folder.write_json(STUDY_FILE, study.record)
    sent = tracker.log(report_entry(study))
    study.record["tracked"] = not sent.waiting
    study.record["mlflow"] = tracker.views()
    study.folder.write_json(STUDY_FILE, study.record)
    return study, written[0]


def finished_study(sweep: Sweep, stages: Sequence[StageName] | None = None) -> Study | None:
    """The study if it is complete (all stages, the report and the MLflow runs exist), else None.

    Checks file names only: loads no model and does not connect to MLflow.
    """
    storage = Storage(sweep.study.storage)
    _, record = version_name(sweep, storage)
    track = sweep.study.track
    if record is None or not (record.get("tracked") or not track.enabled):
        return None
    if track.enabled and track.uri is None and not storage.exists("mlflow.db"):
        return None
    study = Study(storage, record)
    names = with_inputs(stages or sweep.study.stages)
    if not set(names) <= set(study.stages) or not study.folder.exists(REPORT_FILE):
        return None
    planned = {d for point in record["points"] for stage, d in point["stages"].items() if stage in names}
    points = resolve(sweep, names)
    if any(point.stages[name].digest not in planned for point in points for name in names):
        return None
    if not all(_is_complete(name, points, search_of(sweep, name)) for name in names):
        return None
    return study if all(view.stage.is_done() for stage in names for view in study.views(stage)) else None


def _is_complete(name: StageName, points: Sequence[ResolvedPoint], search: dict[str, SearchAxis]) -> bool:
    is_searched = STAGE_KINDS[name].is_searched
    if is_searched and search and any(point.run.finetune.search_trials for point in points):
        return is_searched(distinct(points, name), search)
    return all(point.is_done(name) for point in points)


def open_study(
    sweep: Sweep, points: Sequence[ResolvedPoint], listed: Sequence[StageName], command: str | None = None
) -> Study:
    """Write `study.json`, which names every point and the directory of each of its stages, before any work.

    A record of other settings is not overwritten: these settings get a new name (`versions.version_name`).
    """
    storage = Storage(sweep.study.storage)
    name, before = version_name(sweep, storage)
    entries = [_entry(p, listed, configured.run) for p, configured in zip(points, sweep.points, strict=True)]
    record = make_record(sweep, listed, entries, command)
    study = Study(storage, {**record, "name": name, "seconds": dict(before["seconds"]) if before else {}})
    study.folder.write_json(STUDY_FILE, study.record)
    return study


def add_samples(study: Study, stage: StageName, samples: Sequence[ResolvedPoint]) -> None:
    """Record the points that a hyperparameter search added to a stage."""
    for sample in samples:
        study.record["points"].append(_entry(sample, [stage], sample.run))
    if samples:
        study.folder.write_json(STUDY_FILE, study.record)


def _entry(point: ResolvedPoint, stages: Sequence[StageName], configured: RunConfig) -> dict[str, Any]:
    """The entry of a point in `study.json`: its settings as configured, and its stage directories."""
    digests = {stage: point.stages[stage].digest for stage in stages}
    config = configured.model_dump(mode="json")
    return {"label": point.label, "axes": dict(point.axes), "config": config, "stages": digests}


def search_of(sweep: Sweep, stage: StageName) -> dict[str, SearchAxis]:
    """The searched keys of one stage."""
    return {key: axis for key, axis in sweep.study.search.items() if key.startswith(f"{stage}.")}


def write_report(study: Study, *, quiet: bool = False) -> list[str]:
    """Write the HTML report, figures and tables of a study from its files; returns their paths, the page first."""
    from orchestrator.report.build import make_report
    from orchestrator.report.collect import gather_results

    with Progress("report", None, "files", quiet=quiet) as progress:
        names = make_report(gather_results(study), study.folder.sub("report"), lambda name: progress.advance(1, name))
    return [study.folder.locate(f"report/{name}") for name in names]


@contextlib.contextmanager
def _ray(points: Sequence[ResolvedPoint], stages: Sequence[StageName]) -> Iterator[None]:
    """A Ray session for the stages that need one; none if no work is left or the backend is local."""
    on_ray = [stage for stage in stages if STAGE_KINDS[stage].uses_ray]
    pending = [
        point
        for point in points
        if point.run.how.backend == "ray" and not all(point.is_done(stage) for stage in on_ray)
    ]
    if not pending:
        yield
        return
    from orchestrator.cluster.session import session

    with session(pending[0].run.how, pending[0].storage):
        yield
