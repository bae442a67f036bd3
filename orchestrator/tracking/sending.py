"""Helpers for sending to MLflow: files in a temporary folder, no proxy for loopback, quoted filter text."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator.store.scratch import temporary_folder

_LOOPBACK = "127.0.0.1,localhost,::1"


def quoted(text: str) -> str:
    """`text` as a string literal of MLflow's filter language, which has no escapes."""
    return f'"{text}"' if "'" in text else f"'{text}'"


@contextmanager
def folder_of(files: Mapping[str, bytes]) -> Iterator[str]:
    """A temporary folder with `files` (relative name -> bytes)."""
    with temporary_folder("artifacts-") as folder:
        for name, data in files.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        yield folder


@contextmanager
def no_proxy(uri: str) -> Iterator[None]:
    """Bypass the environment's proxies for servers on this machine."""
    if urlsplit(uri).hostname not in ("127.0.0.1", "localhost", "::1"):
        yield
        return
    hosts = {key: (os.environ.get(key), _LOOPBACK) for key in ("no_proxy", "NO_PROXY")}
    with environment({key: ",".join(filter(None, values)) for key, values in hosts.items()}):
        yield


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables during a `with` block."""
    before = {key: os.environ.get(key) for key in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


@contextmanager
def errors_only(loggers: Sequence[str]) -> Iterator[None]:
    """Suppress warnings of these loggers during a `with` block."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
