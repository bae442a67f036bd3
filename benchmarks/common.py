"""Common parts of benchmarks: header with the hardware, interleaved timing, and the JSON line of figures."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def header(command: str) -> None:
    """Print date, command, hardware and versions."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = models[0] if models else cpu
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    print(f"{datetime.datetime.now(datetime.UTC).date()}  {command}")
    print(f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used{gpu}, load {os.getloadavg()[0]:.1f}")
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}")


def seconds(functions: Mapping[str, Callable[[], object]], repeats: int, device: str) -> dict[str, float]:
    """Median time of each function, s. Rounds are interleaved; each function runs once before, untimed.

    On a CPU: CPU time, which other load hardly changes (use one thread: OMP_NUM_THREADS=1); on a GPU: wall time until
    its work is done.
    """
    clock = time.process_time if device == "cpu" else time.perf_counter
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_number in range(repeats + 1):
        for name, function in functions.items():
            wait()
            start = clock()
            function()
            wait()
            if round_number:
                times[name].append(clock() - start)
    return {name: statistics.median(samples) for name, samples in times.items()}


def last_line(figures: Mapping[str, object]) -> None:
    """Print the figures as one JSON line."""
    print(json.dumps(figures))
