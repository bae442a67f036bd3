"""The main flow: a sweep file in; finished tables, MLflow runs and a report out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

from orchestrator.config import RunConfig, StageName
from orchestrator.config.sweep import Sweep
from orchestrator.progress import Progress
from orchestrator.store.filesystem import Storage
from orchestrator.store.study_record import STUDY_FILE, Study, make_record
from orchestrator.study.stage_kinds import STAGE_KINDS, with_inputs
from orchestrator.study.versions import version_name

REPORT_FILE = "report/report.html"


def run_study(
    sweep: Sweep, *, stages: Sequence[StageName] | None = None, quiet: bool = False, command: str | None = None
) -> tuple[Study, str]:
    """Run a study's stages in order; whatever an earlier run finished is not done again.

    Args:
        sweep: the validated study.
        stages: run only these and what they read; all of the study's when absent.
        quiet: show no progress.
        command: what to type to run this again, for the record.

    Returns:
        The study, and the path of its report.

    Raises:
        VtsweepError: bad input (before any work starts), or a stage that did not finish (what it finished is kept).
    """
    wanted = with_inputs(stages or sweep.study.stages)
    storage = Storage(sweep.study.storage)
    if finished := finished_study(sweep, stages):
        return finished, finished.folder.locate(REPORT_FILE)
    from orchestrator.study.preflight import preflight
    from orchestrator.study.room import check_room
    from orchestrator.tracking.entries import report_entry, stage_entries, study_tracker

    check_room(sweep, wanted)
    preflight(sweep, wanted)
    study = open_study(sweep, storage, wanted, command)
    tracker = study_tracker(study, sweep.study.track)
    with _ray(sweep, study, wanted):
        for stage in wanted:
            started = time.monotonic()
            runs = distinct_runs(sweep, storage, stage)
            pending = any(not STAGE_KINDS[stage].make(run, storage).is_done() for run in runs)
            done = STAGE_KINDS[stage].run(runs, storage, sweep.study.search, quiet)
            add_samples(study, stage, [run for run in done if run not in runs])
            if pending or stage not in study.record["seconds"]:
                study.record["seconds"][stage] = round(time.monotonic() - started, 2)
            tracker.log(stage_entries(study, stage))
    started = time.monotonic()
    written = write_report(study, quiet=quiet)
    study.record["seconds"]["report"] = round(time.monotonic() - started, 2)
    study.folder.write_json(STUDY_FILE, study.record)
    sent = tracker.log(report_entry(study))
    study.record["tracked"] = not sent.waiting
    study.folder.write_json(STUDY_FILE, study.record)
    return study, written[0]


def finished_study(sweep: Sweep, stages: Sequence[StageName] | None = None) -> Study | None:
    """The study, where nothing is left of it to do: every stage, the report and the MLflow runs are there.

    Looks at names of files alone: neither Ray nor a model is started, nor MLflow asked.
    """
    storage = Storage(sweep.study.storage)
    _, record = version_name(sweep, storage)
    track = sweep.study.track
    if record is None or not (record.get("tracked") or not track.enabled):
        return None
    if track.enabled and track.uri is None and not storage.exists("mlflow.db"):
        return None
    study = Study(storage, record)
    wanted = with_inputs(stages or sweep.study.stages)
    if not set(wanted) <= set(study.stages) or not study.folder.exists(REPORT_FILE):
        return None
    planned = {d for point in record["points"] for stage, d in point["stages"].items() if stage in wanted}
    for point in sweep.points:
        for stage in wanted:
            made = STAGE_KINDS[stage].make(point.run, storage)
            if made.digest not in planned or not made.is_done():
                return None
    return study if all(view.stage.is_done() for stage in wanted for view in study.views(stage)) else None


def open_study(sweep: Sweep, storage: Storage, wanted: Sequence[StageName], command: str | None = None) -> Study:
    """Write `study.json`, which names every point and the directory of each of its stages, before any work.

    A record of other settings is left alone: these get a name of their own (`versions.version_name`).
    """
    name, before = version_name(sweep, storage)
    known = before["stages"] if before else ()
    listed = [stage for stage in STAGE_KINDS if stage in {*sweep.study.stages, *wanted, *known}]
    points = []
    for point in sweep.points:
        stages = {stage: STAGE_KINDS[stage].make(point.run, storage).digest for stage in listed}
        config = point.run.model_dump(mode="json")
        points.append({"label": point.label, "axes": dict(point.axes), "config": config, "stages": stages})
    record = make_record(sweep, listed, points, command)
    study = Study(storage, {**record, "name": name, "seconds": dict(before["seconds"]) if before else {}})
    study.folder.write_json(STUDY_FILE, study.record)
    return study


def add_samples(study: Study, stage: StageName, runs: Sequence[RunConfig]) -> None:
    """Record the runs that a hyperparameter search added to a stage."""
    for number, run in enumerate(runs):
        digests = {stage: STAGE_KINDS[stage].make(run, study.storage).digest}
        point = {"label": f"sample {number}", "axes": {}, "config": run.model_dump(mode="json"), "stages": digests}
        study.record["points"].append(point)
    if runs:
        study.folder.write_json(STUDY_FILE, study.record)


def distinct_runs(sweep: Sweep, storage: Storage, stage: StageName) -> list[RunConfig]:
    """One run for each distinct directory of `stage`: equal work is done once, whatever the number of points."""
    return list({STAGE_KINDS[stage].make(p.run, storage).digest: p.run for p in reversed(sweep.points)}.values())[::-1]


def write_report(study: Study, *, quiet: bool = False) -> list[str]:
    """Write the HTML report, figures and tables of a study from its files; returns where they lie, the page first."""
    from orchestrator.report import make_report
    from orchestrator.report.collect import gather_results

    with Progress("report", None, "files", quiet=quiet) as progress:
        names = make_report(gather_results(study), study.folder.sub("report"), lambda name: progress.advance(1, name))
    return [study.folder.locate(f"report/{name}") for name in names]


@contextlib.contextmanager
def _ray(sweep: Sweep, study: Study, wanted: Sequence[StageName]) -> Iterator[None]:
    """A Ray session for the stages that need one; none when nothing is left to do or the backend is local."""
    pending = [
        point.run
        for point in sweep.points
        for stage in wanted
        if STAGE_KINDS[stage].uses_ray
        and point.run.how.backend == "ray"
        and not STAGE_KINDS[stage].make(point.run, study.storage).is_done()
    ]
    if not pending:
        yield
        return
    from orchestrator.cluster.session import session

    with session(pending[0].how, study.storage):
        yield
