"""The directories of a trial and of its base model's measurement, named without work. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.compression.registry import ENTRY_POINT_GROUP, chosen_names
from orchestrator.config import CocoConfig, QuestionsConfig, RunConfig
from orchestrator.data.coco import CocoSource
from orchestrator.data.files.source import QuestionSource
from orchestrator.data.source import SCENES_VERSION, make_source
from orchestrator.data.task_source import check_task_source, open_task_source
from orchestrator.data.templates import question_fingerprint
from orchestrator.errors import ConfigError
from orchestrator.models.catalogue import fingerprint
from orchestrator.plugins import registered_by
from orchestrator.store.filesystem import Storage
from orchestrator.store.stage_folder import Stage

VERSION = 6
"""Raised whenever equal inputs would give other values or columns; part of the digests."""
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


def baseline_stage(run: RunConfig, storage: Storage) -> Stage:
    """The directory of the base model's answers and states; shared by all trials that are judged alike.

    Raises:
        ConfigError: the model already carries a LoRA adapter, the task's images do not come from `data`, or they are
            those of the held-out questions.
    """
    if run.model.adapter is not None:
        raise ConfigError(f"model.adapter {run.model.adapter!r}: fine-tuning starts from a base model; leave it out")
    check_task_source(run.data, run.finetune.task.source, "finetune.task.source")
    if isinstance(run.data, CocoConfig) and run.finetune.task.eval_split == run.data.split:
        raise ConfigError(
            f"finetune.task.eval_split: {run.data.split} is data.split, so held-out images would be trained on. Name "
            "another split, or none: a half of the images is then kept from training"
        )
    held_out_split = run.finetune.task.eval_split
    if (
        isinstance(run.data, QuestionsConfig)
        and held_out_split
        and held_out_split in (run.data.splits or [held_out_split])
    ):
        raise ConfigError(
            f"finetune.task.eval_split: name in data.splits the splits to train on, without {held_out_split}; else its "
            "rows would be trained on"
        )
    settings = run.finetune.model_dump(mode="json")
    held_out = task_source(run, held_out=True)
    return Stage(
        storage,
        "baseline",
        {
            "version": VERSION,
            "model": {**fingerprint(run.model), "dtype": run.model.dtype},
            "data": make_source(run.data).fingerprint(),
            "capture": {
                "prompt": run.capture.prompt,
                "metrics": list(metrics := chosen_names(run.capture.metrics, run.capture.spectrum)),
                "packages": registered_by(ENTRY_POINT_GROUP, metrics),
            },
            "task": settings["task"],
            "questions": {**question_fingerprint(), "scenes": SCENES_VERSION},
            "held_out": held_out.fingerprint() if held_out else None,
            **{key: settings[key] for key in _EVALUATION},
        },
    )


def trial_stage(run: RunConfig, storage: Storage) -> Stage:
    """The directory of a trial, without work. Raises `ConfigError` as `baseline_stage`."""
    settings = run.finetune.model_dump(mode="json", exclude=_NOT_HASHED)
    return Stage(storage, "finetune", {"finetune": settings}, {"baseline": baseline_stage(run, storage).digest})


def task_source(run: RunConfig, held_out: bool = False) -> CocoSource | QuestionSource | None:
    """The images that questions are asked about where they are not scenes of their own."""
    task = run.finetune.task
    return open_task_source(run.data, task.source, "finetune.task.source", task.eval_split if held_out else None)
