"""A local Ray session: bounded, quiet, on loopback only, and gone afterwards."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from orchestrator.cluster.session import _guarded, session
from orchestrator.config import HowConfig
from orchestrator.errors import ResourceError, StorageError
from orchestrator.store.filesystem import Storage
from orchestrator.store.memory import object_store_gb
from orchestrator.store.scratch import SHARED, processes_of

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster():
    with session(HowConfig(object_store_gb=0.2)) as cluster:
        yield cluster


def _listening() -> set[str]:
    """Local addresses of listening TCP sockets of this process and its descendants, as the kernel's hex words."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
    ours, grown = {os.getpid()}, True
    while grown:
        found = {pid for pid, parent in parents.items() if parent in ours} - ours
        grown = bool(found)
        ours |= found
    inodes = set()
    for pid in ours:
        for fd in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = str(fd.readlink())
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in inodes:
                addresses.add(words[1].rsplit(":", 1)[0])
    return addresses


@pytest.mark.usefixtures("cluster")
def test_every_port_is_bound_to_loopback():
    found = _listening()
    assert found, "a Ray session listens somewhere"
    assert found <= {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def test_resources_are_those_of_the_session(cluster):
    assert len(cluster.nodes) == 1
    assert cluster.cpus >= 4
    assert cluster.limits is None


def test_a_session_inside_a_session_uses_it_and_leaves_it_running(cluster):
    import ray

    with session(HowConfig()) as inner:
        assert inner.nodes == cluster.nodes
    assert ray.is_initialized()


@pytest.mark.usefixtures("cluster")
def test_the_token_stays_in_this_process_tree():
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert os.environ["RAY_AUTH_TOKEN"]


@pytest.mark.usefixtures("cluster")
def test_storage_only_this_process_sees_is_refused():
    with (
        pytest.raises(StorageError, match=r"not shared.*object store"),
        session(HowConfig(), Storage("memory://here-alone")),
    ):
        pass


def test_a_signal_after_a_session_interrupts_a_command_as_before_it():
    """Ray's core takes SIGTERM when it starts, and sets it to its default when it ends."""
    script = """
import os, signal
from orchestrator import interrupt
from orchestrator.cluster.session import session
from orchestrator.config import HowConfig
with interrupt.handled():
    try:
        with session(HowConfig(object_store_gb=0.2)):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        print("not stopped")
    except interrupt.Interrupted:
        print("interrupted", interrupt.exit_code())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "interrupted 143"), done.stderr[-2000:]


def test_object_store_is_bounded():
    assert 0.0 < object_store_gb(HowConfig()) <= 8.0
    assert object_store_gb(HowConfig(), 1.0) == 0.2
    assert object_store_gb(HowConfig(object_store_gb=3.0), 1.0) == 3.0


def test_no_cluster_at_the_address_is_a_resource_error():
    script = (
        "from orchestrator.cluster.session import session\nfrom orchestrator.config import HowConfig\n"
        "with session(HowConfig(address='127.0.0.1:9')): pass"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert ResourceError.__name__ in done.stderr


DRIVER = """
import time
from orchestrator.cluster.session import session
from orchestrator.config import HowConfig
from orchestrator.store.scratch import scratch_folder
print(scratch_folder())
with session(HowConfig(object_store_gb=0.2)):
    import ray
    class Worker:
        def here(self): return scratch_folder()
    worker = ray.remote(num_cpus=0)(Worker).remote()
    print(ray.get(worker.here.remote()), flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_driver_s_death_stops_ray_and_everything_it_started_and_its_folders_go(number: signal.Signals):
    folder = tempfile.mkdtemp(prefix="v", dir="/tmp")  # sockets of Ray lie in it: a short name
    environment = {**os.environ, "TMPDIR": folder, "RAY_TMPDIR": folder}
    environment.pop(SHARED, None)  # of a session around this test
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment
    )
    assert process.stdout is not None
    own, shared = process.stdout.readline().strip(), process.stdout.readline().strip()
    assert len(processes_of(folder)) > 5
    assert {str(path) for path in Path(folder).iterdir()} == {own, shared}, "workers use the session's"
    process.send_signal(number)
    assert process.wait(30) != 0
    ended = time.monotonic()
    while (_session_members(process.pid) or processes_of(folder) or list(Path(folder).iterdir())) and (
        time.monotonic() - ended < 30
    ):
        time.sleep(0.1)
    assert not _session_members(process.pid)
    assert not processes_of(folder)
    assert not list(Path(folder).iterdir())
    print(f"{number.name}: nothing left after {time.monotonic() - ended:.1f} s")
    Path(folder).rmdir()


def _session_members(leader: int) -> list[int]:
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            members.append(int(stat.parent.name))
    return members


def test_a_missing_folder_for_ray_is_named_before_anything_starts(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "nowhere"))
    with pytest.raises(ResourceError, match=r"RAY_TMPDIR=.*nowhere"), _guarded():
        raise AssertionError("started")
