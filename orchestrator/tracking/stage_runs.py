"""Finished stages of a study -> MLflow runs: a parent run a kind of stage, a child run each of its stages or trials."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from orchestrator.config import StageName
from orchestrator.errors import StorageError
from orchestrator.report.summaries import summarise
from orchestrator.store.stage_folder import digest
from orchestrator.store.study_record import TABLE_STAGE, Study, View
from orchestrator.tracking.outbox import Content
from orchestrator.tracking.runs import Tracker

_LARGE = {"layer_metrics", "images", "answers", "deletion_answers", "question_metrics", "training"}
"""Tables with a row an image or question: they stay in storage, and the run names the place."""


def log_stage(tracker: Tracker, study: Study, name: StageName) -> None:
    """Log every finished stage of one kind, once; what cannot be sent now waits in the study's outbox."""
    made: list[tuple[View, Content]] = []
    for view in study.views(name):
        if not view.stage.is_done():
            continue
        summary = summarise(name, view)
        tables: dict[str, pl.DataFrame] = {}
        for table, home in TABLE_STAGE.items():
            if home != name or table in _LARGE:
                continue
            try:
                tables[table] = view.stage.scan(table).collect()
            except StorageError:
                continue
        content = Content(
            params=summary.params,
            metrics=summary.metrics,
            curves=summary.curves,
            tables=tables,
            note=f"{name}: {view.label}. Tables: {study.storage.uri.rstrip('/')}/{view.stage.folder}",
            seconds=_seconds(study, name, tables),
        )
        made.append((view, content))
    # A trial that an earlier call finished may have taken longer than all that was left to this one.
    total = max([float(study.record["seconds"].get(name, 0.0)), *(content.seconds for _, content in made)])
    for view, content in made:
        title = view.label.replace("ratio=", "r=")  # MLflow's list of runs shows 13 characters of a child's name
        tracker.log_stage(view.stage, view.run, content, title=title, parent=name, parent_seconds=total)
    if name == "finetune":
        _log_sweep(tracker, study)


def _seconds(study: Study, name: StageName, tables: Mapping[str, pl.DataFrame]) -> float:
    """A trial's own time; of other stages the time of the study's stages of that kind."""
    trials = tables.get("trials")
    if trials is not None and "trial_seconds" in trials.columns and trials.height:
        return float(trials["trial_seconds"][0])
    return float(study.record["seconds"].get(name, 0.0))


def _log_sweep(tracker: Tracker, study: Study) -> None:
    """Give the parent run of fine-tuning trials the effect of the ratio as curves; the ratio in percent is the step."""
    views = [v for v in study.views("finetune") if v.stage.is_done()]
    if len(views) < 2:
        return
    trials = pl.concat([v.stage.scan("trials").collect() for v in views], how="diagonal_relaxed")
    curves: dict[str, list[tuple[int, float]]] = {}
    for tier in ("high", "low"):
        if f"accuracy/{tier}" in trials.columns:
            effect = trials.group_by("complexity_ratio").agg(pl.col(f"accuracy/{tier}").mean()).sort("complexity_ratio")
            curves[f"by_ratio_percent/accuracy_{tier}"] = [(round(100 * r), a) for r, a in effect.iter_rows()]
    content = Content(curves=curves, tables={"trials": trials})
    tracker.log_group("finetune", digest([v.stage.digest for v in views]), None, content)


def log_report(tracker: Tracker, study: Study, written: list[str], seconds: float = 0.0) -> None:
    """Log the report's page and PNG figures as artifacts of one run; `seconds` is how long writing them took."""
    from fsspec.core import url_to_fs

    figures: dict[str, bytes] = {}
    for path in written:
        if path.endswith((".png", ".html")):
            fs, where = url_to_fs(path)
            figures[path.split("/report/", 1)[-1]] = fs.cat_file(where)
    stages: dict[str, Any] = {name: [v.stage.digest for v in study.views(name)] for name in study.stages}
    content = Content(figures=figures, note=study.record["description"], seconds=seconds)
    tracker.log_group("report", digest(stages), None, content)
