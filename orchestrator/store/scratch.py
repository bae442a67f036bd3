"""Temporary folders that go whatever ends the process that uses them, kill -9 included.

`python scratch.py FOLDER [PID STARTED]` is the guard of one: its standard input is a pipe whose other end that process
alone holds, so that it closes with it. What still runs then for the folder (Ray's own processes) is ended; then the
folder goes. Run by its path, the guard imports nothing of the package: it starts at once and takes a few MB.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess
    import tempfile

SHARED = "VTSWEEP_SCRATCH"
"""Environment variable: the folder that processes of one session share. Ray ends the guard of a worker with it."""
PATIENCE = 3.0
"""Seconds that processes of a folder get to end by themselves."""


@contextmanager
def guarded_folder(parent: str | None = None) -> Iterator[str]:
    """A temporary folder for the length of a `with` block, in `parent` or the temporary folder of this machine.

    Raises:
        OSError: `parent` is no folder that can be written.
    """
    folder, guard = _start(parent, "vts-")
    try:
        yield folder
    finally:
        _release(guard)


def scratch_folder() -> str:
    """The session's temporary folder, else this process's own, which goes when the process does."""
    shared = os.environ.get(SHARED, "")
    return shared if shared and Path(shared).is_dir() else _scratch(os.getpid())[0]


def temporary_folder(prefix: str) -> tempfile.TemporaryDirectory[str]:
    """A folder below `scratch_folder` for the length of a `with` block."""
    import tempfile

    return tempfile.TemporaryDirectory(prefix=prefix, dir=scratch_folder(), ignore_cleanup_errors=True)


@cache
def _scratch(_: int) -> tuple[str, subprocess.Popen[bytes]]:
    """One a process; the guard's pipe is held for as long as the process lives."""
    folder, guard = _start(None, "vtsweep-")
    atexit.register(_release, guard)
    return folder, guard


def _release(guard: subprocess.Popen[bytes]) -> None:
    """Let the guard clean up now, and wait for that."""
    import subprocess

    assert guard.stdin is not None
    guard.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        guard.wait(PATIENCE + 10)


@contextmanager
def guarded_process(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End a process that leads a group of its own with this one, whatever ends it; on leaving, it is left as it is."""
    folder, guard = _start(None, "vtsweep-", [str(process.pid), started(process.pid)])
    try:
        yield
    finally:
        guard.kill()
        guard.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _start(parent: str | None, prefix: str, process: list[str] | None = None) -> tuple[str, subprocess.Popen[bytes]]:
    import subprocess
    import tempfile

    folder, quiet = tempfile.mkdtemp(prefix=prefix, dir=parent), subprocess.DEVNULL
    command = [sys.executable, "-I", "-S", str(Path(__file__)), folder, *(process or [])]
    guard = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True)
    return folder, guard


def processes_of(folder: str) -> list[int]:
    """Processes, this one left out, that name `folder` on their command line, and Ray's that have a file in it open.

    Ray's workers and agents overwrite their command line with `ray::NAME`; their logs lie in the folder.
    """
    processes = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        if folder.encode() in command or (command.startswith(b"ray::") and _has_open(entry, folder)):
            processes.append(int(entry.name))
    return processes


def _has_open(process: Path, folder: str) -> bool:
    try:
        return any(str(file.readlink()).startswith(f"{folder}/") for file in (process / "fd").iterdir())
    except OSError:  # it has ended, or is another user's
        return False


def started(pid: int) -> str:
    """When a process was started, in the kernel's ticks: another one may have its number by now. Empty for none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except OSError:
        return ""


def end_group(pid: int, since: str, patience: float = PATIENCE) -> None:
    """End the group that a process leads, if it is still the one that was started then."""
    deadline = time.monotonic() + patience
    for number in (signal.SIGTERM, signal.SIGKILL):
        if since and started(pid) == since:
            with suppress(OSError):
                os.killpg(pid, number)
        while started(pid) == since and time.monotonic() < deadline:
            time.sleep(0.1)


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


def main(folder: str, pid: str = "", since: str = "") -> None:
    """Wait for the end of standard input, then end the process that is named and clean up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 1024):
        pass
    if pid:
        end_group(int(pid), since)
    clean_up(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
