"""Errors that pass are tried again; what is wrong with the content or the place is not."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import StorageError
from orchestrator.store import filesystem, transient
from orchestrator.store.filesystem import Storage
from orchestrator.store.transient import is_transient, retried


class RefusedError(Exception):
    """As botocore's ClientError."""

    def __init__(self, status: int, code: str = "") -> None:
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}, "Error": {"Code": code}}


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    taken: list[float] = []
    monkeypatch.setattr(transient.time, "sleep", taken.append)
    return taken


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (OSError(errno.EMFILE, "too many open files"), True),
        (OSError(errno.EIO, "input/output error"), True),
        (TimeoutError(), True),
        (ConnectionResetError(), True),
        (RefusedError(503), True),
        (RefusedError(400, "SlowDown"), True),
        (RefusedError(403, "AccessDenied"), False),
        (OSError(errno.ENOSPC, "no space left"), False),
        (PermissionError(errno.EACCES, "denied"), False),
        (FileNotFoundError(), False),
        (ValueError("truncated image"), False),
    ],
)
def test_what_passes_is_told_from_what_lasts(error: Exception, passes: bool) -> None:
    assert is_transient(error) is passes


def test_pauses_grow_and_the_last_error_is_raised(pauses: list[float]) -> None:
    def fails() -> None:
        raise TimeoutError("gone")

    with pytest.raises(TimeoutError, match="gone"):
        retried(fails)
    assert len(pauses) == transient.ATTEMPTS - 1
    assert pauses == sorted(pauses)


@pytest.mark.parametrize(
    ("module", "name", "passes"),
    [
        ("botocore.exceptions", "ConnectTimeoutError", True),
        ("aiohttp.client_exceptions", "ServerDisconnectedError", True),
        ("botocore.exceptions", "ParamValidationError", False),
        ("own_reader", "ConnectionLostError", False),
    ],
)
def test_errors_of_object_store_clients_are_told_by_module_and_name(module: str, name: str, passes: bool) -> None:
    assert is_transient(type(name, (Exception,), {"__module__": module})()) is passes


@pytest.mark.parametrize("times", [1, transient.ATTEMPTS])
def test_storage_that_fails_for_a_moment_costs_a_pause_and_for_good_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    storage, left = Storage(str(tmp_path)), [times]
    write = filesystem._write_local

    def flaky(*args: Any, **kwargs: Any) -> None:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        write(*args, **kwargs)

    monkeypatch.setattr(filesystem, "_write_local", flaky)
    if times < transient.ATTEMPTS:
        storage.write("a", b"b")
        assert storage.read("a") == b"b"
    else:
        with pytest.raises(StorageError, match="cannot write a"):
            storage.write("a", b"b")
        assert not (tmp_path / "a").exists()
