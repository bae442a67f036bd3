"""Logging of one study's runs, with a fallback if MLflow cannot be reached. Does not import MLflow itself.

Idempotent: runs are identified by the digest of their stage; a finished run is not changed, a streamed one is
completed. The next call sends what could not be sent, from the same finished stage folders. Only the driver calls it.
"""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote

from filelock import FileLock

from orchestrator.config import TrackConfig
from orchestrator.errors import StorageError
from orchestrator.scrub import scrub
from orchestrator.store.filesystem import Storage
from orchestrator.tracking.content import Beat, Entry
from orchestrator.tracking.sending import environment, errors_only

if TYPE_CHECKING:
    from orchestrator.tracking.runs import Sender

_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
"""Environment of MLflow: an unreachable server is noticed within seconds; the default is seven retries over minutes."""
_LOUD = ("alembic", "mlflow", "mlflow.store.db.utils", "urllib3")
_PATIENCE_S = 60.0
"""Time before a server that could not be reached is contacted again."""


class Sent(NamedTuple):
    """Runs logged by a call, and runs not logged because MLflow could not be reached."""

    sent: int
    waiting: int


class Tracker:
    """Logs the runs of one study.

    Args:
        config: tracking settings.
        study: name of the study, and of the experiment unless `config.experiment` is set.
        storage: the study's storage; holds `mlflow.db` and the artifacts if no server is set.
        description: description of the experiment.
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
        self._warned = False
        self._failed_at: float | None = None

    @property
    def uri(self) -> str | None:
        """Tracking URI; None without a place for a database (remote storage and no `track.uri`)."""
        return self.config.uri or default_uri(self.storage)

    def log(self, entries: Iterable[Entry]) -> Sent:
        """Log every entry that MLflow lacks.

        An unreachable server causes one warning: results are in the storage, and `vtsweep track` logs them later.
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

    def stream(self, beats: Iterable[tuple[Entry, Beat]]) -> bool:
        """Log the progress of unfinished stages; False if MLflow was not reached. Never raises."""
        to_send = [*beats]
        return not to_send or self._attempt(lambda: self._sender.stream(to_send))

    def end_streams(self, state: str, digests: Collection[str] | None = None) -> bool:
        """End incomplete streamed runs, or those of `digests`, as `stopped`, `failed` or `pruned`.

        Never raises; False if MLflow was not reached.
        """
        return "_sender" not in vars(self) or self._attempt(lambda: self._sender.end_streams(state, digests))

    @property
    def is_streamed(self) -> bool:
        """Whether progress can be logged."""
        return self.config.enabled and self.uri is not None

    def views(self) -> dict[str, Any]:
        """Address of the server (empty for a database), experiment id, and title -> key of its shared views.

        Empty if MLflow was not reached.
        """
        shared: dict[str, Any] = {}
        if self.config.enabled and self._attempt(lambda: shared.update(self._sender.shared())):
            shared["address"] = scrub(self.uri or "") if str(self.uri).startswith(("http://", "https://")) else ""
        return shared

    def _attempt(self, work: Callable[[], object]) -> bool:
        if self._failed_at is not None and time.monotonic() - self._failed_at < _PATIENCE_S:
            return False
        if self.uri is None:
            self._give_up("there is no place for a database: storage is remote and track.uri is not set")
            return False
        try:
            with quiet_mlflow(), self._lock():
                try:
                    work()
                finally:
                    remove_stray(self.uri or "")
        except StorageError:
            raise
        except Exception as error:  # tracking errors must not end the study; results are in storage
            self._give_up((str(error) or type(error).__name__).splitlines()[0])
            return False
        self._failed_at = None
        return True

    def _lock(self) -> Any:
        """File lock for drivers that share a local database: two of them cannot create it at the same time."""
        path = database_file(self.uri or "")
        if path is None:
            return nullcontext()
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(f"{path}.lock", timeout=300)

    @cached_property
    def _sender(self) -> Sender:
        from orchestrator.tracking.runs import Sender

        return Sender(self.uri or "", self._artifact_roots(), self.experiment, self.description, self.version)

    def _artifact_roots(self) -> list[str]:
        """Candidate artifact locations in order of preference: the storage, then the folder of the database.

        Empty for a server, which has its own artifact store.
        """
        database = database_file(self.uri or "")
        if database is None:
            return []
        if self.storage.is_local:
            return [Path(self.storage.path("mlflow-artifacts")).absolute().as_uri()]
        return [self.storage.locate("mlflow-artifacts"), (database.absolute().parent / "mlflow-artifacts").as_uri()]

    def _give_up(self, reason: str) -> None:
        """Pause sending, and warn once with the reason."""
        self._failed_at = time.monotonic()
        if self._warned:
            return
        self._warned = True
        warnings.warn(
            f"MLflow at {scrub(self.uri or 'no address')} does not take runs: {scrub(reason)}. All results are in "
            f"{scrub(self.storage.uri)}; `vtsweep track {scrub(self.storage.uri)}` logs them later.",
            stacklevel=4,
        )


def default_uri(storage: Storage) -> str | None:
    """`sqlite:///STORAGE/mlflow.db` for a local storage (`%`, `?` and `#` percent-encoded), else None."""
    if not storage.is_local:
        return None
    file = str(Path(storage.path("mlflow.db")).absolute())
    return "sqlite:///" + re.sub("[%?#]", lambda mark: quote(mark[0]), file)


def remove_stray(uri: str) -> None:
    """Remove the empty folder with the URI's encoded name that MLflow makes beside the database's own."""
    file, encoded = database_file(uri), Path(uri.removeprefix("sqlite:///"))
    if file is not None and encoded != file:
        with suppress(OSError):
            os.removedirs(encoded.parent)


def database_file(uri: str) -> Path | None:
    """The file of an SQLite URI, else None."""
    return Path(unquote(uri.removeprefix("sqlite:///"))) if uri.startswith("sqlite:///") else None


@contextmanager
def quiet_mlflow() -> Iterator[None]:
    """MLflow without telemetry, minute-long retries and a log of database migrations; all restored afterwards."""
    with environment({key: value for key, value in _QUIET.items() if key not in os.environ}):
        from orchestrator.tracking import runs  # noqa: F401 - MLflow sets the levels of its loggers when imported

        with errors_only(_LOUD):
            yield
