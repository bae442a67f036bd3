"""A cluster that starts with its head alone, and whose autoscaler really starts nodes: a study gets workers with GPUs.

Ray's own provider for tests starts raylets on this machine; their GPUs are a number, so that models run on cores. The
head is started here and ended by its process group: Ray's `AutoscalingCluster` ends every Ray of the machine first.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.store.scratch import clean_up
from orchestrator.store.study_record import Study
from orchestrator.study.run import run_study
from tests.conftest import tiny_study

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.timeout(900), pytest.mark.slow]

ROOT = Path(__file__).parents[2]
CLUSTER = {
    "cluster_name": "fake",
    "max_workers": 2,
    "idle_timeout_minutes": 10,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "gpu": {
            "resources": {"CPU": 2, "GPU": 1, "object_store_memory": 100_000_000},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        },
    },
    "file_mounts": {},
    "auth": {},
    "cluster_synced_files": [],
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
}
"""As `cluster.yaml`: nothing runs on the head, and workers have a GPU."""
ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
    "PYTHONPATH": str(ROOT),
    "RAY_AUTH_MODE": "disabled",
    "RAY_FAKE_CLUSTER": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Address of a head without a CPU or a worker, whose autoscaler may add two nodes."""
    for last in (False, False, True):  # a busy machine may take longer than Ray waits
        where, log, head = start_head(tmp_path)
        temporary = Path("/tmp") / f"vts-auto-{where.rpartition(':')[2]}"
        try:
            deadline = time.monotonic() + 200
            while "Ray runtime started" not in log.read_text() and head.poll() is None and time.monotonic() < deadline:
                time.sleep(0.5)
            if "Ray runtime started" in log.read_text():
                yield where
                return
            assert not last, f"the head did not start:\n{log.read_text()}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(head.pid, signal.SIGTERM)
            clean_up(str(temporary), patience=10.0)


def start_head(folder: Path) -> tuple[str, Path, subprocess.Popen[bytes]]:
    """Address, log and process of a head in a group of processes of its own."""
    from ray._private.services import get_node_ip_address

    port = free_port()
    where = f"{get_node_ip_address()}:{port}"
    module = "ray.autoscaler._private.fake_multi_node.node_provider"
    provider = {"type": "fake_multinode", "module": module, "gcs_address": where}
    file, log = folder / "cluster.json", folder / f"{port}.log"
    file.write_text(json.dumps({**CLUSTER, "provider": provider}))
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=0", "--num-gpus=0"]
    command += [f"--autoscaling-config={file}", f"--port={port}", f"--temp-dir=/tmp/vts-auto-{port}"]
    command += ["--include-dashboard=false", "--object-store-memory=100000000", "--disable-usage-stats"]
    with log.open("w") as words:
        head = subprocess.Popen(command, env=ENVIRONMENT, stdout=words, stderr=words, start_new_session=True)
    return where, log, head


def test_a_study_on_a_cluster_of_a_head_alone_gets_workers_with_gpus(address: str, tmp_path: Path) -> None:
    settings = ["capture.layers=[0,3]", "capture.metrics=[gini]", "track.enabled=false"]
    how = {"backend": "ray", "address": address, "batch_size": 6, "shard_size": 3, "torch_threads": 1}
    data = tiny_study(tmp_path / "local").points[0].run.data.model_dump(mode="json")
    base = {"model": {"name": "reference-joint"}, "data": data, "how": how}
    sweep = tmp_path / "sweep.json"
    sweep.write_text(json.dumps({"name": "tiny", "stages": ["capture"], "base": base}))
    run = subprocess.run(
        [sys.executable, "-m", "orchestrator", "run", str(sweep), f"storage={tmp_path / 'results'}", *settings],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=600, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    look = "import ray, sys, json; ray.init(sys.argv[1], logging_level='error', log_to_driver=False); "
    look += "print(json.dumps([n['Resources'].get('GPU', 0) for n in ray.nodes() if n['Alive']]))"
    nodes = subprocess.run(
        [sys.executable, "-c", look, address], env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    gpus = json.loads(nodes.stdout.splitlines()[-1])
    assert 1.0 in gpus, "a node with a GPU was started"
    assert len(gpus) >= 2, "and the head did nothing"
    local, _ = run_study(tiny_study(tmp_path / "local", *settings, "model.dtype=bfloat16"), quiet=True)
    study, keys = Study.load(str(tmp_path / "results" / "studies" / "tiny")), ["image_id", "group", "layer"]
    captured, expected = (
        one.layer_metrics.sort(keys).collect()["gini"].to_list() for one in (study, local)
    )  # in the precision of GPUs, which the cluster will have
    assert captured == pytest.approx(expected, rel=1e-5)
