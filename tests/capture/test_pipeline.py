"""The stage: what is done once is not done again, and how it was done leaves no trace in the tables."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from benchmarks.simulated import Simulation
from orchestrator.capture import capture_stage as capturing
from orchestrator.capture.first_shard import PARTS, FirstShard
from orchestrator.capture.loading import load_shard
from orchestrator.capture.shard_job import Job, ShardStats, Tally
from orchestrator.cli.closing import first_shard_line
from orchestrator.errors import ConfigError, StageError
from orchestrator.models.planning import METRIC_COLUMNS, footprint
from orchestrator.store.filesystem import Storage
from orchestrator.store.stage_folder import Stage
from tests.capture.conftest import make_run
from tests.points import capture_stage, run_capture

TABLES = ("images", "layer_metrics", "rejected")


def run_simulated(run, storage: Path, simulation: Simulation | None = None) -> Stage:
    return run_capture(run, Storage(str(storage)), quiet=True, make_worker=simulation or Simulation())


def assert_equal(one: Stage, two: Stage, **tolerance: float) -> None:
    for name in TABLES:
        assert_frame_equal(one.scan(name).collect(), two.scan(name).collect(), **tolerance)
    for a, b in zip(one.arrays("features/decoder"), two.arrays("features/decoder"), strict=True):
        np.testing.assert_array_equal(a, b)


def modified(stage: Stage) -> dict[str, int]:
    root = Path(stage.store.path(""))
    return {str(file.relative_to(root)): file.stat().st_mtime_ns for file in root.rglob("*") if file.is_file()}


def test_the_rejected_share_is_counted_exactly(tmp_path):
    run = make_run(data__max_rejected_fraction=0.29)
    job = Job(run, capture_stage(run, Storage(str(tmp_path))), 100, 10, {}, Simulation())
    assert Tally(job).limit == 29


def test_a_finished_stage_is_not_touched(tmp_path):
    stage = run_simulated(make_run(), tmp_path)
    before = modified(stage)
    assert run_simulated(make_run(), tmp_path).digest == stage.digest
    assert modified(stage) == before


@pytest.mark.parametrize("model", ["reference-joint", "reference-cross"])
def test_a_plan_s_bytes_are_those_that_are_written(tmp_path, model):
    """Features and maps to the byte (the prompt fills all kept text positions), all files within a fifth."""
    run = make_run(model, capture__prompt="how many red circles are there above or below ?", data__n_images=48)
    run = run.model_copy(update={"how": run.how.model_copy(update={"shard_size": 48})})
    stage = run_capture(run, Storage(str(tmp_path)), quiet=True)
    arrays = sum(shard.nbytes for name in stage.finished_shards()[0]["arrays"] for shard in stage.arrays(name))
    rows = stage.scan("layer_metrics").collect().height
    planned = 48 * footprint(run).bytes_per_image
    assert planned == arrays + 4 * METRIC_COLUMNS * rows
    written = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    assert planned == pytest.approx(written, rel=0.2)


def test_every_image_is_there_once_and_in_order(tmp_path):
    stage = run_capture(make_run(), Storage(str(tmp_path)), quiet=True)
    images = stage.scan("images").collect()
    assert images["index"].to_list() == list(range(12))
    assert images["image_id"].n_unique() == 12
    metrics = stage.scan("layer_metrics").collect()
    assert metrics.select("image_id", "tap", "layer", "group").is_unique().all()
    assert set(metrics["image_id"]) == set(images["image_id"])
    assert sum(len(part) for part in stage.arrays("features/decoder")) == 12
    assert stage.summary()["n_captured"] == 12


def test_time_to_the_first_shard_is_recorded_with_where_it_went(tmp_path):
    stage = run_simulated(make_run(), tmp_path)
    seconds = stage.summary()["first_shard_s"]
    assert seconds.keys() == {*PARTS, "total"}
    assert min(seconds.values()) >= 0
    assert sum(seconds[part] for part in PARTS) == pytest.approx(seconds["total"], abs=0.05)


def test_images_of_the_first_shard_are_read_while_the_model_is_loaded(tmp_path, monkeypatch):
    read = threading.Event()

    def load(*args):
        read.set()
        return load_shard(*args)

    def make_worker(job, threads):
        assert read.wait(20), "no image was asked for before the worker was made"
        return Simulation()(job, threads)

    monkeypatch.setattr(capturing, "load_shard", load)
    run_simulated(make_run(), tmp_path, make_worker)


def test_the_first_shard_is_that_of_the_worker_that_was_first(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 131.0)
    first = FirstShard(command=100.0, stage=106.5, asked=112.0)
    first.finished(ShardStats(3, 8, 0, worker_started=116.0, worker_ready=121.0))
    first.finished(ShardStats(0, 8, 0, worker_started=1.0, worker_ready=2.0))
    assert first.seconds == dict(zip((*PARTS, "total"), (6.5, 5.5, 4.0, 5.0, 10.0, 31.0), strict=True))
    line = "First shard of a 31s after the command: before the stage 6.5s, ray and preparation 5.5s, worker start 4.0s"
    assert first_shard_line("a", first.seconds).startswith(line)


def test_resume_writes_no_finished_shard_twice(tmp_path):
    whole = run_simulated(make_run(), tmp_path / "whole")
    stage = run_simulated(make_run(), tmp_path / "resumed")
    stage.store.fs.rm_file(stage.store.path("_SUCCESS"))
    stage.store.fs.rm_file(stage.store.path("shards/00001.json"))
    before = modified(stage)
    run_simulated(make_run(), tmp_path / "resumed")
    after = modified(stage)
    rewritten = {name for name in before if after[name] != before[name]}
    assert rewritten
    assert all("00001" in name for name in rewritten)
    assert_equal(stage, whole)


@pytest.mark.parametrize("victim", ["layer_metrics/00002.parquet", "features/decoder/00002.npy", "shards/00002.json"])
def test_a_shard_cut_short_is_done_again(tmp_path, victim):
    whole = run_simulated(make_run(), tmp_path / "whole")
    stage = run_simulated(make_run(), tmp_path / "cut")
    stage.store.fs.rm_file(stage.store.path("_SUCCESS"))
    file = Path(stage.store.path(victim))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert_equal(run_simulated(make_run(), tmp_path / "cut"), whole)


def test_resume_keeps_the_first_run_s_shards(tmp_path):
    first = run_simulated(make_run(), tmp_path)
    first.store.fs.rm_file(first.store.path("_SUCCESS"))
    first.store.fs.rm_file(first.store.path("shards/00000.json"))
    again = run_simulated(make_run(how__shard_size=3, how__batch_size=2), tmp_path)
    assert again.digest == first.digest
    assert again.summary()["shard_size"] == 5
    assert again.scan("images").collect()["index"].to_list() == list(range(12))


def test_how_work_is_done_does_not_change_the_digest(tmp_path):
    storage = Storage(str(tmp_path))
    plain = capture_stage(make_run(), storage).digest
    assert capture_stage(make_run(how__batch_size=1, how__n_actors=3), storage).digest == plain
    assert capture_stage(make_run(data__max_rejected_fraction=0.5), storage).digest == plain
    changes = {"capture__seed": 1, "capture__prompt": "what is this ?", "data__seed": 1, "model__dtype": "bfloat16"}
    digests = {capture_stage(make_run(**{key: value}), storage).digest for key, value in changes.items()}
    assert len(digests | {plain}) == len(changes) + 1


def test_naming_all_metrics_is_the_default(tmp_path):
    from orchestrator.compression.registry import default_names

    storage = Storage(str(tmp_path))
    named = capture_stage(make_run(capture__metrics=list(default_names())), storage)
    assert named.digest == capture_stage(make_run(), storage).digest
    with pytest.raises(ConfigError, match="Did you mean 'gini'"):
        capture_stage(make_run(capture__metrics=["ginny"]), storage)


# ---------------------------------------------------------------- rejected images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from PIL import Image

    root = tmp_path / "images"
    root.mkdir()
    for k in range(10):
        Image.new("RGB", (32, 32), (20 * k, 40, 60)).save(root / f"{k}.png")
    rows = "".join(f"{k}.png,{k}\n" for k in range(10))
    (root / "attributes.csv").write_text("file,number\n" + rows)
    return root


def folder_run(root: Path, fraction: float):
    data = {"source": "folder", "root": str(root), "max_rejected_fraction": fraction}
    return make_run(data=data)


def test_broken_images_are_recorded_and_the_rest_goes_on(tmp_path, folder):
    (folder / "3.png").write_bytes(b"not an image")
    (folder / "7.png").unlink()
    stage = run_simulated(folder_run(folder, 0.2), tmp_path / "out")
    rejected = stage.scan("rejected").collect()
    assert rejected["index"].to_list() == [3, 7]
    assert "not an image" in rejected["reason"][0]
    assert "missing file" in rejected["reason"][1]
    assert stage.scan("images").collect().height == 8
    assert stage.summary()["n_rejected"] == 2


def test_too_many_broken_images_fail_the_stage_with_a_table_of_reasons(tmp_path, folder):
    for k in (3, 4, 5):
        (folder / f"{k}.png").unlink()
    with pytest.raises(StageError, match=r"3 of 10 images are rejected.*allows 2(.|\n)*3\.png: missing file"):
        run_simulated(folder_run(folder, 0.2), tmp_path / "out")


def test_mended_images_are_taken_up_by_the_same_command(tmp_path, folder):
    kept = (folder / "3.png").read_bytes()
    (folder / "3.png").unlink()
    with pytest.raises(StageError):
        run_simulated(folder_run(folder, 0.05), tmp_path / "out")
    (folder / "3.png").write_bytes(kept)
    stage = run_simulated(folder_run(folder, 0.05), tmp_path / "out")
    assert stage.scan("images").collect().height == 10
    assert stage.scan("rejected").collect().is_empty()


# ---------------------------------------------------------------- killed

KILLED = """
import sys
from pathlib import Path
from benchmarks.simulated import Simulation
from tests.capture.conftest import make_run
from tests.capture.test_pipeline import run_simulated
run_simulated(make_run(data__n_images=60), Path(sys.argv[1]), Simulation(seconds=0.05))
"""


def test_a_killed_process_resumes_to_equal_tables(tmp_path):
    run = make_run(data__n_images=60)
    whole = run_simulated(run, tmp_path / "whole")
    victim = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "killed")], cwd=Path(__file__).parents[2])
    shards = Path(capture_stage(run, Storage(str(tmp_path / "killed"))).store.path("shards"))
    deadline = time.monotonic() + 120
    while len(list(shards.glob("*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    finished = {file.name: file.stat().st_mtime_ns for file in shards.glob("*.json")}
    assert 3 <= len(finished) < 12
    stage = run_simulated(run, tmp_path / "killed")
    assert_equal(stage, whole)
    assert all((shards / name).stat().st_mtime_ns == when for name, when in finished.items())


def test_missing_values_keep_their_column_type(tmp_path):
    stage = run_capture(make_run(data__n_objects=[1, 1], data__n_images=6), Storage(str(tmp_path)), quiet=True)
    assert stage.scan("images").collect_schema()["nearest_distance"] == pl.Float64


def test_an_actor_divides_the_cores_of_its_own_node(monkeypatch):
    """Counted where it runs: a cluster's head, on which the driver runs, is often its smallest node."""
    ray = pytest.importorskip("orchestrator.capture.ray")
    given: list[int | None] = []
    job = SimpleNamespace(run=make_run(how__torch_threads=None), make_worker=lambda _, threads: given.append(threads))
    monkeypatch.setattr(ray, "gpus_of_this_node", lambda: 8.0)
    for cores, n_beside, gpus in ((64, 2, 0.0), (2, 2, 0.0), (2, 4, 0.0), (64, 1, 1.0), (64, 1, 0.5), (64, 1, 2.0)):
        monkeypatch.setattr(ray, "n_cores", lambda cores=cores: cores)
        ray.CaptureActor(job, n_beside, gpus)
    assert given == [32, 1, 1, 8, 4, 16]
    job.run = make_run(how__torch_threads=3)
    ray.CaptureActor(job, 2, 0.0)
    assert given[-1] == 3
