"""`vtsweep ui`: the MLflow server on loopback, with one worker and without its default helper processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from types import FrameType
from typing import Any, NamedTuple

from orchestrator.errors import ResourceError, StorageError
from orchestrator.scrub import scrub
from orchestrator.store.filesystem import Storage
from orchestrator.store.scratch import guarded_process
from orchestrator.tracking import views
from orchestrator.tracking.landing import landing_server
from orchestrator.tracking.tracker import default_uri, remove_stray

LANDING_PORT = 4990
"""Default port of the page of studies; another free port if it is taken."""
_START_SECONDS = 120.0
_NOISE = (b"Registry store URI not provided", b"[MLflow] Security middleware enabled with default settings")
"""Lines of the server's log that are suppressed: printed at every start, without use to the reader."""
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""URL opener without proxies: the server is on this machine."""
_SETTINGS = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "PYTHONWARNINGS": "ignore",
}
"""Job execution starts a runner and several consumers of about 250 MB each, for features a study does not use."""


def serve_ui(place: str, port: int | None = None, open_page: bool = False) -> None:
    """Serve the runs in `place` until interrupted; prints the address once it answers.

    Args:
        place: storage of studies, or a database URI; for a tracking server only its address is printed, as it serves
            its own pages.
        port: loopback port of MLflow; the first free one from 5000 when absent.
        open_page: whether to open the page of studies in this machine's browser.

    Raises:
        StorageError: the storage has no runs.
        ResourceError: the port is taken, or the server did not start.
    """
    if place.startswith(("http://", "https://")):
        print(f"MLflow runs at {scrub(place)}")
        return
    is_database = place.startswith("sqlite:")
    uri, storage = (place, None) if is_database else (_database(place), Storage(place))
    with ui_server(uri, port) as (address, process), _landing(storage, address) as page:
        if page:
            print(f"studies, findings, reports: {page}")
        for study in study_pages(address):
            print(f"{study.name}: {study.page}")
            for title, view in study.views.items():
                print(f"  {title}: {view}")
        print(f"MLflow: {address}   (Ctrl-C to stop)", flush=True)
        for name in ("SIGTERM", "SIGHUP"):  # a closed terminal must not leave the server behind
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), _interrupt)
        if open_page and page:
            webbrowser.open(page)
        try:
            while process.poll() is None:  # a signal that another thread receives does not end a wait of this one
                time.sleep(0.5)
        except KeyboardInterrupt:
            print("stopped")


@contextmanager
def _landing(storage: Storage | None, mlflow: str) -> Iterator[str | None]:
    """Serve the page of a storage's studies, with links to the MLflow server; no page for a bare database."""
    if storage is None:
        yield None
        return

    def links() -> dict[str, tuple[str, dict[str, str]]]:
        return {study.name: (study.page, study.views) for study in study_pages(mlflow, limit=100)}

    with landing_server(storage, 0 if not _is_free(LANDING_PORT) else LANDING_PORT, links) as page:
        yield page


def _database(storage: str) -> str:
    """URI of the database in a storage; raises if there is none, since MLflow would create an empty one."""
    uri = default_uri(Storage(storage))
    if uri is None or not Storage(storage).exists("mlflow.db"):
        raise StorageError(f"no runs in {scrub(storage)!r}: it holds no mlflow.db. Name the storage folder of a study")
    return uri


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def ui_server(uri: str, port: int | None = None) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A running server: its address and process; stopped on exit."""
    chosen = _free_port() if port is None else port
    if not _is_free(chosen):
        raise ResourceError(f"port {chosen} of 127.0.0.1 is taken; choose another with --port")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri),
            *("--host", "127.0.0.1", "--port", str(chosen), "--workers", "1", "--uvicorn-opts", "--log-level warning"),
        ],
        env={**os.environ, **_SETTINGS},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    Thread(target=_relay, args=(process,), daemon=True).start()
    address = f"http://127.0.0.1:{chosen}"
    with guarded_process(process):
        try:
            _wait(address, process)
            yield address, process
        finally:
            process.terminate()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
            remove_stray(uri)


def _relay(process: subprocess.Popen[bytes]) -> None:
    """Copy the server's output to standard error, without the suppressed lines."""
    assert process.stdout is not None
    for line in process.stdout:
        if not line.startswith(_NOISE):
            sys.stderr.buffer.write(line)
            sys.stderr.flush()


class StudyPages(NamedTuple):
    """Addresses of one study: its list of runs, and its shared views by title."""

    name: str
    page: str
    views: dict[str, str]


def study_pages(address: str, limit: int = 10) -> list[StudyPages]:
    """The experiments of a running server, most recently used first.

    Addresses select MLflow's model-training view; by default its pages open on traces of language models.
    """
    body = json.dumps({"max_results": limit + 1, "order_by": ["last_update_time DESC"]}).encode()
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/experiments/search", body, {"Content-Type": "application/json"}
    )
    with _DIRECT.open(request, timeout=30) as answer:
        experiments = json.load(answer).get("experiments", [])
    return [_pages_of(address, e) for e in experiments if e["name"] != "Default"][:limit]


def _pages_of(address: str, experiment: dict[str, Any]) -> StudyPages:
    tags = {tag["key"]: tag["value"] for tag in experiment.get("tags", [])}
    number = experiment["experiment_id"]
    shared = {name: views.page(address, number, key) for name, key in views.keys_of(tags).items()}
    return StudyPages(experiment["name"], views.page(address, number), shared)


def _wait(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ResourceError(f"the MLflow server ended at once with exit code {process.returncode}; see above")
        try:
            with _DIRECT.open(f"{address}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise ResourceError(f"the MLflow server at {address} did not answer within {_START_SECONDS:.0f} s")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    for port in range(views.FIRST_PORT, views.FIRST_PORT + 100):
        if _is_free(port):
            return port
    raise ResourceError(f"no free port from {views.FIRST_PORT} to {views.FIRST_PORT + 99}; choose one with --port")
