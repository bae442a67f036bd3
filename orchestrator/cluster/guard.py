"""`python guard.py FOLDER`: cleans up a local Ray after the process that started it has ended, by any signal.

Standard input is a pipe whose other end is held by that process only: it closes with the process, kill -9 included.
Processes that still have the session's folder on their command line belong to Ray and are terminated; then the folder
is removed. Run by path, without imports of the package: it starts at once and uses a few MB.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

PATIENCE = 3.0
"""Grace period, s, for Ray's processes to end by themselves."""


def processes_of(folder: str) -> list[int]:
    """Other processes that have `folder` on their command line."""
    pids = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if folder.encode() in command:
            pids.append(int(entry.name))
    return pids


def clean_up(folder: str, patience: float = PATIENCE) -> None:
    """Wait for the processes of `folder`, terminate those that remain, and remove the folder."""
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
