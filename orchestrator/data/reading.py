"""Read bytes from any file system, and tell a fault of the file from a fault of the moment.

A missing or broken file is a property of the data: it is recorded, and the rest goes on. Too many open files, a device
error or a dropped connection says nothing of the file: it is tried again, and then ends the work.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Any, TypeVar

from orchestrator.errors import DataError, StorageError

T = TypeVar("T")

WAITS_S = (0.1, 0.5, 2.0)
"""Pauses before the second, third and fourth attempt, s."""

_OF_THE_FILE = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EACCES,
        errno.EPERM,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EINVAL,
    }
)
"""Error numbers that another attempt would give again."""


def is_transient(error: BaseException) -> bool:
    """Whether an error speaks of the machine or network at this moment and not of the file.

    An OSError without a number comes from a client of an object store or from a decoder: its subclass decides.
    """
    if isinstance(error, TimeoutError | ConnectionError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno is not None and error.errno not in _OF_THE_FILE
    # aiohttp and botocore have exceptions of their own for connections that failed.
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(
        names & {"ClientConnectionError", "ServerDisconnectedError", "HTTPClientError", "EndpointConnectionError"}
    )


def retrying(read: Callable[[], T], name: str) -> T:
    """`read()`, tried again with growing pauses after a transient error.

    Raises:
        StorageError: it stays.
    """
    for wait in (*WAITS_S, None):
        try:
            return read()
        except Exception as error:
            if not is_transient(error):
                raise
            if wait is None:
                raise StorageError(
                    f"{name}: cannot be read now ({type(error).__name__}: {error}), after {len(WAITS_S) + 1} attempts. "
                    "The file may be whole: run it again when the machine or connection is well"
                ) from error
        time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def read_bytes(fs: Any, path: str, name: str) -> bytes:
    """Read a file of an fsspec file system.

    Raises:
        DataError: it is missing, a folder, or not ours to read.
        StorageError: a transient error that stays.
    """
    try:
        return retrying(lambda: fs.cat_file(path), name)
    except StorageError:
        raise
    except FileNotFoundError:
        raise DataError(f"{name}: missing file") from None
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error}") from error
