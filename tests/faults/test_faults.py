"""What is lost when something breaks: nothing but the shards in its hands.

A cluster of three nodes on this machine. After every fault each image is there exactly once and the tables equal those
of an undisturbed run, or the run fails with the right error and the same call then finishes it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.simulated import Simulation
from orchestrator.config import RunConfig
from orchestrator.errors import StorageError
from orchestrator.store.filesystem import Storage
from orchestrator.store.stage_folder import Stage
from tests.capture.conftest import make_run
from tests.capture.test_pipeline import assert_equal, run_simulated
from tests.faults.workers import DiskFills, LittleMemory, SlowNode, Watched
from tests.points import capture_stage, run_capture

pytestmark = [pytest.mark.faults, pytest.mark.ray]

SECONDS, N_IMAGES, N_SHARDS = 0.04, 60, 12
NODE = {"num_cpus": 2, "object_store_memory": 100_000_000}


class Nodes:
    """The cluster, with as many worker nodes as a test finds missing put back before it."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 1})
        self.workers: list = []
        self.fill()

    def fill(self) -> None:
        while len(self.workers) < 2:
            self.add()

    def add(self) -> None:
        self.workers.append(self.cluster.add_node(**NODE, wait=True))

    def lose(self) -> None:
        self.cluster.remove_node(self.workers.pop(), allow_graceful=False)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    import ray

    nodes = Nodes()
    ray.init(address=nodes.cluster.address, namespace="vtsweep", log_to_driver=False, logging_level="error")
    assert len(ray.nodes()) == 3
    yield nodes
    ray.shutdown()
    nodes.cluster.shutdown()


@pytest.fixture
def nodes(cluster: Nodes) -> Nodes:
    cluster.fill()
    return cluster


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Stage:
    """The undisturbed run."""
    return run_simulated(make_run(data__n_images=N_IMAGES), tmp_path_factory.mktemp("whole"))


def on_cluster(n_actors: int = 2) -> RunConfig:
    return make_run(data__n_images=N_IMAGES, how__backend="ray", how__n_actors=n_actors)


def shards_of(run: RunConfig, storage: Path) -> Path:
    return Path(capture_stage(run, Storage(str(storage))).store.path("shards"))


def disturb(run: RunConfig, storage: Path, simulation: Simulation, after: int, fault: Callable[[], None]) -> Stage:
    """Run in a thread; once `after` shards are there, break something from this one."""
    with ThreadPoolExecutor(1) as runner:
        future: Future[Stage] = runner.submit(run_simulated, run, storage, simulation)
        shards = shards_of(run, storage)
        while len(list(shards.glob("*.json"))) < after and not future.done():
            time.sleep(0.01)
        assert not future.done(), "the fault comes before the end"
        fault()
        return future.result(240)


def check(stage: Stage, whole: Stage) -> None:
    assert_equal(stage, whole)
    images = stage.scan("images").collect()
    assert images["index"].to_list() == list(range(N_IMAGES)), "every image exactly once"
    assert stage.summary()["n_captured"] == N_IMAGES


def begun(folder: Path) -> list[str]:
    return (folder / "begun").read_text().split()


@pytest.mark.parametrize("after", [1, 6])
@pytest.mark.usefixtures("nodes")
def test_an_actor_killed_costs_the_shards_in_its_hands(whole, tmp_path, after):
    watched = tmp_path / "watched"
    watched.mkdir()
    killed: list[int] = []

    def kill() -> None:
        for file in watched.glob("*.pid"):
            os.kill(int(file.stem), signal.SIGKILL)
            killed.append(int(file.stem))
            return

    stage = disturb(on_cluster(), tmp_path / "out", Watched(SECONDS, folder=str(watched)), after, kill)
    check(stage, whole)
    assert len(killed) == 1
    assert len(list(watched.glob("*.pid"))) >= 2, "another process took its place"
    assert len(begun(watched)) <= N_SHARDS + 3


@pytest.mark.parametrize("after", [1, 6])
def test_a_node_lost_costs_the_shards_in_its_hands(nodes, whole, tmp_path, after):
    watched = tmp_path / "watched"
    watched.mkdir()
    simulation = Watched(SECONDS, folder=str(watched))
    stage = disturb(on_cluster(), tmp_path / "out", simulation, after, nodes.lose)
    check(stage, whole)
    assert len(begun(watched)) <= 2 * N_SHARDS


def test_a_node_lost_and_another_added(nodes, whole, tmp_path):
    def replace() -> None:
        nodes.lose()
        nodes.add()

    check(disturb(on_cluster(), tmp_path / "out", Simulation(SECONDS), 3, replace), whole)


DRIVER = """
import sys
from pathlib import Path
from benchmarks.simulated import Simulation
from tests.capture.test_pipeline import run_simulated
from tests.faults.test_faults import SECONDS, on_cluster
run_simulated(on_cluster(), Path(sys.argv[1]), Simulation(SECONDS))
"""


@pytest.mark.parametrize("after", [1, 6])
def test_a_killed_driver_resumes_without_doing_finished_shards_again(nodes, whole, tmp_path, after):
    run, out = on_cluster(), tmp_path / "out"
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(out)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "RAY_ADDRESS": nodes.cluster.address},
    )
    shards = shards_of(run, out)
    while len(list(shards.glob("*.json"))) < after and driver.poll() is None:
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    time.sleep(2.0)  # its actors may still write what they hold
    finished = {file.name: file.stat().st_mtime_ns for file in shards.glob("*.json")}
    assert after <= len(finished) < N_SHARDS
    watched = tmp_path / "watched"
    watched.mkdir()
    check(run_simulated(run, out, Watched(SECONDS, folder=str(watched))), whole)
    assert all((shards / name).stat().st_mtime_ns == when for name, when in finished.items())
    assert len(begun(watched)) == N_SHARDS - len(finished)


@pytest.mark.parametrize("room", [0, 5])
@pytest.mark.usefixtures("nodes")
def test_a_full_disk_fails_clearly_and_resumes_when_there_is_room(whole, tmp_path, room):
    out = tmp_path / "out"
    with pytest.raises(StorageError, match="No space left"):
        run_simulated(on_cluster(), out, DiskFills(room=room))
    shards = shards_of(on_cluster(), out)
    assert len(list(shards.glob("*.json"))) >= room
    assert not (shards.parent / "_SUCCESS").exists()
    check(run_simulated(on_cluster(), out), whole)


@pytest.mark.usefixtures("nodes")
def test_a_corrupt_shard_is_done_again(whole, tmp_path):
    stage = run_simulated(on_cluster(), tmp_path)
    root = Path(stage.store.path(""))
    (root / "_SUCCESS").unlink()
    for victim in ("images/00003.parquet", "features/decoder/00007.npy", "shards/00011.json"):
        data = (root / victim).read_bytes()
        (root / victim).write_bytes(data[: len(data) // 2])
    (root / "layer_metrics/00005.parquet").unlink()
    watched = tmp_path / "watched"
    watched.mkdir()
    check(run_simulated(on_cluster(), tmp_path, Watched(folder=str(watched))), whole)
    assert sorted(map(int, begun(watched))) == [3, 5, 7, 11]


@pytest.mark.usefixtures("nodes")
def test_a_slow_node_does_not_hold_up_the_others(whole, tmp_path):
    watched = tmp_path / "watched"
    watched.mkdir()
    simulation = SlowNode(SECONDS, folder=str(watched))
    check(run_simulated(on_cluster(), tmp_path / "out", simulation), whole)
    by_the_slow_one = (watched / f"begun.{(watched / 'slow').read_text()}").read_text().split()
    assert len(by_the_slow_one) < 0.75 * N_SHARDS
    assert len(begun(watched)) == N_SHARDS


@pytest.mark.usefixtures("nodes")
def test_memory_that_runs_out_on_a_gpu_halves_batches_and_loses_nothing(tmp_path):
    local = run_capture(make_run(), Storage(str(tmp_path / "local")), quiet=True)
    run = make_run(how__backend="ray", how__n_actors=1, how__batch_size=8)
    stage = run_capture(run, Storage(str(tmp_path / "ray")), quiet=True, make_worker=LittleMemory())
    assert stage.scan("rejected").collect().is_empty()
    one, two = (s.scan("layer_metrics").collect() for s in (stage, local))
    from polars.testing import assert_frame_equal

    assert_frame_equal(one, two, rel_tol=2e-4, abs_tol=1e-5)


@pytest.mark.usefixtures("nodes")
def test_poison_images_are_recorded_and_the_rest_is_there(tmp_path):
    from PIL import Image

    root = tmp_path / "images"
    root.mkdir()
    for k in range(20):
        Image.new("RGB", (32, 32), (10 * k, 40, 60)).save(root / f"{k}.png")
    (root / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 100)
    (root / "8.png").write_bytes((root / "8.png").read_bytes()[:40])
    (root / "13.png").unlink()
    (root / "attributes.csv").write_text("file,number\n" + "".join(f"{k}.png,{k}\n" for k in range(20)))
    run = make_run(data={"source": "folder", "root": str(root), "max_rejected_fraction": 0.2})
    run = run.model_copy(update={"how": on_cluster().how})
    stage = run_simulated(run, tmp_path / "out")
    assert stage.scan("rejected").collect().sort("index")["index"].to_list() == [3, 8, 13]
    assert stage.scan("images").collect().height == 17


@pytest.mark.usefixtures("nodes")
def test_a_tracking_server_that_is_down_loses_no_results_and_gets_its_runs_later_once(tmp_path):
    from orchestrator.config import TrackConfig
    from orchestrator.study.run import run_study
    from orchestrator.tracking.entries import track_studies
    from tests.conftest import tiny_study

    sweep = tiny_study(tmp_path, "how.backend=ray", "track.uri=http://127.0.0.1:9")
    with pytest.warns(UserWarning, match="vtsweep track"):
        run_study(sweep, quiet=True)
    storage = Storage(str(tmp_path))
    stage = capture_stage(sweep.points[0].run, storage)
    assert stage.is_done()
    assert stage.scan("images").collect().height == 12
    sent, failed = track_studies(storage, TrackConfig())
    assert sent >= 2
    assert failed == 0
    assert track_studies(storage, TrackConfig()) == (0, 0)
