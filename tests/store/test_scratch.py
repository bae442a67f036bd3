"""Whatever ends a process, nothing that works in its temporary folders runs on, and they are gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.store import scratch

DRIVER = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits it ignored
from orchestrator.store.scratch import guarded_folder, scratch_folder
scratch_folder()
with guarded_folder() as folder:
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
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", DRIVER, "99" if number else "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as driver:
        assert driver.stdout is not None
        folder, pid = driver.stdout.readline().split()
        assert Path(folder).is_relative_to(tmp_path)
        if number:
            assert alive(int(pid))
            assert len(list(tmp_path.iterdir())) == 2
            os.kill(driver.pid, number)
        driver.wait(60)
    deadline = time.monotonic() + scratch.PATIENCE + 30
    while (alive(int(pid)) or list(tmp_path.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(int(pid))
    assert not list(tmp_path.iterdir())


SERVER = """
import subprocess, sys, time
from orchestrator.store.scratch import guarded_process
code = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(99)"
child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
with guarded_process(child):
    print(child.pid, flush=True)
    time.sleep(float(sys.argv[1]))
"""


@pytest.mark.parametrize("killed", [True, False])
def test_a_server_ends_with_the_process_that_guards_it_and_is_left_to_it_otherwise(
    killed: bool, tmp_path: Path
) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", SERVER, "99" if killed else "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as driver:
        assert driver.stdout is not None
        pid = int(driver.stdout.readline())
        if killed:
            driver.kill()
        driver.wait(60)
    try:
        deadline = time.monotonic() + scratch.PATIENCE + 30
        while killed and alive(pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert alive(pid) != killed
    finally:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
    while list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not list(tmp_path.iterdir())


def test_another_process_with_the_number_of_one_that_ended_is_let_be() -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        scratch.end_group(other.pid, "1", patience=0.0)
        assert other.poll() is None
        scratch.end_group(other.pid, scratch.started(other.pid), patience=5.0)
        assert other.wait(10) == -signal.SIGTERM
    finally:
        other.kill()
        other.wait()


def test_a_worker_of_ray_is_known_by_its_log_and_a_reader_of_the_log_is_let_be(tmp_path: Path) -> None:
    log, mine = tmp_path / "worker.log", str(tmp_path)
    code = "import sys, time; print('up', flush=True); time.sleep(60)"
    with log.open("w") as file:
        agent = subprocess.Popen(["ray::Agent", "-c", code], executable=sys.executable, stdout=file)
    while not log.read_text():
        time.sleep(0.02)
    reader = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdin=log.open())
    try:
        assert scratch.processes_of(mine) == [agent.pid]
        scratch.clean_up(mine, patience=0.0)
        assert agent.wait(10) == -signal.SIGKILL
        assert reader.poll() is None
    finally:
        for one in (agent, reader):
            one.kill()
            one.wait()


def test_a_process_of_another_session_is_left_alone(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", str(tmp_path / "other")])
    try:
        (tmp_path / "mine").mkdir()
        scratch.clean_up(str(tmp_path / "mine"), patience=0.0)
        assert other.poll() is None
        assert not (tmp_path / "mine").exists()
    finally:
        other.kill()
        other.wait()
