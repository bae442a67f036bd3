"""Trials around Ray Tune: equal to the plain loop, robust against killed trials and drivers, fair pruning."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from orchestrator.ablate import runner
from orchestrator.config import HowConfig, RunConfig, SearchAxis
from orchestrator.config.search_space import draw, sampled
from orchestrator.errors import ConfigError, ResourceError, StageError
from orchestrator.finetune import worker
from orchestrator.finetune.ray.trials import plan_resources
from orchestrator.store.filesystem import Storage
from tests.points import baseline_stage, run_trials, trial_point, trial_stage

MakeRun = Callable[..., RunConfig]
ROOT = Path(__file__).parents[2]
TOGETHER = {"backend": "ray", "processes_per_trial": 2}


def rows(runs: list[RunConfig], storage: Storage) -> list[dict[str, Any]]:
    found = [trial_stage(run, storage).scan("trials").collect().row(0, named=True) for run in runs]
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in found]


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return set(a) == set(b) and all(a[k] == b[k] or (a[k] != a[k] and b[k] != b[k]) for k in a)


def test_room_is_shared_by_trials_first() -> None:
    assert plan_resources(HowConfig(), 2, 0).n_trials == 2
    assert plan_resources(HowConfig(), 2, 0).threads == 1
    assert plan_resources(HowConfig(torch_threads=2), 8, 0).n_trials == 4
    assert plan_resources(HowConfig(concurrent_trials=1), 8, 0).threads == 8
    gpu = plan_resources(HowConfig(), 16, 4)
    assert (gpu.n_trials, gpu.gpus) == (4, 1.0)
    assert plan_resources(HowConfig(gpus_per_trial=0.5), 16, 4).n_trials == 8
    assert plan_resources(HowConfig(processes_per_trial=2), 16, 4).n_trials == 2
    assert plan_resources(HowConfig(processes_per_trial=2), 8, 0).threads == 1


@pytest.mark.parametrize("threads", [1, 500])
def test_a_worker_takes_no_more_threads_than_its_node_has_cores(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """A driver divides the cores of all nodes: 640 of ten nodes are 500 threads for the only trial."""
    taken: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    for module in (worker, runner):
        monkeypatch.setattr(module, "n_cores", lambda: 64)
        monkeypatch.setattr(module, "load_adapter", lambda *_: None)
    monkeypatch.setattr(worker, "_WORKERS", {})
    run = make_run(how={"torch_threads": threads})
    worker.worker_for(trial_point(run, Storage(str(tmp_path))))
    runner.load_model(run)
    assert taken == [min(threads, 64)] * 2


def test_samples_lie_in_their_space_and_are_validated(make_run: MakeRun) -> None:
    rng = np.random.default_rng(0)
    axis = SearchAxis(kind="loguniform", low=1e-5, high=1e-2)
    values = [draw(axis, rng) for _ in range(200)]
    assert 1e-5 <= min(values) < 1e-4
    assert 1e-3 < max(values) <= 1e-2
    assert {draw(SearchAxis(kind="choice", values=("a", "b")), rng) for _ in range(30)} == {"a", "b"}
    assert {draw(SearchAxis(kind="randint", low=1, high=4), rng) for _ in range(60)} == {1, 2, 3}
    run = sampled(make_run(), {"finetune.language.rank": 2})
    assert run.finetune.language.rank == 2
    with pytest.raises(ConfigError, match="rank"):
        sampled(make_run(), {"finetune.language.rank": 2.5})


def test_a_failed_trial_does_not_stop_the_others(make_run: MakeRun, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    diverging = make_run(language={"rank": 4, "learning_rate": 1e30}, max_grad_norm=1e30, warmup_share=0.0, seed=9)
    runs = [diverging, make_run(complexity_ratio=0.0)]
    with pytest.raises(StageError, match=r"1 of 2 trials failed(.|\n)*seed=9(.|\n)*diverged"):
        run_trials(runs, storage, quiet=True)
    assert trial_stage(runs[1], storage).is_done()


def test_a_search_tries_its_samples_at_every_point(make_run: MakeRun, tmp_path: Path) -> None:
    points = [make_run(complexity_ratio=r, search_trials=2, n_steps=1) for r in (0.0, 1.0)]
    space = {"finetune.language.learning_rate": SearchAxis(kind="loguniform", low=1e-4, high=1e-2)}
    storage = Storage(str(tmp_path))
    done = run_trials(points, storage, search=space, quiet=True)
    assert sorted(run.finetune.complexity_ratio for run in done) == [0.0, 0.0, 1.0, 1.0]
    assert len({run.finetune.language.learning_rate for run in done}) == 4
    assert all(trial_stage(run, storage).is_done() for run in done)

    base, trial = baseline_stage(points[0], storage), trial_stage(done[0], storage)
    answers, written = base.scan("answers").collect(), Path(trial.store.path("_SUCCESS")).stat().st_mtime_ns
    base.store.remove("_SUCCESS")  # as `verify --redo` takes a damaged one back
    base.store.remove("shards/00000.json")
    assert not trial_point(done[0], storage).is_done("finetune")
    assert run_trials(points, storage, search=space, quiet=True) == done
    assert trial_point(done[0], storage).is_done("finetune")
    assert base.scan("answers").collect().equals(answers)
    assert Path(trial.store.path("_SUCCESS")).stat().st_mtime_ns == written


def test_pruning_never_stops_the_last_trial_of_a_point() -> None:
    from orchestrator.finetune.ray.pruning import PointASHA

    scheduler = PointASHA(max_steps=64)
    scheduler.set_search_properties(None, None)
    trials = [
        SimpleNamespace(trial_id=f"{point}{i}", config={"entry": json.dumps({"point": point})}, loss=loss)
        for point, losses in (("easy", (0.1, 0.2, 0.3, 0.4)), ("hard", (5.0, 6.0, 7.0, 8.0)))
        for i, loss in enumerate(losses)
    ]
    for trial in trials:
        scheduler.on_trial_add(None, trial)
    stopped = set()
    for step in range(1, 64):
        for trial in trials:
            if trial.trial_id not in stopped:
                result = {"step": step, "training_iteration": step, "loss": trial.loss}
                if scheduler.on_trial_result(None, trial, result) == PointASHA.STOP:
                    stopped.add(trial.trial_id)
    assert stopped, "weak samples are stopped"
    for point in ("easy", "hard"):
        assert f"{point}0" not in stopped, "the best of a hard point is not compared with an easy one"
        assert any(t.trial_id not in stopped for t in trials if json.loads(t.config["entry"])["point"] == point)


def killed_once(marker: str) -> Callable[[dict[str, Any]], None]:
    """A Tune trainable whose process is killed after the first step past a checkpoint, once."""

    def trainable(config: dict[str, Any]) -> None:
        import os
        import signal
        from pathlib import Path

        from orchestrator.finetune.ray import experiment

        original = experiment.run_trial

        def run_trial(point: Any, report: Any) -> Any:
            def deadly(values: Any) -> None:
                report(values)
                with Path(marker).open("a") as log:
                    log.write(f"{point.run.finetune.complexity_ratio} {values['step']}\n")
                if values["step"] == 3 and not Path(f"{marker}.killed").exists():
                    Path(f"{marker}.killed").touch()
                    os.kill(os.getpid(), signal.SIGKILL)

            return original(point, deadly)

        experiment.run_trial = run_trial
        try:
            experiment.tune_trial(config)
        finally:
            experiment.run_trial = original

    return trainable


@pytest.mark.faults
@pytest.mark.ray
def test_a_killed_trial_goes_on_and_equals_the_plain_loop(make_run: MakeRun, tmp_path: Path, monkeypatch) -> None:
    ratios = (0.0, 0.5, 1.0)
    plain, storage = Storage(str(tmp_path / "plain")), Storage(str(tmp_path / "ray"))
    local = [make_run(complexity_ratio=r) for r in ratios]
    run_trials(local, plain, quiet=True)
    runs = [make_run(complexity_ratio=r, how={"backend": "ray", "max_retries": 2}) for r in ratios]
    marker = tmp_path / "steps"
    with monkeypatch.context() as patch:
        trainable = killed_once(str(marker))
        patch.setattr("orchestrator.finetune.ray.experiment.TRAINABLE", trainable)
        run_trials(runs, storage, quiet=True)
    assert Path(f"{marker}.killed").exists()
    for ours, theirs in zip(rows(runs, storage), rows(local, plain), strict=True):
        assert same(ours, theirs)
    steps = [line.split() for line in marker.read_text().splitlines()]
    counts = {r: sorted(int(s) for ratio, s in steps if float(ratio) == r) for r in ratios}
    assert sorted(len(c) for c in counts.values()) == [4, 4, 5], "one step is done twice, in the killed trial alone"
    assert len(storage.files("finetune")) == 3


DRIVER = """
import json, sys
from orchestrator.config import RunConfig
from orchestrator.store.filesystem import Storage
from tests.points import run_trials
runs = [RunConfig.model_validate(r) for r in json.load(open(sys.argv[1]))]
run_trials(runs, Storage(sys.argv[2]), quiet=True)
"""


@pytest.mark.faults
@pytest.mark.ray
def test_a_killed_driver_is_taken_up_with_every_trial_once(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(seed=s, n_steps=12, how={"backend": "ray", "concurrent_trials": 1}) for s in range(4)]
    (tmp_path / "runs.json").write_text(json.dumps([run.model_dump(mode="json") for run in runs]))
    storage = Storage(str(tmp_path / "results"))
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "runs.json"), storage.uri]
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as driver:
        deadline = time.monotonic() + 240
        while not any(trial_stage(run, storage).is_done() for run in runs):
            assert driver.poll() is None, "the driver ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.2)
        os.kill(driver.pid, signal.SIGKILL)
    done = {run.finetune.seed: _finished_at(run, storage) for run in runs if trial_stage(run, storage).is_done()}
    assert 0 < len(done) < 4
    subprocess.run(command, cwd=ROOT, check=True, timeout=280)
    assert all(trial_stage(run, storage).is_done() for run in runs)
    assert len(storage.files("finetune")) == 4
    assert {seed: _finished_at(runs[seed], storage) for seed in done} == done, "finished trials are not touched again"


def _finished_at(run: RunConfig, storage: Storage) -> int:
    stage = trial_stage(run, storage)
    return Path(stage.store.path("_SUCCESS")).stat().st_mtime_ns


@pytest.mark.ray
def test_trials_that_can_never_be_placed_are_refused(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(how={"backend": "ray", "gpus_per_trial": 1.0})
    with pytest.raises(ResourceError, match="fine-tuning trials"):
        run_trials([run], Storage(str(tmp_path)), quiet=True)


def test_a_sweep_that_no_machine_can_run_stops_by_itself():
    """Trials that wait longer than `how.no_progress_timeout_s` with none running end the sweep with a reason."""
    from types import SimpleNamespace

    from orchestrator.errors import ResourceError
    from orchestrator.finetune.ray.watcher import make_watcher

    watcher = make_watcher(None, 0.0, None)
    watcher.setup()

    def trial(status: str) -> SimpleNamespace:
        return SimpleNamespace(status=status, is_finished=lambda: status == "TERMINATED")

    watcher.on_step_end(0, [trial("RUNNING"), trial("PENDING")])
    watcher.on_step_end(1, [trial("TERMINATED")])
    with pytest.raises(ResourceError, match="no_progress_timeout_s"):
        watcher.on_step_end(2, [trial("PENDING"), trial("TERMINATED")])


@pytest.mark.ray
def test_trials_on_two_processes_equal_those_on_one_and_say_what_has_to_be_mended(
    make_run: MakeRun, tmp_path: Path
) -> None:
    """Ray Train places two processes; gradients are summed, so that only the order of additions differs."""
    diverging = {"language": {"rank": 4, "learning_rate": 1e30}, "max_grad_norm": 1e30, "warmup_share": 0.0}
    alone, together = make_run(n_steps=3, dropout=0.2), make_run(n_steps=3, dropout=0.2, how=TOGETHER)
    run_trials([alone], Storage(str(tmp_path / "alone")), quiet=True)
    with pytest.raises(StageError, match=r"1 of 2 trials failed(.|\n)*diverged"):
        run_trials([together, make_run(how=TOGETHER, **diverging)], Storage(str(tmp_path / "together")), quiet=True)
    found = []
    for name, run in (("alone", alone), ("together", together)):
        stage = trial_stage(run, Storage(str(tmp_path / name)))
        weights = load_file(tmp_path / name / "finetune" / stage.digest / "adapter" / "adapter_model.safetensors")
        found.append((stage.scan("training").collect(), weights))
    (one, weights), (two, other) = found
    for column in ("n_answer_tokens", "n_tokens"):
        assert one[column].to_list() == two[column].to_list()
    assert two["loss"].to_numpy() == pytest.approx(one["loss"].to_numpy(), rel=1e-4)
    assert two["grad_norm"].to_numpy() == pytest.approx(one["grad_norm"].to_numpy(), rel=1e-3)
    for key, value in weights.items():
        # Adam divides by the gradient's size, which turns rounding of near-zero gradients into whole steps
        close = (other[key] - value).abs() < 1e-4
        assert close.float().mean() > 0.99, key
