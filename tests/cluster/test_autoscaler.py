"""A cluster that starts without a GPU and whose autoscaler really starts nodes: workers wait for them and get GPUs.

Ray's own fake provider starts raylets on this machine; their GPUs are a number, so that models run on cores.
`AutoscalingCluster` of Ray is not used: it ends every other Ray of the machine first.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.simulated import SimulatedWorker, Simulation
from orchestrator.capture.loading import Loaded
from orchestrator.capture.shard_job import Job
from orchestrator.capture.shard_result import ShardResult
from orchestrator.cluster.placement import capture_pool, place
from orchestrator.cluster.session import session
from orchestrator.config import HowConfig
from orchestrator.finetune.ray.trials import trial_pool
from tests.capture.conftest import make_run
from tests.capture.test_pipeline import assert_equal, run_simulated

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.timeout(600)]

CLUSTER = {
    "cluster_name": "fake",
    "max_workers": 2,
    "idle_timeout_minutes": 5,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 0},
        "gpu": {
            "resources": {"CPU": 2, "GPU": 1, "object_store_memory": 100_000_000},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        },
    },
    "file_mounts": {},
    "cluster_synced_files": [],
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
    "auth": {},
}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    from ray._private.services import get_node_ip_address

    folder, host = tmp_path_factory.mktemp("autoscaler"), get_node_ip_address()
    provider = {
        "type": "fake_multinode",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider",
        "gcs_address": f"{host}:{port}",
    }
    (folder / "cluster.json").write_text(json.dumps({**CLUSTER, "provider": provider}))
    temporary = f"/tmp/vts-auto-{port}"
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=2", "--num-gpus=0"]
    command += [f"--autoscaling-config={folder / 'cluster.json'}", f"--port={port}"]
    command += [f"--temp-dir={temporary}", "--include-dashboard=false", "--object-store-memory=200000000"]
    command += ["--disable-usage-stats"]
    environment = {**os.environ, "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    environment.pop("RAY_ADDRESS", None)
    with (folder / "log").open("w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + 200
    while "Ray runtime started" not in (folder / "log").read_text():
        if head.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"the head did not start:\n{(folder / 'log').read_text()}")
        time.sleep(0.5)
    yield f"{host}:{port}"
    from orchestrator.store.scratch import clean_up

    os.killpg(head.pid, signal.SIGTERM)
    clean_up(temporary, patience=5.0)


@dataclass(frozen=True)
class Placed(Simulation):
    """Leaves in `folder` which GPUs each worker holds."""

    folder: str = ""

    def __call__(self, job: Job, threads: int | None) -> SimulatedWorker:
        import ray

        (Path(self.folder) / f"{os.getpid()}.gpus").write_text(json.dumps(ray.get_gpu_ids()))
        return SlowWorker(job, self)


class SlowWorker(SimulatedWorker):
    def shard(self, images: Sequence[Loaded]) -> ShardResult:
        time.sleep(0.5)
        return super().shard(images)


def test_a_cluster_that_starts_at_zero_gpus_gets_gpu_workers(address: str, tmp_path: Path) -> None:
    how = HowConfig(backend="ray", address=address)
    with session(how) as cluster:
        assert [node.gpus for node in cluster.nodes] == [0.0]
        assert cluster.limits is not None
        assert cluster.limits["GPU"] == 2.0
        for pool in (
            capture_pool(how, cluster.nodes, cluster.limits),
            place("ablation actors", how, cluster.nodes, cluster.limits, otherwise=1),
            trial_pool([make_run()], 2, cluster.gpus, {})[1],
        ):
            assert pool.gpus == 1.0, pool
            cluster.check([pool])
    folder = tmp_path / "placed"
    folder.mkdir()
    run = make_run(data__n_images=60, how__backend="ray", how__address=address)
    stage = run_simulated(run, tmp_path / "out", Placed(folder=str(folder)))
    held = [json.loads(file.read_text()) for file in folder.glob("*.gpus")]
    assert held
    assert all(len(gpus) == 1 for gpus in held), "every worker has a GPU of its own"
    assert_equal(stage, run_simulated(make_run(data__n_images=60), tmp_path / "local"))
