"""After a driver's death by any signal nothing of its session runs, and its folder is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.cluster import guard

DRIVER = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits it ignored
from orchestrator.cluster.session import _guarded
with _guarded() as folder:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(99)"
    stays = [sys.executable, "-c", code, folder + "/x"]
    child = subprocess.Popen(stays, start_new_session=True)
    print(folder, child.pid, flush=True)
    time.sleep(float(sys.argv[1]))
"""


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, None])
def test_nothing_is_left_however_the_driver_ends(number: signal.Signals | None, tmp_path: Path) -> None:
    environment = {**os.environ, "RAY_TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", DRIVER, "99" if number else "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as driver:
        assert driver.stdout is not None
        folder, pid = driver.stdout.readline().split()
        assert Path(folder).is_relative_to(tmp_path)
        if number:
            assert alive(int(pid))
            os.kill(driver.pid, number)
        driver.wait(60)
    deadline = time.monotonic() + guard.PATIENCE + 30
    while (alive(int(pid)) or Path(folder).exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(int(pid))
    assert not list(tmp_path.iterdir())


def test_a_process_of_another_session_is_left_alone(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", str(tmp_path / "other")])
    try:
        (tmp_path / "mine").mkdir()
        guard.clean_up(str(tmp_path / "mine"), patience=0.0)
        assert other.poll() is None
        assert not (tmp_path / "mine").exists()
    finally:
        other.kill()
        other.wait()
