"""What capture keeps is what probes read, scaled and missing shards included."""

import numpy as np
import pytest

from benchmarks.simulated import SimulatedWorker, Simulation
from orchestrator.capture.positions import to_float16
from orchestrator.capture.shard_job import Job
from orchestrator.capture.shard_result import ShardResult
from orchestrator.probes.features import Features
from orchestrator.store.filesystem import Storage
from tests.capture.conftest import make_run
from tests.capture.test_pipeline import folder as folder  # a fixture
from tests.capture.test_pipeline import folder_run, run_simulated
from tests.points import run_capture


class Large(Simulation):
    """The second shard's states are beyond float16."""

    def __call__(self, job: Job, threads: int | None) -> SimulatedWorker:
        return LargeWorker(job, self)


class LargeWorker(SimulatedWorker):
    def shard(self, images):
        result = super().shard(images)
        if images[0].index != 5:
            return result
        states = result.arrays["features/decoder"].astype(np.float32) * 1e6
        half, scales = to_float16(states)
        described = {"decoder": {**result.extra["features"]["decoder"], "scaled": True}}
        arrays = {"features/decoder": half, "feature_scales/decoder": scales}
        return ShardResult(result.tables, arrays, {"features": described}, result.n_images, result.n_rejected)


def test_scaled_shards_read_back_at_their_size(tmp_path):
    plain = Features(run_simulated(make_run(), tmp_path / "plain")).slice("decoder", 1)
    found = Features(run_simulated(make_run(), tmp_path / "large", Large())).slice("decoder", 1)
    expected = plain.astype(np.float32)
    expected[5:10] *= 1e6
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-3)


def test_a_shard_of_rejected_images_leaves_rows_and_features_aligned(tmp_path, folder):
    for k in range(5):
        (folder / f"{k}.png").unlink()
    run = folder_run(folder, 0.6)
    stage = run_capture(run, Storage(str(tmp_path / "out")), quiet=True)
    features = Features(stage)
    assert features.images["index"].to_list() == [5, 6, 7, 8, 9]
    assert len(features.slice("decoder", 0)) == 5


@pytest.mark.parametrize("layer", [0, 3])
def test_a_slice_is_the_layer_asked_for(tmp_path, layer):
    stage = run_simulated(make_run(), tmp_path)
    np.testing.assert_array_equal(
        Features(stage).slice("decoder", layer), np.concatenate([a[:, layer] for a in stage.arrays("features/decoder")])
    )
