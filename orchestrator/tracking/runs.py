"""MLflow: one experiment a study, a parent run a stage, a child run a trial. The only importer of mlflow.

Idempotent: runs are known by the digest of their stage, a finished one is left alone, an unfinished one is replaced.
What could not be sent is sent by the next call, made from the same finished stage folders. Written by the driver only.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import re
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from filelock import FileLock

from orchestrator.config import TrackConfig
from orchestrator.errors import StorageError
from orchestrator.scrub import scrub
from orchestrator.store.filesystem import Storage
from orchestrator.tracking import views
from orchestrator.tracking.content import Content, Entry, artifacts, dataset, finite_metrics, text_params

if TYPE_CHECKING:
    from mlflow.entities import Run

_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
"""A server that is down is noticed within seconds; MLflow's own default is seven retries over minutes."""
_LOUD = ("alembic", "mlflow", "mlflow.store.db.utils", "urllib3")
_METRICS_A_CALL, _PARAMS_A_CALL = 1000, 100
"""MLflow refuses larger `log_batch` calls."""
_OF_MODEL = ("accuracy/", "drift/")
"""Metrics that describe a trained adapter, and so its logged model."""
_LOOPBACK = "127.0.0.1,localhost,::1"


class Sent(NamedTuple):
    """Runs logged by a call, and runs that MLflow does not have because it could not be reached."""

    sent: int
    waiting: int


class Tracker:
    """Logs the runs of one study.

    Args:
        config: where MLflow keeps runs.
        study: name of the study; names the experiment unless `config.experiment` does.
        storage: the study's storage, which holds `mlflow.db` and the artifacts where no server is named.
        description: note of the experiment.
        version: versions and commit recorded with each run.
    """

    def __init__(
        self,
        config: TrackConfig,
        study: str,
        storage: Storage,
        description: str = "",
        version: Mapping[str, str] | None = None,
    ) -> None:
        self.config, self.storage, self.description = config, storage, scrub(description)
        self.experiment = config.experiment or study
        self.version = dict(version or {})
        self._unreachable: str | None = None

    @property
    def uri(self) -> str | None:
        """Tracking URI; None where there is no place for a database (remote storage and no `track.uri`)."""
        return self.config.uri or default_uri(self.storage)

    def log(self, entries: Iterable[Entry]) -> Sent:
        """Log every entry that MLflow does not have yet.

        A server that cannot be reached is a warning, given once: results are in the storage, and `vtsweep track` logs
        them later.
        """
        waiting = [*entries] if self.config.enabled else []
        sent = 0
        for number, entry in enumerate(waiting):
            if not self._attempt(lambda entry=entry: self._sender.log(entry)):  # type: ignore[misc]
                return Sent(sent, len(waiting) - number)
            sent += self._sender.created
        if waiting:
            self._attempt(lambda: self._sender.write_views())
        return Sent(sent, 0)

    def _attempt(self, work: Any) -> bool:
        if self._unreachable is not None:
            return False
        if self.uri is None:
            self._give_up("there is no place for a database: storage is remote and track.uri is not set")
            return False
        try:
            with quiet_mlflow(), self._lock():
                work()
        except StorageError:
            raise
        except Exception as error:  # whatever fails there, the results are kept and the study goes on
            self._give_up((str(error) or type(error).__name__).splitlines()[0])
            return False
        return True

    def _lock(self) -> Any:
        """Drivers that share a database on a disk take turns: a fresh one cannot be made by two at once."""
        path = database_file(self.uri or "")
        if path is None:
            return nullcontext()
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(f"{path}.lock", timeout=300)

    @cached_property
    def _sender(self) -> _Sender:
        root = None
        if self.storage.is_local and database_file(self.uri or "") is not None:
            root = Path(self.storage.path("mlflow-artifacts")).absolute().as_uri()
        return _Sender(self.uri or "", root, self.experiment, self.description, self.version)

    def _give_up(self, reason: str) -> None:
        """Stop sending and say so once."""
        self._unreachable = scrub(reason)
        warnings.warn(
            f"MLflow at {scrub(self.uri or 'no address')} does not take runs: {self._unreachable}. All results are in "
            f"{scrub(self.storage.uri)}; `vtsweep track {scrub(self.storage.uri)}` logs them later.",
            stacklevel=4,
        )


def default_uri(storage: Storage) -> str | None:
    """`sqlite:///STORAGE/mlflow.db` for a local storage (percent-encoded), else None."""
    return f"sqlite:///{quote(str(Path(storage.path('mlflow.db')).absolute()))}" if storage.is_local else None


def database_file(uri: str) -> Path | None:
    """The file of an SQLite URI, else None."""
    return Path(unquote(uri.removeprefix("sqlite:///"))) if uri.startswith("sqlite:///") else None


class _Sender:
    """One tracking server and experiment. Every method may raise whatever MLflow and its transport raise."""

    def __init__(
        self, uri: str, artifact_root: str | None, experiment: str, note: str, version: Mapping[str, str]
    ) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=uri)
        self.artifact_root, self.experiment, self.note, self.version = artifact_root, experiment, note, version
        self.uri = uri
        self.created = 0

    def log(self, entry: Entry) -> None:
        """Log one entry, unless a finished run with its stage and digest is there; `created` counts runs made."""
        self.created = 0
        with _no_proxy(self.uri):
            condition = f"tags.stage = '{entry.stage}' and tags.digest = '{entry.digest}'"
            found = self._search(condition)
            if any(run.info.status == "FINISHED" for run in found):
                return
            if entry.replaces:
                title = _quoted(entry.title)
                found += self._search(f"tags.stage = '{entry.stage}' and attributes.run_name = {title}")
            for stale in found:  # cut short while it was sent, or a summary of fewer stages
                self.client.delete_run(stale.info.run_id)
            content = entry.content()
            tags = {"stage": entry.stage, "digest": entry.digest}
            start = int(1000 * (entry.ended - content.seconds))
            if entry.parent:
                tags["mlflow.parentRunId"] = self._parent(entry.parent, start, int(1000 * entry.ended))
            run = self._create(entry.title, start, tags, content.note)
            self._fill(run, entry, content)
            self.client.set_terminated(run.info.run_id, "FINISHED", end_time=int(1000 * entry.ended))
            self.created = 1

    def _fill(self, run: Run, entry: Entry, content: Content) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

        run_id, now = run.info.run_id, int(1000 * entry.ended)
        params = [Param(k, v) for k, v in text_params(content).items()]
        rows = finite_metrics(content)
        model = self._log_model(run, entry, content) if content.model else None
        metrics = [
            Metric(name, value, now, step, model_id=model if name.startswith(_OF_MODEL) else None)
            for name, step, value in rows
        ]
        for start in range(0, len(params), _PARAMS_A_CALL):
            self.client.log_batch(run_id, params=params[start : start + _PARAMS_A_CALL])
        for start in range(0, len(metrics), _METRICS_A_CALL):
            self.client.log_batch(run_id, metrics=metrics[start : start + _METRICS_A_CALL])
        if entry.run is not None:
            data = dataset(entry.run)
            entity = Dataset(
                data["name"],
                data["digest"],
                source_type=data["settings"]["source"],
                source=json.dumps(data["settings"]),
                profile=json.dumps({"n_images": data["settings"].get("n_images")}),
            )
            self.client.log_inputs(run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", entry.stage)])])
        with _folder_of(dict(artifacts(entry.run, content))) as folder:
            self.client.log_artifacts(run_id, folder)

    def _log_model(self, run: Run, entry: Entry, content: Content) -> str:
        """Keep an adapter as a logged model of its run; returns its id, which metrics of the model carry."""
        from mlflow.entities import LoggedModelOutput

        name = re.sub(r"[^\w-]+", "_", entry.title)
        model = self.client.create_logged_model(
            self._experiment_id, name, run.info.run_id, params=text_params(content), model_type="peft adapter"
        )
        with _folder_of(content.model) as folder:
            self.client.log_model_artifacts(model.model_id, folder)
        self.client.finalize_logged_model(model.model_id, "READY")
        self.client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, 0)])
        return str(model.model_id)

    @cached_property
    def _experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(self.experiment)
        if found is None:
            location = f"{self.artifact_root}/{quote(self.experiment, safe='')}" if self.artifact_root else None
            # runs and metrics, not traces of a language model
            tags = {"mlflow.experimentKind": "custom_model_development"}
            tags |= {"mlflow.note.content": self.note} if self.note else {}
            try:
                return str(self.client.create_experiment(self.experiment, artifact_location=location, tags=tags))
            except MlflowException:  # another driver was first
                found = self.client.get_experiment_by_name(self.experiment)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise RuntimeError(
                f"experiment {self.experiment!r} is deleted there; restore it (mlflow experiments restore "
                f"-x {found.experiment_id}) or name another with track.experiment"
            )
        return str(found.experiment_id)

    def _search(self, condition: str) -> list[Run]:
        return list(self.client.search_runs([self._experiment_id], condition, max_results=1000))

    def _parent(self, title: str, start: int, end: int) -> str:
        """Id of the parent run of a kind of stage, created when absent; it spans all of its children."""
        found = self._search(f"tags.group = {_quoted(title)}")
        if found:
            run = found[0]
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
        with _no_proxy(self.uri):
            there = self.client.get_experiment(self._experiment_id).tags
            for view in self._views():
                value = views.encode(view, int(1000 * time.time()))
                before = json.loads(there.get(views.TAG + view.key, "{}"))
                if before.get("state") != json.loads(value)["state"]:
                    self.client.set_experiment_tag(self._experiment_id, views.TAG + view.key, value)

    def _views(self) -> Sequence[views.SharedView]:
        metrics: dict[str, dict[str, None]] = {}
        for run in self._search("attributes.status = 'FINISHED'")[:200]:
            if run.data.tags.get("mlflow.parentRunId"):
                metrics.setdefault(run.data.tags.get("stage", ""), {}).update(dict.fromkeys(run.data.metrics))
        return views.study_views({stage: list(names) for stage, names in metrics.items()})


def _quoted(text: str) -> str:
    """`text` as a string of MLflow's filter language, which knows no escapes."""
    return f'"{text}"' if "'" in text else f"'{text}'"


@contextmanager
def _folder_of(files: Mapping[str, bytes]) -> Iterator[str]:
    """A temporary folder that holds `files` (relative name -> bytes)."""
    with TemporaryDirectory(prefix="vtsweep-") as folder:
        for name, data in files.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        yield folder


@contextmanager
def _no_proxy(uri: str) -> Iterator[None]:
    """A server on this machine is asked directly, whatever proxy the environment names."""
    if urlsplit(uri).hostname not in ("127.0.0.1", "localhost", "::1"):
        yield
        return
    before = {key: os.environ.get(key) for key in ("no_proxy", "NO_PROXY")}
    os.environ.update({key: ",".join(filter(None, (value, _LOOPBACK))) for key, value in before.items()})
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


@contextmanager
def quiet_mlflow() -> Iterator[None]:
    """MLflow without telemetry, minute-long retries and a log of database migrations; all restored afterwards."""
    added = [key for key in _QUIET if key not in os.environ]
    os.environ.update({key: _QUIET[key] for key in added})
    import mlflow.store.db.utils  # noqa: F401 - the import sets the levels that are changed below

    levels = {name: logging.getLogger(name).level for name in _LOUD}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for key in added:
            os.environ.pop(key, None)
