"""`python guard.py FOLDER`: when the process that started a local Ray has ended, however it ended, nothing is left.

Standard input is a pipe whose other end that process alone holds: it closes with the process, kill -9 included. What
still runs then and names the session's folder on its command line is Ray's own, and is ended; then the folder goes.
Run by its path: it imports nothing of the package, so that it starts at once and takes a few MB.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

PATIENCE = 3.0
"""Seconds that Ray's processes get to end by themselves."""


def processes_of(folder: str) -> list[int]:
    """Processes, this one left out, that have `folder` on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if folder.encode() in command:
            found.append(int(entry.name))
    return found


def clean_up(folder: str, patience: float = PATIENCE) -> None:
    """Wait for the processes of `folder`, end those that stay, and remove it."""
    deadline = time.monotonic() + patience
    while processes_of(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    for _ in range(20):
        left = processes_of(folder)
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue
        if not left:
            break
        time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)


def main(folder: str) -> None:
    """Wait for the end of standard input, then clean up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 1024):
        pass
    clean_up(folder)


if __name__ == "__main__":
    main(sys.argv[1])
