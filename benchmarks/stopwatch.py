"""Seconds of each command to its first sign on a terminal and to its end: `python -m benchmarks.stopwatch [CHECKOUT]`

Commands run on a pseudo-terminal, in a folder of their own, with the package of CHECKOUT (this one when absent), so
that an older checkout is measured by the same words; a command that it does not have ends with code 2. Beside the
clock stands the processor time of the command and of what it started and waited for, which other work disturbs less.
"""

from __future__ import annotations

import json
import os
import pty
import resource
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

TINY = """name: tiny
stages: [capture, correlate]
base:
  model: {name: reference-joint}
  data: {source: scenes, n_images: 12, n_objects: [1, 30], width: 112, height: 112}
  correlate: {n_bootstrap: 20}
  how: {backend: local, batch_size: 6, shard_size: 5, torch_threads: 1}
"""
LIMIT_S = 300.0
COMMANDS: tuple[tuple[str, int], ...] = (
    ("--version", 3),
    ("--help", 3),
    ("models", 3),
    ("settings finetune.", 3),
    ("doctor", 1),
    ("init mine.yaml --model reference-cross", 1),
    ("run nope.yaml", 3),
    ("run tiny.yaml data.n_imags=3", 3),
    ("plan tiny.yaml", 1),
    ("run tiny.yaml", 1),
    ("run tiny.yaml ", 3),
    ("run tiny.yaml data.seed=1 name=other", 1),
    ("status", 3),
    ("status results/studies/tiny", 3),
    ("verify results/studies/tiny", 1),
    ("report results/studies/tiny", 1),
    ("compare results/studies/tiny results/studies/other", 1),
    ("track results", 1),
    ("pack results/studies/tiny", 1),
    ("evaluate nope.yaml --policy p.yaml", 3),
    ("ui results", 1),
)
"""Words after `vtsweep`, and how often they are timed. A trailing space: the same words once more, finished."""


class Timed(NamedTuple):
    """Seconds of a command by the clock and of the processor, to its first byte on the terminal and to its end."""

    first: float
    end: float
    cpu_first: float
    cpu_end: float
    code: int


def timed(words: Sequence[str], folder: Path, checkout: Path) -> Timed:
    """Run one command; `ui` ends when it has said how to stop it."""
    main, other = pty.openpty()
    path = os.pathsep.join([str(checkout), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "TERM": "xterm-256color", "COLUMNS": "120"}
    started, before = time.monotonic(), children_seconds()
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *words],
        cwd=folder, env=environment, stdin=other, stdout=other, stderr=other, start_new_session=True,
    )  # fmt: skip
    os.close(other)
    first, cpu_first, said = None, 0.0, b""
    while time.monotonic() - started < LIMIT_S:
        if not select.select([main], [], [], 0.02)[0]:
            if process.poll() is not None:
                break
            continue
        try:
            piece = os.read(main, 65536)
        except OSError:  # the other end is closed
            break
        if first is None:
            first, cpu_first = time.monotonic() - started, processor_seconds(process.pid)
        said += piece
        if b"Ctrl-C" in said:
            break
    end, cpu_end = time.monotonic() - started, processor_seconds(process.pid)
    if (process.poll() is None and b"Ctrl-C" in said) or end >= LIMIT_S:
        os.killpg(process.pid, signal.SIGINT)
    try:
        code = process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    if b"Ctrl-C" not in said:
        end, cpu_end = time.monotonic() - started, children_seconds() - before
    os.close(main)
    return Timed(end if first is None else first, end, cpu_first, cpu_end, code)


def processor_seconds(pid: int) -> float:
    """Of a process that runs, and of its children that have ended; 0 for one that has ended itself."""
    try:
        return sum(psutil.Process(pid).cpu_times()[:4])
    except psutil.Error:
        return 0.0


def children_seconds() -> float:
    """Of all children of this process that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(checkout: Path) -> None:
    """Time every command, print a table and a line of JSON."""
    found: dict[str, object] = {}
    print(f"{checkout}, load {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores\n")
    print("| command | first sign, s | end, s | first sign, processor s | end, processor s | exit code |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="vtsweep-watch-", ignore_cleanup_errors=True) as folder:
        (Path(folder) / "tiny.yaml").write_text(TINY)
        for command, repeats in COMMANDS:
            rows = [timed(command.split(), Path(folder), checkout) for _ in range(repeats)]
            medians = [round(statistics.median(row[i] for row in rows), 2) for i in range(4)]
            found[command] = [*medians, rows[0].code]
            print(f"| `{command}` | {' | '.join(f'{m:.2f}' for m in medians)} | {rows[0].code} |", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else Path(__file__).resolve().parents[1])
