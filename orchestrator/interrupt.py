"""SIGINT and SIGTERM end a command with exit code 130 or 143; finished shards are kept, incomplete stages stay
unmarked.

The handler raises in the main thread. A library may swallow that exception (a callback from C, a broad `except`), so
that the signal is also stored: `check` raises it again whenever a stage counts a finished unit or is about to be marked
done, and `exit_code` determines the exit code of the process.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

NUMBERS = (signal.SIGINT, signal.SIGTERM)
GRACE_SECONDS = 2.0
"""A second signal within this time, s, is a duplicate (sent to a process and to its group); a later one ends the
process at once."""


class Interrupted(KeyboardInterrupt):
    """This process received a signal to stop."""


class _State:
    number: int | None = None
    since: float = 0.0
    handled: bool = False


def _handle(number: int, _: FrameType | None) -> None:
    if _State.number is None:
        _State.number, _State.since = number, time.monotonic()
        raise Interrupted(signal.Signals(number).name)
    if time.monotonic() - _State.since > GRACE_SECONDS:
        os._exit(128 + _State.number)  # a second signal ends the process without cleaning up


@contextmanager
def handled() -> Iterator[None]:
    """Raise `Interrupted` on SIGINT and SIGTERM inside a `with` block; in the main thread only.

    SIGINT is handled explicitly: shells start background jobs with SIGINT ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _State.number, _State.handled = None, True
    before = {number: signal.signal(number, _handle) for number in NUMBERS}
    try:
        yield
    finally:
        _State.handled = False
        for number, handler in before.items():
            signal.signal(number, handler)


def restore() -> None:
    """Reinstall the handlers after a library replaced them; no effect outside `handled` and the main thread.

    Ray's core treats SIGTERM as a crash: it prints its stack and aborts the process.
    """
    if _State.handled and threading.current_thread() is threading.main_thread():
        for number in NUMBERS:
            signal.signal(number, _handle)


def check() -> None:
    """Raise again a signal whose exception was swallowed; no effect outside the main thread."""
    if _State.number is not None and threading.current_thread() is threading.main_thread():
        raise Interrupted(signal.Signals(_State.number).name)


def exit_code() -> int | None:
    """130 or 143 after a signal, else None."""
    return None if _State.number is None else 128 + _State.number
