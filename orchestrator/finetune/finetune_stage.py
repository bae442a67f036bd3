"""The stages (directory and digest) of a trial and of its base model's measurement. Does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from orchestrator.compression.registry import chosen_names
from orchestrator.config import CocoConfig, QuestionsConfig, RunConfig
from orchestrator.config.search_space import sampled
from orchestrator.data.coco import CocoSource
from orchestrator.data.files.source import QuestionSource
from orchestrator.data.source import SCENES_VERSION
from orchestrator.data.task_source import check_task_source, open_task_source
from orchestrator.data.templates import question_fingerprint
from orchestrator.errors import ConfigError
from orchestrator.store.resolved_point import ResolvedPoint
from orchestrator.store.stage_folder import Stage

VERSION = 6
"""Incremented whenever equal inputs give different values or columns; part of the digests."""
CHECKPOINT = "checkpoint.safetensors"
Report = Callable[[Mapping[str, Any]], None]
"""Receives `{"step": ..., "loss": ...}` after every optimiser step."""

_EVALUATION = (
    "n_eval_per_family",
    "eval_seed",
    "answer_by",
    "instruction",
    "n_capture_images",
    "n_capture_questions",
    "n_drift_tokens",
)
_NOT_HASHED = {"search_trials", "search_algorithm", "prune", "primary"}


def check_task(run: RunConfig) -> None:
    """Check that the run's model and data can be used for the fine-tuning task.

    Raises:
        ConfigError: the model already carries a LoRA adapter, the task's images do not come from `data`, or they are
            those of the held-out questions.
    """
    task = run.finetune.task
    if run.model.adapter is not None:
        raise ConfigError(f"model.adapter {run.model.adapter!r}: fine-tuning starts from a base model; leave it out")
    check_task_source(run.data, task.source, "finetune.task.source")
    if isinstance(run.data, CocoConfig) and task.eval_split == run.data.split:
        raise ConfigError(
            f"finetune.task.eval_split: {run.data.split} is data.split, so held-out images would be trained on. Name "
            "another split, or none: a half of the images is then kept from training"
        )
    splits = (run.data.splits or (task.eval_split,)) if isinstance(run.data, QuestionsConfig) else ()
    if task.eval_split and task.eval_split in splits:
        raise ConfigError(
            f"finetune.task.eval_split: name in data.splits the splits to train on, without {task.eval_split}; else "
            "its rows would be trained on"
        )


def held_out_identity(run: RunConfig) -> dict[str, Any] | None:
    """Identity of the images of held-out questions; None if they are scenes. Raises as `check_task`."""
    check_task(run)
    source = task_source(run, held_out=True)
    return source.fingerprint() if source else None


def baseline_stage(point: ResolvedPoint) -> Stage:
    """The directory of the base model's answers and states; shared by all trials with the same evaluation."""
    run, settings = point.run, point.run.finetune.model_dump(mode="json")
    metrics = chosen_names(run.capture.metrics, run.capture.spectrum)
    inputs = {
        "version": VERSION,
        "model": point.model,
        "data": point.data,
        "capture": {
            "prompt": run.capture.prompt,
            "metrics": list(metrics),
            "packages": point.packages_of("metrics", metrics),
        },
        "task": settings["task"],
        "questions": {**question_fingerprint(), "scenes": SCENES_VERSION},
        "held_out": point.held_out,
        **{key: settings[key] for key in _EVALUATION},
    }
    return Stage(point.storage, "baseline", inputs)


def trial_stages(point: ResolvedPoint) -> tuple[Stage, Stage]:
    """The stages of the base model's measurement and of the trial; computes nothing."""
    baseline = baseline_stage(point)
    settings = point.run.finetune.model_dump(mode="json", exclude=_NOT_HASHED)
    return baseline, Stage(point.storage, "finetune", {"finetune": settings}, {"baseline": baseline.digest})


def sampled_point(point: ResolvedPoint, values: Mapping[str, Any]) -> ResolvedPoint:
    """The point with the sampled values of a search, and the resulting stages.

    Raises:
        ConfigError: a value is not valid for its key.
    """
    if not values:
        return point
    run = sampled(point.run, values)
    same_task = run.finetune.task == point.run.finetune.task
    held_out = point.held_out if same_task else held_out_identity(run)
    result = replace(point, run=run, held_out=held_out)
    return result.with_stages(*trial_stages(result))


def task_source(run: RunConfig, held_out: bool = False) -> CocoSource | QuestionSource | None:
    """The source of the questions' images; None if the questions have their own scenes."""
    task = run.finetune.task
    return open_task_source(run.data, task.source, "finetune.task.source", task.eval_split if held_out else None)
