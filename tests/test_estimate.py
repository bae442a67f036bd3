"""What a plan says of time and memory: orders of magnitude that follow from arithmetic, and refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cluster.placement import Pool
from orchestrator.models.planning import footprint
from orchestrator.study.estimate import Machine, memory_problems, probe_placement, stage_seconds, worker_gb
from orchestrator.study.plan import make_plan
from tests.conftest import tiny_study

LAPTOP = Machine(2, 25.0, 0, "", None, 1e11)
GPU = Machine(16, 128.0, 1, "H100", 80.0, 3e14)
TRIALS = Pool("fine-tuning trials", 1, 1.0)


def test_seven_billion_parameters_in_float32_do_not_fit_25_gb(tmp_path: Path) -> None:
    run = tiny_study(tmp_path, "model.name=llava-1.5-7b").points[0].run
    (said,) = memory_problems([run], [TRIALS], LAPTOP)
    assert "llava-1.5-7b" in said
    assert "25.0 GB" in said
    assert 28 < worker_gb(run, on_gpu=False) < 32
    assert memory_problems([run], [Pool("trials", 1, 1.0, 1.0)], GPU) == []


def test_workers_beside_each_other_need_the_sum_and_the_number_that_fits_is_said(tmp_path: Path) -> None:
    run = tiny_study(tmp_path, "model.name=llava-1.5-7b", "model.dtype=bfloat16").points[0].run
    assert memory_problems([run], [TRIALS], LAPTOP) == []
    (said,) = memory_problems([run], [Pool("fine-tuning trials", 2, 1.0)], LAPTOP)
    assert "how.concurrent_trials=1" in said


@pytest.mark.parametrize(("stage", "key"), [("capture", "data.n_images"), ("finetune", "finetune.n_steps")])
def test_time_grows_with_the_work_and_shrinks_with_the_machine(tmp_path: Path, stage: str, key: str) -> None:
    few, many = (tiny_study(tmp_path, f"{key}={n}").points[0].run for n in (100, 1000))
    took = [stage_seconds(stage, run, run.data.n_images, footprint(run), LAPTOP) for run in (few, many)]  # type: ignore[arg-type]
    assert took[1] > 2 * took[0]
    assert stage_seconds(stage, many, 1000, footprint(many), GPU) < took[1]  # type: ignore[arg-type]


def test_a_plan_tells_axes_duration_and_totals(tmp_path: Path) -> None:
    plan = make_plan(tiny_study(tmp_path, "correlate.seed=0,1"))
    assert plan.axes == {"correlate.seed": [0, 1]}
    assert plan.points == 2
    assert plan.seconds == pytest.approx(15 + sum(stage.seconds or 0 for stage in plan.stages))
    assert plan.gpu_hours is not None


def test_a_plan_tells_where_probes_are_fitted_and_why(tmp_path: Path) -> None:
    plan = make_plan(tiny_study(tmp_path, stages=["capture", "probe"]))
    assert "reference-joint: processor cores (about" in plan.probes
    run = tiny_study(tmp_path, "model.name=llava-1.5-7b").points[0].run
    found, four = footprint(run), replace(GPU, cores=4)
    assert not probe_placement(run, 10, found, four).on_gpu  # a GPU's process takes longer to start than the fits
    assert probe_placement(run, 2000, found, four).on_gpu
    assert not probe_placement(run, 2000, found, LAPTOP).on_gpu
