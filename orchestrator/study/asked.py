"""What a run's stages will ask of its model: texts, words, and the picture that makes most tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from orchestrator.config import RunConfig, StageName
from orchestrator.data.files.asking import prompt_of
from orchestrator.data.files.source import QuestionSource
from orchestrator.data.picture_sizes import Size, distinct_sizes
from orchestrator.data.source import make_source
from orchestrator.data.task_source import open_task_source
from orchestrator.data.templates import vocabulary
from orchestrator.errors import DataError, VtsweepError
from orchestrator.models.catalogue import TAKES_SEVERAL, resolve
from orchestrator.models.known_config import read_config
from orchestrator.models.planning import image_size, largest_picture

Found = TypeVar("Found")
N_READ = 5000
"""Rows of a question file, spread over it, whose words and lengths are looked at before work."""


class Asking:
    """Looks each data section up once; made for one preflight, so that changed files are read again by the next."""

    def __init__(self, stages: Sequence[StageName]) -> None:
        self.stages = stages
        self._known: dict[tuple[str, str], Any] = {}

    def __call__(self, run: RunConfig) -> dict[str, Any]:
        """Return what the stages ask of a run's model, as `check_model` takes it."""
        words, longest = self._once("texts", run, _texts) if run.data.source == "questions" else ("", ())
        words = " ".join(filter(None, [words, *self._template_words(run)]))
        instructions = {"finetune": run.finetune.instruction, "ablate": run.ablate.instruction}
        added = [text for stage, text in instructions.items() if stage in self.stages and text]
        longest_asked = max(added, key=len, default="")
        texts = [run.capture.prompt, *added, *(f"{text} {longest_asked}".strip() for text in longest)]
        sizes = self._once("sizes", run, _sizes) or [image_size(run.data)]
        return {
            "questions": tuple(text for text in texts if text),
            "text_only": self._text_only(run),
            "size": largest_picture(run.model, sizes),
            "words": words,
            "n_images": self._once("several", run, _most_images) if takes_several(run) else 1,
        }

    def _template_words(self, run: RunConfig) -> list[str]:
        """Return words of questions that are made from templates: about scenes, or about a COCO folder's objects."""
        sources = {"finetune": run.finetune.task.source, "ablate": run.ablate.source}
        needed = {sources[stage] for stage in self.stages if stage in sources} - {"questions"}
        if not needed:
            return []
        names = self._once("names", run, _category_names) if "coco" in needed and run.data.source == "coco" else ()
        return list(dict.fromkeys([*vocabulary(), *(word for name in names for word in name.split())]))

    def _text_only(self, run: RunConfig) -> bool:
        """Whether questions are asked without a picture."""
        if "finetune" in self.stages and run.finetune.task.text_only_share > 0:
            return True
        question_sources = {"finetune": run.finetune.task.source, "ablate": run.ablate.source}
        if run.data.source != "questions" or not any(
            question_sources.get(stage) == "questions" for stage in self.stages
        ):
            return False
        return bool(self._once("without", run, _without_image))

    def _once(self, kind: str, run: RunConfig, look_up: Callable[[RunConfig], Found]) -> Found:
        key = kind, run.data.model_dump_json()
        if key not in self._known:
            self._known[key] = look_up(run)
        result: Found = self._known[key]
        return result


def _texts(run: RunConfig) -> tuple[str, tuple[str, ...]]:
    """Return the distinct words of a question file's questions and choices as one text, and the longest prompts."""
    try:
        source: Any = make_source(run.data)
    except DataError:
        return "", ()  # `plan` need not have the data at hand
    source = getattr(source, "source", source)
    if not isinstance(source, QuestionSource):
        return "", ()  # a source of another kind in its place
    places = source.chosen[:: max(1, len(source) // N_READ)]
    words: dict[str, None] = {}
    prompts: dict[str, None] = {}
    for text in source.columns("row", places=places)["row"]:
        row = json.loads(text) or {}
        for part in (row.get("question") or "", *(row.get("choices") or ())):
            words |= dict.fromkeys(str(part).split())
        if row.get("question"):
            prompts[prompt_of(row, source.config)] = None
    longest = {max(prompts, key=measure) for measure in (len, lambda text: len(text.split()))} if prompts else set()
    return " ".join(words), tuple(sorted(longest))


def _category_names(run: RunConfig) -> tuple[str, ...]:
    """Return the names of the categories that a COCO folder's chosen images have."""
    try:
        source: Any = make_source(run.data)
    except VtsweepError:
        return ()
    source = getattr(source, "source", source)
    return tuple(source.categories[number] for number in np.unique(source.category))


def _sizes(run: RunConfig) -> list[Size]:
    """Return the sizes of a run's pictures; none where the data are not at hand, which is said elsewhere."""
    try:
        return distinct_sizes(make_source(run.data))
    except VtsweepError:
        return []


def _without_image(run: RunConfig) -> bool:
    """Whether rows of question files are asked of the model without an image."""
    try:
        source = open_task_source(run.data, "questions", "data.source")
    except DataError:
        return False  # `plan` need not have the data at hand
    return isinstance(source, QuestionSource) and source.image_counts().n_without > 0


def takes_several(run: RunConfig) -> bool:
    """Whether the rows of a question file may show a run's model several images; others are refused elsewhere."""
    return run.data.source == "questions" and read_config(resolve(run.model)).model_type in TAKES_SEVERAL


def _most_images(run: RunConfig) -> int:
    """Return the most images of a row of question files."""
    try:
        source = open_task_source(run.data, "questions", "data.source")
    except DataError:
        return 1  # `plan` need not have the data at hand
    return max(1, source.image_counts().most) if isinstance(source, QuestionSource) else 1
