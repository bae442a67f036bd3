"""Errors that pass: told from lasting ones, and tried again with growing pauses."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

ATTEMPTS = 5
FIRST_PAUSE = 0.2
"""Seconds before the second attempt; each further pause is three times as long, 8 s in all."""

_ERRNOS = {
    errno.EMFILE,
    errno.ENFILE,
    errno.EIO,
    errno.EAGAIN,
    errno.EBUSY,
    errno.EPIPE,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
}
_CODES = {"SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "InternalError", "ServiceUnavailable"}
_NAMES = ("Timeout", "Connection", "Disconnected", "IncompleteRead", "PayloadError", "ResponseParser")


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed a moment later: too many open files, an I/O error, a timeout, a dropped
    connection, throttling, or an error of the server's own (429, 5xx). What is wrong with the content never passes.

    Clients of object stores have exceptions of their own, with no common base: they are told by module and name.
    """
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError):
        return False
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if isinstance(error, OSError) and error.errno in _ERRNOS:
        return True
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status == 429 or status >= 500 or response.get("Error", {}).get("Code") in _CODES
    status = next((s for k in ("status", "status_code", "code") if isinstance(s := getattr(error, k, None), int)), 0)
    if status == 429 or 500 <= status < 600:
        return True
    module = type(error).__module__.partition(".")[0]
    foreign = module in {"aiohttp", "botocore", "urllib3", "requests", "httpx", "google", "gcsfs", "azure"}
    return foreign and any(name in type(error).__name__ for name in _NAMES)


def retried(call: Callable[[], T], attempts: int = ATTEMPTS, first_pause: float = FIRST_PAUSE) -> T:
    """The result of `call`, tried again while its error is transient; the last error is raised."""
    pause = first_pause
    for attempt in range(1, attempts + 1):
        try:
            return call()
        except Exception as error:
            if attempt == attempts or not is_transient(error):
                raise
        time.sleep(pause * random.uniform(0.8, 1.2))  # many workers that fail together do not come back together
        pause *= 3
    raise AssertionError("unreachable")
