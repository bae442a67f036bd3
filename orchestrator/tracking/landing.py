"""The page that `vtsweep ui` opens: the studies of a storage with their first findings, reports and MLflow views.

Served on loopback from the storage's files, rendered at each request. Reports are served unchanged; no other file of
the storage can be requested.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import jinja2

from orchestrator.errors import StorageError
from orchestrator.store.filesystem import Storage
from orchestrator.store.study_list import list_studies

_TYPES = {".html": "text/html; charset=utf-8", ".png": "image/png", ".svg": "image/svg+xml"}
_FILE = re.compile(
    r"/report/([A-Za-z0-9][A-Za-z0-9_.-]{0,127})/((?:[A-Za-z0-9][A-Za-z0-9_.-]*/)*[A-Za-z0-9][A-Za-z0-9_.-]*)"
)
_NAMES = ("127.0.0.1", "localhost")
"""Accepted Host headers; others indicate DNS rebinding."""

Links = Callable[[], Mapping[str, tuple[str, Mapping[str, str]]]]
"""Study -> address of its MLflow page, and title -> address of its shared views."""


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("orchestrator.tracking"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("landing.html.jinja")


def landing_page(storage: Storage, links: Mapping[str, tuple[str, Mapping[str, str]]]) -> str:
    """The page as HTML: every study of the storage, the newest first."""
    studies = []
    for listing in list_studies(storage):
        page, views = links.get(listing.name, ("", {}))
        studies.append(
            {**asdict(listing), "answers": _answers(storage, listing.name), "page": page, "views": dict(views)}
        )
    running = any(s["stages_done"] < s["stages"] for s in studies)
    return _template().render(storage=storage.uri, studies=studies, running=running)


def _answers(storage: Storage, name: str) -> Sequence[Mapping[str, Any]]:
    """The first sentences of the study's report; empty without a report."""
    try:
        content = storage.read_json(f"studies/{name}/report/answers.json")
    except (FileNotFoundError, StorageError):
        return []
    return [a for a in content if isinstance(a, dict) and "sentence" in a] if isinstance(content, list) else []


def answer_request(storage: Storage, path: str, links: Links) -> tuple[int, str, bytes]:
    """(status, content type, body) of a request: the page, or a file of a study's report."""
    location = unquote(urlsplit(path).path)
    if location in ("/", "/index.html"):
        return HTTPStatus.OK, _TYPES[".html"], landing_page(storage, links()).encode()
    if location == "/studies.json":
        listed = [asdict(listing) for listing in list_studies(storage)]
        return HTTPStatus.OK, "application/json", json.dumps(listed).encode()
    if (match := _FILE.fullmatch(location)) and ".." not in location:
        kind = _TYPES.get("." + match[2].rsplit(".", 1)[-1])
        try:
            if kind:
                return HTTPStatus.OK, kind, storage.read(f"studies/{match[1]}/report/{match[2]}")
        except (FileNotFoundError, StorageError):
            pass
    return HTTPStatus.NOT_FOUND, "text/plain", b"not here"


@contextmanager
def landing_server(storage: Storage, port: int, links: Links) -> Iterator[str]:
    """The page's server on loopback; yields its address, stops on exit."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers.get("Host", "").rsplit(":", 1)[0] not in _NAMES:
                status, kind, body = int(HTTPStatus.FORBIDDEN), "text/plain", b"this machine only"
            else:
                try:
                    status, kind, body = answer_request(storage, self.path, links)
                except Exception as error:  # the error is shown on the page
                    status, kind, body = 500, "text/plain", f"{type(error).__name__}: {error}".encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Requests are not logged."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
