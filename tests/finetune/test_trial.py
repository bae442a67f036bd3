"""A trial from its configuration to its table: exact ends of the ratio, one base measurement, exact resume on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from polars.testing import assert_frame_equal
from safetensors.numpy import load

from orchestrator.config import RunConfig
from orchestrator.errors import ConfigError
from orchestrator.finetune import trial as trial_module
from orchestrator.finetune import worker as worker_module
from orchestrator.finetune.drift import compare
from orchestrator.finetune.trial import load_baseline
from orchestrator.finetune.worker import worker_for
from orchestrator.store.filesystem import Storage
from orchestrator.store.resolved_point import ResolvedPoint
from orchestrator.store.stage_folder import Stage
from tests.data.own_files import write_own_questions
from tests.points import baseline_stage, run_baseline, run_trial, trial_point, trial_stage

MakeRun = Callable[..., RunConfig]


@pytest.fixture
def storage(tmp_path) -> Storage:
    return Storage(str(tmp_path / "results"))


def row_of(stage: Stage) -> dict[str, Any]:
    return stage.scan("trials").collect().row(0, named=True)


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_at_both_ends_only_one_tier_is_trained_on(make_run: MakeRun, ratio: float, monkeypatch) -> None:
    """Through the worker's own data path: the very examples that reach the loss."""
    run = make_run(complexity_ratio=ratio)
    point = trial_point(run, Storage("memory://none"))
    seen: set[str | None] = set()

    def spy(*args: Any, **_: Any) -> None:
        for step in range(run.finetune.n_steps):
            args[2](step)

    prepared = worker_for(point).prepared(point)
    original = prepared.with_answer
    monkeypatch.setattr(prepared, "with_answer", lambda asked: seen.add(asked.question.tier) or original(asked))
    monkeypatch.setattr(worker_module, "train", spy)
    worker_for(point).train(point, None, point.storage)  # type: ignore[arg-type]
    assert seen == ({"low"} if ratio == 0.0 else {"high"})


def test_a_trial_writes_one_whole_row(make_run: MakeRun, storage: Storage) -> None:
    reports: list[Any] = []
    stage = run_trial(make_run(complexity_ratio=0.5), storage, reports.append)
    row = row_of(stage)
    assert stage.is_done()
    assert [r["step"] for r in reports] == [1, 2, 3, 4]
    assert row["trial"] == stage.digest
    assert (row["complexity_ratio"], row["seed"], row["lora_rank"], row["n_steps"]) == (0.5, 0, 4, 4)
    assert row["train_flops"] > 1e6
    expected = {
        "accuracy/low",
        "accuracy/high_low",
        "accuracy/high/relation",
        "accuracy_generated/high",
        "valid_share_base/low",
        "blind/high_high",
        "asked/high/delta/vision/gini/late_low",
        "questions/high/coverage",
        "accuracy_base/low/colour",
        "gain/high",
        "compression/vision/gini/early",
        "delta/text/stable_rank/late_low",
        "drift/vision/middle",
        "drift/text/late_high",
        "cka/vision/early",
        "alignment/text/middle",
    }
    assert expected <= set(row)
    assert 0 <= row["accuracy/low_low"] <= row["accuracy/low"] <= row["accuracy/low_high"] <= 1
    assert row["delta/vision/gini/late_low"] <= row["delta/vision/gini/late"] <= row["delta/vision/gini/late_high"]
    assert not stage.store.exists(trial_module.CHECKPOINT), "a finished trial needs no checkpoint"
    assert stage.scan("training").collect().height == 4
    assert set(stage.store.files("adapter")) == {"adapter_config.json", "adapter_model.safetensors"}


def test_a_finished_trial_is_not_run_again_and_the_base_is_measured_once(
    make_run: MakeRun, storage: Storage, monkeypatch
) -> None:
    run_trial(make_run(), storage)
    calls: list[ResolvedPoint] = []
    original = worker_module.TrialWorker.answers
    monkeypatch.setattr(
        worker_module.TrialWorker, "answers", lambda self, point: calls.append(point) or original(self, point)
    )
    run_trial(make_run(), storage)
    assert not calls
    run_trial(make_run(complexity_ratio=1.0), storage)
    assert len(calls) == 1, "the tuned model only: the base model's answers are found by their digest"
    assert len(storage.files("baseline")) == 1


def test_a_killed_trial_ends_with_the_weights_of_an_undisturbed_one(make_run: MakeRun, tmp_path) -> None:
    run = make_run(dropout=0.1)
    undisturbed = run_trial(run, Storage(str(tmp_path / "a")))
    storage = Storage(str(tmp_path / "b"))

    def kill(values: Any) -> None:
        if values["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trial(run, storage, kill)
    stage = trial_stage(run, storage)
    assert stage.store.exists(trial_module.CHECKPOINT)
    assert not stage.is_done()
    steps: list[int] = []
    run_trial(run, storage, lambda values: steps.append(values["step"]))
    assert steps == [3, 4], "it goes on after the checkpoint of step 2"
    first, second = (load(s.store.read("adapter/adapter_model.safetensors")) for s in (undisturbed, stage))
    assert set(first) == set(second)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    for key, value in row_of(undisturbed).items():
        if "seconds" not in key:
            assert row_of(stage)[key] == value or (value != value), key


@pytest.fixture(scope="module")
def undisturbed(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return run_trial(make_run(dropout=0.2), Storage(str(tmp_path_factory.mktemp("undisturbed"))))


@pytest.mark.parametrize(
    "how",
    [{"batch_size": 2}, {"gradient_checkpointing": True}, {"checkpoint_steps": 1}, {"keep_adapters": False}],
    ids=str,
)
def test_how_a_trial_is_done_changes_no_table(make_run: MakeRun, storage: Storage, undisturbed: Stage, how) -> None:
    """With dropout; the order of additions may differ with the batch, nothing else. Processes: `test_train.py`."""
    stage = run_trial(make_run(dropout=0.2, how=how), storage)
    for name in ("answers", "layer_metrics", "training", "asked_metrics"):
        ours, theirs = (s.scan(name).collect().drop("seconds", strict=False) for s in (stage, undisturbed))
        assert_frame_equal(ours, theirs, rel_tol=1e-3, abs_tol=1e-4)
    ours, theirs = row_of(stage), row_of(undisturbed)
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        if "seconds" not in key:
            assert ours[key] == (
                pytest.approx(value, rel=1e-3, abs=1e-4, nan_ok=True) if isinstance(value, float) else value
            ), key


def test_no_training_means_no_drift(make_run: MakeRun, storage: Storage) -> None:
    point = trial_point(make_run(), storage)
    _, base = load_baseline(run_baseline(make_run(), storage))
    columns = compare(base, worker_for(point).snapshot(point))
    for key, value in columns.items():
        kind = key.split("/")[0]
        if kind in ("delta", "drift"):
            assert value == pytest.approx(0.0, abs=1e-5), key
        if kind in ("cka", "alignment"):
            assert value == pytest.approx(1.0, abs=1e-4), key


def test_what_decides_a_result_decides_the_digest(make_run: MakeRun, storage: Storage) -> None:
    base = trial_stage(make_run(), storage).digest
    same = make_run(how={"batch_size": 3, "torch_threads": 2}, search_trials=5)
    assert trial_stage(same, storage).digest == base
    assert trial_stage(make_run(complexity_ratio=0.25), storage).digest != base
    assert trial_stage(make_run(seed=1), storage).digest != base
    assert baseline_stage(make_run(seed=1), storage).digest == baseline_stage(make_run(), storage).digest
    assert baseline_stage(make_run(n_eval_per_family=2), storage).digest != baseline_stage(make_run(), storage).digest


def test_other_wordings_rules_or_scenes_are_other_trials(make_run: MakeRun, storage: Storage, monkeypatch) -> None:
    digests = {trial_stage(make_run(), storage).digest}
    monkeypatch.setattr("orchestrator.data.templates.QUESTIONS_VERSION", -1)
    digests.add(trial_stage(make_run(), storage).digest)
    monkeypatch.setattr("orchestrator.finetune.finetune_stage.SCENES_VERSION", -1)
    digests.add(trial_stage(make_run(), storage).digest)
    assert len(digests) == 3


def test_impossible_trials_are_refused_before_work(make_run: MakeRun, storage: Storage) -> None:
    run = make_run()
    tuned = run.model_copy(update={"model": run.model.model_copy(update={"adapter": "somewhere"})})
    with pytest.raises(ConfigError, match="starts from a base model"):
        trial_stage(tuned, storage)
    with pytest.raises(ConfigError, match=r"coco needs data\.source"):
        trial_stage(make_run(task={"source": "coco"}), storage)
    photographs = RunConfig.model_validate(
        {
            "data": {"source": "coco", "root": "nowhere", "split": "val2017"},
            "finetune": {"task": {"source": "coco", "eval_split": "val2017"}},
        }
    )
    with pytest.raises(ConfigError, match=r"eval_split: val2017 is data\.split"):
        trial_stage(photographs, storage)


def test_a_trial_trains_and_asks_rows_without_an_image(
    make_run: MakeRun, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VTSWEEP_CACHE", str(tmp_path / "cache"))
    rows = write_own_questions(tmp_path / "d", 24, families=("colour",))
    for i, row in enumerate(rows):
        row |= {"tier": "low" if i % 2 else "high", "album": None}
        if i % 3 == 0:
            row["image"] = None
    (tmp_path / "d" / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"source": "questions", "families": ["colour"]}
    data = {"source": "questions", "root": str(tmp_path / "d"), "file": "questions.jsonl"}
    made = make_run(task=task, n_eval_per_family=4, n_capture_questions=2, complexity_ratio=0.5)
    run = RunConfig.model_validate({**made.model_dump(), "data": data})
    point, shown = trial_point(run, storage), list[bool]()
    prepared = worker_for(point).prepared(point)
    original = prepared.with_answer
    monkeypatch.setattr(
        prepared, "with_answer", lambda asked: shown.append(asked.image() is not None) or original(asked)
    )
    stage = run_trial(run, storage)
    assert set(shown) == {True, False}
    answers = stage.scan("answers").collect()
    without = {row["id"] for row in rows if row["image"] is None}
    asked = set(answers["question_id"])
    assert asked & without
    assert asked - without
    row = row_of(stage)
    assert 0 <= row["accuracy/low/colour"] <= 1
    losses = stage.scan("training").collect()["loss"]
    assert losses.is_finite().all()
    assert len(losses) == 4
