"""Read bytes from any file system; separates faults of the file from transient faults.

A missing or broken file is a property of the data: it is recorded, and the other files are used. Too many open files, a
device error or a dropped connection is no property of the file: it is retried, and then ends the stage.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Any, TypeVar

from orchestrator.errors import DataError, StorageError

T = TypeVar("T")

WAITS_S = (0.1, 0.5, 2.0)
"""Delays before the second, third and fourth attempt, s."""

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
"""Error numbers of permanent errors."""


def is_transient(error: BaseException) -> bool:
    """Whether an error is transient: a fault of the machine or network and not of the file.

    An OSError without a number is from an object-store client or a decoder: its subclass decides.
    """
    if isinstance(error, TimeoutError | ConnectionError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno is not None and error.errno not in _OF_THE_FILE
    # aiohttp and botocore have their own exception types for failed connections.
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(
        names & {"ClientConnectionError", "ServerDisconnectedError", "HTTPClientError", "EndpointConnectionError"}
    )


def retrying(read: Callable[[], T], name: str) -> T:
    """`read()`, retried with backoff after a transient error.

    Raises:
        StorageError: it persists.
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
        DataError: it is missing, a folder, or not readable.
        StorageError: a transient error persists.
    """
    try:
        return retrying(lambda: fs.cat_file(path), name)
    except StorageError:
        raise
    except FileNotFoundError:
        raise DataError(f"{name}: missing file") from None
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error}") from error
