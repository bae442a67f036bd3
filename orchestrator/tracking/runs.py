"""MLflow: one experiment per study, a parent run per stage, a child run per trial. The only module that imports mlflow.

A run with the live progress of a stage is completed when the stage finishes, and continued after an interruption. A run
interrupted while its results were sent (tag `filling`) is replaced. Import this module within `tracker.quiet_mlflow`.
"""

from __future__ import annotations

import getpass
import json
import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import quote

import mlflow.store.db.utils  # noqa: F401 - sets the levels of loggers, which `tracker.quiet_mlflow` changes after it
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from orchestrator.scrub import scrub
from orchestrator.tracking import views
from orchestrator.tracking.content import Beat, Content, Entry, artifacts, finite_metrics, text_params
from orchestrator.tracking.datasets import HELD_OUT, datasets
from orchestrator.tracking.sending import folder_of, no_proxy, quoted

_BATCH_METRICS, _BATCH_PARAMS = 800, 100
"""Metrics and parameters of one `log_batch` call; MLflow accepts 1000 values in all, and 100 parameters and tags."""
_OF_MODEL = ("accuracy/", "drift/")
"""Metrics that describe a trained adapter, and so its logged model."""
_STOPPED = ("stopped", "pruned")
"""States of runs that were ended deliberately."""
_FILLING = "filling"
"""Tag of a run whose results are being sent; with this tag it is replaced after an interruption."""


@dataclass
class _Stream:
    """A run with the live progress of an unfinished stage."""

    run: Run
    seen: set[tuple[str, int]]
    """(name, step) of the values already logged."""
    state: str = ""
    has_params: bool = False


def _condition(entry: Entry) -> str:
    return f"tags.stage = '{entry.stage}' and tags.digest = '{entry.digest}'"


class Sender:
    """One tracking server and experiment. Every method may raise any error of MLflow and its transport."""

    def __init__(
        self, uri: str, artifact_roots: Sequence[str], experiment: str, note: str, version: Mapping[str, str]
    ) -> None:
        self.client = MlflowClient(tracking_uri=uri)
        self.artifact_roots, self.experiment, self.note, self.version = artifact_roots, experiment, note, version
        self.uri = uri
        self.created = 0
        self._streams: dict[str, _Stream] = {}

    def log(self, entry: Entry) -> None:
        """Log one entry, unless a finished run has its stage and digest; `created` is 1 if a run was completed."""
        self.created = 0
        with no_proxy(self.uri):
            runs = self._search(_condition(entry))
            if any(run.info.status == "FINISHED" for run in runs):
                return
            streamed = [run for run in runs if _FILLING not in run.data.tags]
            stale = [run for run in runs if run not in streamed[:1]]
            if entry.replaces:
                stale += self._search(f"tags.stage = '{entry.stage}' and attributes.run_name = {quoted(entry.title)}")
            for run in stale:  # interrupted while it was sent, or a summary of other stages
                self.client.delete_run(run.info.run_id)
            content = entry.content()
            if streamed:
                run, logged = streamed[0], self._seen(streamed[0])
                self.client.set_tag(run.info.run_id, _FILLING, "yes")
                if entry.parent:
                    self._parent(entry.parent, run.info.start_time, int(1000 * entry.ended))
            else:
                start = int(1000 * (entry.ended - content.seconds))
                run, logged = self._begin(entry, start, {_FILLING: "yes"}, content.note), set()
            self._fill(run, entry, content, logged)
            self.client.set_tag(run.info.run_id, "state", "done")
            self.client.set_terminated(run.info.run_id, "FINISHED", end_time=int(1000 * entry.ended))
            self._streams.pop(entry.digest, None)
            self.created = 1

    def _begin(self, entry: Entry, start: int, tags: Mapping[str, str], note: str) -> Run:
        """A new run of an entry, below its parent, without content."""
        all_tags = {"stage": entry.stage, "digest": entry.digest, **tags}
        if entry.parent:
            all_tags["mlflow.parentRunId"] = self._parent(entry.parent, start, int(1000 * entry.ended))
        return self._create(entry.title, start, all_tags, note)

    # -- live progress

    def stream(self, beats: Iterable[tuple[Entry, Beat]]) -> None:
        """Log the progress of unfinished stages: a stage's run is created at its first beat, or continued."""
        with no_proxy(self.uri):
            before = len(self._streams)
            for entry, beat in beats:
                if entry.digest not in self._streams:
                    self._streams[entry.digest] = self._open(entry)
                self._add(self._streams[entry.digest], beat)
            if len(self._streams) > before:
                self.write_views()

    def _open(self, entry: Entry) -> _Stream:
        runs = [run for run in self._search(_condition(entry)) if _FILLING not in run.data.tags]
        if not runs:
            return _Stream(self._begin(entry, int(1000 * entry.ended), {"state": "begun"}, ""), set())
        if runs[0].info.status != "RUNNING":
            self.client.update_run(runs[0].info.run_id, status="RUNNING")
        return _Stream(runs[0], self._seen(runs[0]))

    def _add(self, stream: _Stream, beat: Beat) -> None:
        """Log what the run lacks of a beat: values by (name, step), parameters, state."""
        content = Content(params=beat.params, curves=beat.curves)
        now = int(1000 * time.time())
        rows = [row for row in finite_metrics(content) if row[:2] not in stream.seen]
        present = stream.run.data.params if not stream.has_params else text_params(content)
        params = [Param(key, value) for key, value in text_params(content).items() if key not in present]
        metrics = [Metric(name, value, now, step) for name, step, value in rows]
        tags = [RunTag("state", beat.state)] if beat.state != stream.state else []
        self._send(stream.run.info.run_id, metrics, params, tags)
        stream.seen.update(row[:2] for row in rows)
        stream.state, stream.has_params = beat.state, True

    def end_streams(self, state: str, digests: Collection[str] | None = None) -> None:
        """End the runs of unfinished stages, or those of `digests`; the next attempt continues them."""
        with no_proxy(self.uri):
            for digest in [d for d in self._streams if digests is None or d in digests]:
                run_id = self._streams[digest].run.info.run_id
                self.client.set_tag(run_id, "state", state)
                self.client.set_terminated(run_id, "KILLED" if state in _STOPPED else "FAILED")
                del self._streams[digest]

    def _seen(self, run: Run) -> set[tuple[str, int]]:
        """(name, step) of every value that a run has."""
        run_id = run.info.run_id
        return {(key, m.step) for key in run.data.metrics for m in self.client.get_metric_history(run_id, key)}

    # -- content

    def _send(self, run_id: str, metrics: list[Metric], params: list[Param], tags: Sequence[RunTag] = ()) -> None:
        """Log values in batches that MLflow accepts; the first has the tags."""
        n_batches = max(-(-len(metrics) // _BATCH_METRICS), -(-len(params) // _BATCH_PARAMS), int(bool(tags)))
        for k in range(n_batches):
            batch = metrics[k * _BATCH_METRICS :][:_BATCH_METRICS], params[k * _BATCH_PARAMS :][:_BATCH_PARAMS]
            self.client.log_batch(run_id, *batch, () if k else tags)

    def _fill(self, run: Run, entry: Entry, content: Content, logged: set[tuple[str, int]]) -> None:
        run_id, now = run.info.run_id, int(1000 * entry.ended)
        judged = self._log_data(run_id, entry)
        params = [Param(k, v) for k, v in text_params(content).items() if k not in run.data.params]
        model = self._log_model(run, entry, content) if content.model else None
        about_model: dict[str, Any] = {"model_id": model}
        if judged:
            about_model |= {"dataset_name": judged["name"], "dataset_digest": judged["digest"]}
        metrics = [
            Metric(name, value, now, step, **(about_model if model and name.startswith(_OF_MODEL) else {}))
            for name, step, value in finite_metrics(content)
            if (name, step) not in logged or (model and name.startswith(_OF_MODEL))
        ]
        self._send(run_id, metrics, params)
        if content.note:
            self.client.set_tag(run_id, "mlflow.note.content", scrub(content.note))
        with folder_of(dict(artifacts(entry.run, content))) as folder:
            self.client.log_artifacts(run_id, folder)

    def _log_data(self, run_id: str, entry: Entry) -> Mapping[str, Any] | None:
        """Log the run's data sets as its inputs; returns that of held-out questions, if there is one."""
        data_sets = datasets(entry.run, entry.stage) if entry.run is not None else {}
        inputs = [
            DatasetInput(
                Dataset(
                    data["name"],
                    data["digest"],
                    source_type=data["settings"]["source"],
                    source=json.dumps(data["settings"]),
                    profile=json.dumps({"n": data["n"]}),
                ),
                [InputTag("mlflow.data.context", context)],
            )
            for context, data in data_sets.items()
        ]
        if inputs:
            self.client.log_inputs(run_id, inputs)
        return data_sets.get(HELD_OUT)

    def _log_model(self, run: Run, entry: Entry, content: Content) -> str:
        """Log an adapter as a model of its run; returns its id, to which metrics of the model refer."""
        name = re.sub(r"[^\w-]+", "_", entry.title)
        tags = {f"data.{context}": data["name"] for context, data in datasets(entry.run, entry.stage).items()}
        model = self.client.create_logged_model(
            self._experiment_id, name, run.info.run_id, tags, text_params(content), "peft adapter"
        )
        with folder_of(content.model) as folder:
            self.client.log_model_artifacts(model.model_id, folder)
        self.client.finalize_logged_model(model.model_id, "READY")
        self.client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, 0)])
        return str(model.model_id)

    @cached_property
    def _experiment_id(self) -> str:
        experiment = self.client.get_experiment_by_name(self.experiment)
        if experiment is None:
            location = artifact_location(self.artifact_roots, quote(self.experiment, safe=""))
            # MLflow's view of training runs, not of traces
            tags = {"mlflow.experimentKind": "custom_model_development"}
            tags |= {"mlflow.note.content": self.note} if self.note else {}
            try:
                return str(self.client.create_experiment(self.experiment, artifact_location=location, tags=tags))
            except MlflowException:  # another driver was first
                experiment = self.client.get_experiment_by_name(self.experiment)
                if experiment is None:
                    raise
        if experiment.lifecycle_stage != "active":
            raise RuntimeError(
                f"experiment {self.experiment!r} is deleted there; restore it (mlflow experiments restore "
                f"-x {experiment.experiment_id}) or name another with track.experiment"
            )
        return str(experiment.experiment_id)

    def _search(self, condition: str) -> list[Run]:
        return list(self.client.search_runs([self._experiment_id], condition, max_results=1000))

    def _parent(self, title: str, start: int, end: int) -> str:
        """Id of the parent run of a kind of stage, created if needed; its times span those of its children."""
        runs = self._search(f"tags.group = {quoted(title)}")
        if runs:
            run = runs[0]
            start, end = min(start, run.info.start_time), max(end, run.info.end_time or end)
        else:
            run = self._create(title, start, {"group": title, "digest": "none"}, "")
        self.client.set_terminated(run.info.run_id, "FINISHED", end_time=end)
        return str(run.info.run_id)

    def _create(self, title: str, start: int, tags: Mapping[str, str], note: str) -> Run:
        about = {"mlflow.user": getpass.getuser(), "mlflow.source.name": "vtsweep", **self.version}
        if commit := self.version.get("commit", "").rstrip("+"):
            about["mlflow.source.git.commit"] = commit
        if note:
            about["mlflow.note.content"] = scrub(note)
        return self.client.create_run(self._experiment_id, start_time=start, tags={**about, **tags}, run_name=title)

    # -- shared views

    def write_views(self) -> None:
        """Write the study's shared views, from the metrics of its newest runs."""
        metrics: dict[str, dict[str, None]] = {}
        with no_proxy(self.uri):
            for run in self._search("")[:200]:
                if run.data.tags.get("mlflow.parentRunId"):
                    metrics.setdefault(run.data.tags.get("stage", ""), {}).update(dict.fromkeys(run.data.metrics))
            existing = self.client.get_experiment(self._experiment_id).tags
            for key, value in views.changed(existing, {stage: list(names) for stage, names in metrics.items()}).items():
                self.client.set_experiment_tag(self._experiment_id, key, value)

    def shared(self) -> dict[str, Any]:
        """Experiment id, and title -> key of its shared views."""
        with no_proxy(self.uri):
            tags = self.client.get_experiment(self._experiment_id).tags
        return {"experiment": self._experiment_id, "views": views.keys_of(tags)}


def artifact_location(roots: Sequence[str], name: str) -> str | None:
    """The folder `name` below the first root that MLflow can write; None without roots.

    MLflow does not support `memory://`, and needs a package for each object store (boto3 for `s3://`).
    """
    for root in roots[:-1]:
        try:
            get_artifact_repository(f"{root}/{name}").list_artifacts()
        except (ImportError, MlflowException):
            continue
        return f"{root}/{name}"
    return f"{roots[-1]}/{name}" if roots else None
