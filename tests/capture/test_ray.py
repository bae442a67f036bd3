"""Ray adds nothing to the tables, and what goes wrong in an actor arrives as what it is."""

import pytest

from orchestrator.cluster.session import session
from orchestrator.config import HowConfig
from orchestrator.errors import ModelError, ResourceError, StorageError
from orchestrator.store.filesystem import Storage
from tests.capture.conftest import make_run
from tests.capture.faulty import FullDisk, NoModel
from tests.capture.test_pipeline import assert_equal, folder_run, run_simulated
from tests.capture.test_pipeline import folder as folder  # a fixture
from tests.points import run_capture

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def ray_session():
    with session(HowConfig(object_store_gb=0.3)):
        yield


def on_ray(**keys):
    return make_run(how__backend="ray", **keys)


def test_tables_equal_those_of_the_local_backend(tmp_path):
    local = run_capture(make_run(), Storage(str(tmp_path / "local")), quiet=True)
    ray = run_capture(on_ray(how__n_actors=2), Storage(str(tmp_path / "ray")), quiet=True)
    assert ray.digest == local.digest
    assert_equal(ray, local, rel_tol=1e-6)
    assert ray.summary()["first_shard_s"]["worker start"] > 0


def test_resume_on_another_number_of_actors_computes_only_what_is_missing(tmp_path):
    whole = run_simulated(make_run(), tmp_path / "whole")
    stage = run_simulated(on_ray(), tmp_path / "again")
    for name in ("_SUCCESS", "shards/00000.json", "shards/00002.json"):
        stage.store.fs.rm_file(stage.store.path(name))
    kept = stage.store.fs.modified(stage.store.path("layer_metrics/00001.parquet"))
    run_simulated(on_ray(how__n_actors=2), tmp_path / "again")
    assert stage.store.fs.modified(stage.store.path("layer_metrics/00001.parquet")) == kept
    assert_equal(stage, whole)


def test_broken_images_are_recorded_on_ray_too(tmp_path, folder):
    (folder / "3.png").write_bytes(b"not an image")
    run = folder_run(folder, 0.2)
    run = run.model_copy(update={"how": on_ray().how})
    stage = run_simulated(run, tmp_path / "out")
    assert stage.scan("rejected").collect()["index"].to_list() == [3]


def test_a_full_disk_in_an_actor_is_a_storage_error_here(tmp_path):
    with pytest.raises(StorageError, match="No space left"):
        run_simulated(on_ray(), tmp_path, FullDisk())


def test_a_model_that_does_not_load_is_named(tmp_path):
    with pytest.raises(ModelError, match="reference-joint cannot be loaded"):
        run_simulated(on_ray(), tmp_path, NoModel())


def test_more_actors_than_fit_are_refused_before_work(tmp_path):
    with pytest.raises(ResourceError, match=r"how\.n_actors"):
        run_simulated(on_ray(how__n_actors=64), tmp_path)
