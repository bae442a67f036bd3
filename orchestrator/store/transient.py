"""Transient errors: told apart from permanent ones, retried with backoff."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

ATTEMPTS = 5
FIRST_PAUSE = 0.2
"""Seconds before the second attempt; each further delay is three times as long, 8 s in total."""

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
    """Whether a retry may succeed: too many open files, an I/O error, a timeout, a dropped
    connection, throttling, or a server error (429, 5xx). Errors of content are permanent.

    Exceptions of object-store clients have no common base class: they are recognised by module and name.
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
    """The result of `call`, retried while its error is transient; raises the last error."""
    pause = first_pause
    for attempt in range(1, attempts + 1):
        try:
            return call()
        except Exception as error:
            if attempt == attempts or not is_transient(error):
                raise
        time.sleep(pause * random.uniform(0.8, 1.2))  # jitter, so that workers that fail together do not retry together
        pause *= 3
    raise AssertionError("unreachable")
