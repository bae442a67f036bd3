"""Log the finished stages of a study as MLflow runs, from its files alone; idempotent."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import polars as pl

from orchestrator.config import StageName, TrackConfig
from orchestrator.errors import AbsentError
from orchestrator.report.summaries import summarise
from orchestrator.store.filesystem import Storage
from orchestrator.store.stage_folder import SUCCESS, digest
from orchestrator.store.study_record import STUDY_FILE, TABLE_STAGE, Study, View
from orchestrator.tracking.content import Content, Entry
from orchestrator.tracking.tracker import Sent, Tracker

_LARGE = {"layer_metrics", "images", "answers", "deletion_answers", "question_metrics", "training"}
"""Tables with one row per image or question: not logged; the run records their path in storage."""


def study_tracker(study: Study, config: TrackConfig) -> Tracker:
    """The tracker of a study, with the versions its record names."""
    record = study.record
    version = {"commit": str(record.get("commit", "unknown")), "version": str(record["versions"].get("vtsweep", "?"))}
    return Tracker(config, study.name, study.storage, str(record.get("description", "")), version)


def track_studies(storage: Storage, config: TrackConfig) -> Sent:
    """Log all finished stages of the studies in `storage` that MLflow lacks."""
    total = Sent(0, 0)
    for name in (n for n in storage.files("studies") if storage.exists(f"studies/{n}/{STUDY_FILE}")):
        study = Study.load(f"{storage.uri.rstrip('/')}/studies/{name}")
        counts = study_tracker(study, config).log(study_entries(study))
        total = Sent(total.sent + counts.sent, total.waiting + counts.waiting)
    return total


def study_entries(study: Study) -> Iterator[Entry]:
    """Every run of a study: its finished stages, the effect of the ratio, and the report if it exists."""
    for stage in study.stages:
        yield from stage_entries(study, stage)
    yield from report_entry(study)


def stage_entries(study: Study, name: StageName) -> Iterator[Entry]:
    """One run per finished stage of one kind; for trials also one with the effect of the ratio."""
    views = [view for view in study.views(name) if view.stage.is_done()]
    for view in views:
        yield view_entry(study, name, view)
    if name == "finetune" and len(views) > 1:
        sweep_digest = digest([view.stage.digest for view in views])
        ended = max(_ended(view) for view in views)
        content = partial(_effect_of_ratio, views)
        yield Entry("sweep", sweep_digest, "effect of ratio", content, "finetune", ended=ended, replaces=True)


def view_entry(study: Study, name: StageName, view: View) -> Entry:
    """The run of one stage; for an unfinished stage without results."""
    return Entry(
        stage=name,
        digest=view.stage.digest,
        title=view.label.replace("ratio=", "r="),  # MLflow's list of runs shows 13 characters of a child's name
        content=partial(_stage_content, study, name, view),
        parent=name,
        run=view.run,
        ended=_ended(view) if view.stage.is_done() else time.time(),
    )


def report_entry(study: Study) -> Iterator[Entry]:
    """The run with the report's page and figures; replaced if the study's stages changed."""
    if not study.folder.exists("report/report.html"):
        return
    stages: dict[str, Any] = {name: [v.stage.digest for v in study.views(name)] for name in study.stages}
    ended = study.folder.modified("report/report.html")
    yield Entry("report", digest(stages), "report", partial(_report, study), ended=ended, replaces=True)


def _ended(view: View) -> float:
    return view.stage.store.modified(SUCCESS)


def _stage_content(study: Study, name: StageName, view: View) -> Content:
    summary = summarise(name, view)
    tables = dict(summary.tables)
    for table, home in TABLE_STAGE.items():
        if home != name or table in _LARGE:
            continue
        try:
            tables[table] = view.stage.scan(table).collect()
        except AbsentError:
            continue
    return Content(
        params=summary.params,
        metrics=summary.metrics,
        curves=summary.curves,
        tables=tables,
        model=_adapter(view) if name == "finetune" else {},
        note=f"{name}: {view.label}. Tables: {study.storage.uri.rstrip('/')}/{view.stage.folder}",
        seconds=_seconds(study, name, tables),
    )


def _adapter(view: View) -> dict[str, bytes]:
    """Files of a trial's adapter, if it was saved."""
    return {name: view.stage.read_file(f"adapter/{name}") for name in view.stage.store.files("adapter")}


def _seconds(study: Study, name: StageName, tables: dict[str, pl.DataFrame]) -> float:
    """Duration of a trial; for other stages the duration of all stages of that kind in the study."""
    trials = tables.get("trials")
    if trials is not None and "trial_seconds" in trials.columns and trials.height:
        return float(trials["trial_seconds"][0] or 0.0)
    return float(study.record.get("seconds", {}).get(name, 0.0))


def _effect_of_ratio(views: list[View]) -> Content:
    """Mean accuracy by tier as curves; the ratio in percent is the step."""
    trials = pl.concat([v.stage.scan("trials").collect() for v in views], how="diagonal_relaxed")
    curves: dict[str, list[tuple[int, float]]] = {}
    for tier in ("high", "low"):
        if f"accuracy/{tier}" in trials.columns:
            effect = trials.group_by("complexity_ratio").agg(pl.col(f"accuracy/{tier}").mean()).sort("complexity_ratio")
            curves[f"by_ratio_percent/accuracy_{tier}"] = [
                (round(100 * r), a) for r, a in effect.iter_rows() if r is not None and a is not None
            ]
    return Content(curves=curves, tables={"trials": trials})


def _report(study: Study) -> Content:
    folder = study.folder.sub("report")
    figures = {"report.html": folder.read("report.html")}
    for name in folder.files("figures"):
        if name.endswith(".png"):
            figures[f"figures/{name}"] = folder.read(f"figures/{name}")
    note = str(study.record.get("description", ""))
    return Content(figures=figures, note=note, seconds=float(study.record["seconds"].get("report", 0.0)))
