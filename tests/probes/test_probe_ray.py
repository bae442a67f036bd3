"""Blocks on Ray: by actors that keep their process, and by tasks, with the same table."""

from __future__ import annotations

from pathlib import Path

import pytest
from polars.testing import assert_frame_equal

from orchestrator.config import HowConfig
from orchestrator.store.filesystem import Storage
from tests.points import run_probe_stage
from tests.probes.test_probe_stage import make_capture, make_run

pytestmark = pytest.mark.ray


def test_one_actor_fits_all_blocks_that_tasks_fit_and_its_table_is_theirs(tmp_path: Path) -> None:
    import ray

    # what Ray counts as a GPU: the workers find none and fit on a processor, as the table shows
    ray.init(num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=10**8)
    try:
        tables = []
        for name, gpus in (("tasks", 0.0), ("actors", 1.0)):
            storage = Storage(str(tmp_path / name))
            run = make_run().model_copy(update={"how": HowConfig(gpus_per_actor=gpus)})
            stage = run_probe_stage(run, storage, make_capture(storage), quiet=True)
            tables.append(stage.scan("probes").collect())
    finally:
        ray.shutdown()
    assert_frame_equal(*tables)
