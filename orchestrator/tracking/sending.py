"""Helpers for sending to MLflow: files in a temporary folder, no proxy for loopback, quoted filter text."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
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
