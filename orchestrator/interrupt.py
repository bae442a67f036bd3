"""SIGINT and SIGTERM end a command: exit 130 or 143, what is whole is kept, nothing half-done is marked done.

The handler raises in the main thread. A library may lose that exception (a callback from C, a broad `except`), so the
signal is also remembered: `check` raises it again wherever a stage counts a finished unit or is about to be marked
done, and `exit_code` decides how the process ends.
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
"""A second signal within this time is the same one sent twice (to a process and to its group); a later one ends the
process at once."""


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to stop."""


class _State:
    number: int | None = None
    since: float = 0.0
    handled: bool = False


def _handle(number: int, _: FrameType | None) -> None:
    if _State.number is None:
        _State.number, _State.since = number, time.monotonic()
        raise Interrupted(signal.Signals(number).name)
    if time.monotonic() - _State.since > GRACE_SECONDS:
        os._exit(128 + _State.number)  # who asks twice does not want to wait for an orderly end


@contextmanager
def handled() -> Iterator[None]:
    """Raise `Interrupted` on SIGINT and SIGTERM for the length of a `with` block; in the main thread only.

    SIGINT is set too: a shell starts background jobs with it ignored.
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
    """Handle the signals again after a library took them; nothing outside `handled` and the main thread.

    Ray's core takes SIGTERM for a crash: it prints its stack and aborts the process.
    """
    if _State.handled and threading.current_thread() is threading.main_thread():
        for number in NUMBERS:
            signal.signal(number, _handle)


def check() -> None:
    """Raise again a signal whose exception was lost on its way; nothing outside the main thread."""
    if _State.number is not None and threading.current_thread() is threading.main_thread():
        raise Interrupted(signal.Signals(_State.number).name)


def exit_code() -> int | None:
    """130 or 143 once a signal was received, else None."""
    return None if _State.number is None else 128 + _State.number
