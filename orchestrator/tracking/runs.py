"""MLflow: one experiment a study, a parent run a stage, a child run a trial. The only importer of mlflow.

Runs are known by the digest of their stage, so logging a stage again is a no-op. Every record passes through the
study's outbox (`outbox.py`): it leaves once the tracking server has all of it. Written from the driver only.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from orchestrator.config import RunConfig, TrackConfig
from orchestrator.errors import StorageError
from orchestrator.scrub import scrub
from orchestrator.store.stage_folder import Stage, Storage
from orchestrator.tracking.outbox import Content, Outbox

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
_LONGEST_PARAM = 6000


class Tracker:
    """Logs the stages of one study.

    Args:
        config: where MLflow keeps runs.
        study: name of the study; names the experiment unless `config.experiment` does.
        storage: the study's storage: the outbox and, by default, `mlflow.db` and the artifacts.
        description: note of the experiment.
        session: tells one run of the study from another; a parent run lasts as long as all of them together.
    """

    def __init__(
        self, config: TrackConfig, study: str, storage: Storage, description: str = "", session: str = ""
    ) -> None:
        self.config, self.storage, self.description, self.session = config, storage, description, session
        self.experiment = config.experiment or study
        self.outbox = Outbox(storage, study)
        self._unreachable: str | None = None

    @property
    def uri(self) -> str | None:
        """Tracking URI; None where there is no place for a database (remote storage and no `track.uri`)."""
        return self.config.uri or default_uri(self.storage)

    def log_stage(
        self,
        stage: Stage,
        run: RunConfig,
        content: Content,
        *,
        title: str | None = None,
        parent: str | None = None,
        parent_seconds: float = 0.0,
    ) -> bool:
        """Log a finished stage as one run, once.

        Args:
            stage: its name and digest become tags and tell runs apart.
            run: the resolved configuration, logged as `config.yaml` and as the run's data set.
            content: params, metrics, curves, tables and figures.
            title: name of the run; the stage's name when absent.
            parent: title of the parent run, created when absent; makes this a child run (a trial).
            parent_seconds: how long the parent's work took in this session, all its children together.

        Returns:
            Whether MLflow has the run now; False when tracking is off or the record waits in the outbox.
        """
        about = {"title": title or stage.name, "parent": parent, "group": False, "group_seconds": parent_seconds}
        return self._log(stage.name, stage.digest, run, content, about)

    def log_group(self, title: str, digest: str, run: RunConfig | None, content: Content) -> bool:
        """Log what belongs to a parent run as a whole (figures of a sweep, the report), again when `digest` changes.

        Args:
            title: title of the parent run, created when absent.
            digest: digest of everything the content rests on; an equal one is logged once.
            run: configuration shared by its children, or None.
            content: as for a stage; params keep their first value, as MLflow allows no other.
        """
        about = {"title": title, "parent": None, "group": True, "group_seconds": content.seconds}
        return self._log(title, digest, run, content, about)

    def _log(self, stage: str, digest: str, run: RunConfig | None, content: Content, about: Mapping[str, Any]) -> bool:
        if not self.config.enabled:
            return False
        key = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{stage}-{digest}")
        identity = {
            "experiment": self.experiment,
            "experiment_note": self.description,
            "stage": stage,
            "digest": digest,
            "session": self.session,
            **about,
        }
        self.outbox.put(key, run, content, identity)
        return self._send(key)

    def send_pending(self) -> tuple[int, int]:
        """Send what waits in the outbox: (records sent, records that still wait)."""
        self._unreachable = None
        waiting = self.outbox.waiting()
        sent = sum([self._send(key) for key in waiting])
        return sent, len(waiting) - sent

    def _send(self, key: str) -> bool:
        if self.uri is None:
            self._keep("there is no place for a database: storage is remote and track.uri is not set")
        if self._unreachable is not None:
            return False
        try:
            with quiet_mlflow():
                self._sender.send(*self.outbox.read(key))
        except StorageError:
            raise
        except Exception as error:  # whatever fails there, the results are kept and the study goes on
            self._keep((str(error) or type(error).__name__).splitlines()[0])
            return False
        self.outbox.remove(key)
        return True

    @cached_property
    def _sender(self) -> _Sender:
        artifacts = None
        if self.storage.is_local and (self.uri or "").startswith("sqlite"):
            artifacts = Path(self.storage.path("mlflow-artifacts")).absolute().as_uri()
        return _Sender(self.uri or "", artifacts)

    def _keep(self, reason: str) -> None:
        """Stop sending and say so once."""
        if self._unreachable is None:
            self._unreachable = scrub(reason)
            warnings.warn(
                f"MLflow at {scrub(self.uri or 'no address')} does not answer: {self._unreachable}. What was to be "
                f"logged is kept in {scrub(self.outbox.folder.uri)}; `vtsweep track` sends it later.",
                stacklevel=5,
            )


def default_uri(storage: Storage) -> str | None:
    """`sqlite:///STORAGE/mlflow.db` for a local storage, else None."""
    return f"sqlite:///{Path(storage.path('mlflow.db')).absolute()}" if storage.is_local else None


def track_pending(storage: Storage, config: TrackConfig, study: str | None = None) -> tuple[int, int]:
    """Send every waiting record of one study, or of all studies in `storage`: (sent, still waiting)."""
    studies = [study] if study else storage.files("studies")
    counts = [Tracker(config, name, storage).send_pending() for name in studies]
    return sum(sent for sent, _ in counts), sum(left for _, left in counts)


class _Sender:
    """One tracking server. Every method may raise whatever MLflow and its transport raise."""

    def __init__(self, uri: str, artifact_root: str | None) -> None:
        from mlflow import MlflowClient

        if uri.startswith("sqlite:///"):
            Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        self.client = MlflowClient(tracking_uri=uri)
        self.artifact_root = artifact_root

    def send(self, record: Mapping[str, Any], artifacts: Mapping[str, bytes]) -> None:
        """Log one record, unless a finished run with its stage and digest is there."""
        experiment = self._experiment_id(record["experiment"], record["experiment_note"])
        if record["group"]:
            condition = f"tags.group = '{record['title']}' and tags.digest = '{record['digest']}'"
            if self._search(experiment, condition):
                return
            run = self._group(experiment, record)
        else:
            found = self._search(experiment, f"tags.stage = '{record['stage']}' and tags.digest = '{record['digest']}'")
            if any(r.info.status == "FINISHED" for r in found):
                return
            for cut_short in found:  # an earlier driver died while sending; params cannot be set twice
                self.client.delete_run(cut_short.info.run_id)
            tags = {"stage": record["stage"], "digest": record["digest"]}
            if record["parent"]:
                parent = self._group(experiment, {**record, "title": record["parent"], "note": ""})
                tags["mlflow.parentRunId"] = parent.info.run_id
            run = self._create(experiment, record, tags)
        self._fill(run, record, artifacts)
        self.client.set_tag(run.info.run_id, "digest", record["digest"])
        if not record["group"]:
            self.client.set_terminated(run.info.run_id, "FINISHED", end_time=record["time"])

    def _fill(self, run: Run, record: Mapping[str, Any], artifacts: Mapping[str, bytes]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

        run_id, now = run.info.run_id, int(record["time"])
        known = run.data.params
        params = [Param(k, v[:_LONGEST_PARAM]) for k, v in record["params"].items() if k not in known]
        metrics = [Metric(_allowed(k), v, now, 0) for k, v in record["metrics"].items()]
        metrics += [Metric(_allowed(k), v, now, step) for k, curve in record["curves"].items() for step, v in curve]
        for start in range(0, len(params), _PARAMS_A_CALL):
            self.client.log_batch(run_id, params=params[start : start + _PARAMS_A_CALL])
        for start in range(0, len(metrics), _METRICS_A_CALL):
            self.client.log_batch(run_id, metrics=metrics[start : start + _METRICS_A_CALL])
        if data := record["dataset"]:
            entity = Dataset(
                data["name"],
                data["digest"],
                source_type=data["settings"]["source"],
                source=json.dumps(data["settings"]),
                profile=json.dumps({"n_images": data["settings"].get("n_images")}),
            )
            self.client.log_inputs(run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", record["stage"])])])
        with TemporaryDirectory() as folder:
            for name, content in artifacts.items():
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            if artifacts:
                self.client.log_artifacts(run_id, folder)

    def _experiment_id(self, name: str, note: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        location = f"{self.artifact_root}/{_allowed(name)}" if self.artifact_root else None
        tags = {"mlflow.experimentKind": "custom_model_development"}  # runs and metrics, not traces of a language model
        if note:
            tags["mlflow.note.content"] = note
        return str(self.client.create_experiment(name, artifact_location=location, tags=tags))

    def _search(self, experiment: str, condition: str) -> list[Run]:
        return list(self.client.search_runs([experiment], condition, max_results=100))

    def _group(self, experiment: str, record: Mapping[str, Any]) -> Run:
        """The parent run titled as the record says, created when absent; its duration is that of its work so far."""
        title, seconds, session = record["title"], record.get("group_seconds", 0.0), record.get("session", "")
        found = self._search(experiment, f"tags.group = '{title}'")
        if found and found[0].data.tags.get("session", "") == session:
            return found[0]
        tags = {"stage": title, "group": title, "session": session}
        run = found[0] if found else self._create(experiment, {**record, "seconds": seconds}, tags)
        end = run.info.end_time + round(1000 * seconds) if found else record["time"]
        self.client.set_terminated(run.info.run_id, "FINISHED", end_time=end)
        self.client.set_tag(run.info.run_id, "session", session)
        return run

    def _create(self, experiment: str, record: Mapping[str, Any], tags: Mapping[str, str]) -> Run:
        start = int(record["time"] - 1000 * record["seconds"])
        about = {
            "commit": record["commit"],
            "version": record["version"],
            "mlflow.user": getpass.getuser(),
            "mlflow.source.name": "vtsweep",
            "mlflow.source.git.commit": record["commit"].rstrip("+"),
        }
        if record["note"]:
            about["mlflow.note.content"] = record["note"]
        return self.client.create_run(experiment, start_time=start, tags={**about, **tags}, run_name=record["title"])


def _allowed(name: str) -> str:
    """`name` with characters MLflow refuses in metric names and paths replaced by underscores."""
    return re.sub(r"[^\w/. :-]", "_", name)


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
