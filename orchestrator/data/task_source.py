"""The photographs or question file of a task, from the `data` section of its run."""

from __future__ import annotations

from typing import Literal

from orchestrator.config import CocoConfig, FolderConfig, QuestionsConfig, ScenesConfig
from orchestrator.data.coco import CocoSource, open_coco
from orchestrator.data.files.source import QuestionSource, open_questions
from orchestrator.errors import ConfigError

Data = ScenesConfig | CocoConfig | FolderConfig | QuestionsConfig
Asked = Literal["scenes", "coco", "questions"]
"""Source of a task's questions: scenes, COCO's boxes, or rows of question files."""


def check_task_source(data: Data, source: Asked, key: str) -> None:
    """Raise ConfigError, naming the setting `key`, if `data` is not of the kind that a task needs."""
    if source != "scenes" and data.source != source:
        raise ConfigError(f"{key}: {source} needs data.source: {source}, found {data.source}")


def open_task_source(
    data: Data, source: Asked, key: str, split: str | None = None
) -> CocoSource | QuestionSource | None:
    """Source of the questions' images; None if the questions have their own scenes.

    Args:
        data: the run's `data` section.
        source: kind of the questions.
        key: setting that names `source`, for messages.
        split: use images or rows of this split instead of the split in `data`.

    Raises:
        ConfigError: `data` is of another kind.
    """
    check_task_source(data, source, key)
    if source == "questions":
        assert isinstance(data, QuestionsConfig), "checked above"
        return open_questions(data.model_copy(update={"splits": (split,)}) if split else data)
    if source == "coco":
        assert isinstance(data, CocoConfig), "checked above"
        return open_coco(data.model_copy(update={"split": split}) if split else data)
    return None
