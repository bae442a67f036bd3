"""How many pictures the rows of a run show, and what the model's passes then take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.config import RunConfig, StageName
from orchestrator.data.files.source import QuestionSource
from orchestrator.data.task_source import open_task_source
from orchestrator.errors import DataError
from orchestrator.models.planning import Footprint, footprint
from orchestrator.study.asked import takes_several


def row_pictures(run: RunConfig) -> Mapping[int, int] | None:
    """Number of pictures -> rows of the question file that show as many; None where each shows one, or is unknown.

    Raises:
        ModelError: the model is unknown, or its config is not at hand.
    """
    if not takes_several(run):
        return None
    try:
        source = open_task_source(run.data, "questions", "data.source")
    except DataError:
        return None  # `plan` need not have the data at hand
    if not isinstance(source, QuestionSource):
        return None
    counts = source.columns("n_images")["n_images"].drop_nulls().value_counts()
    return dict(sorted(counts.rows()))


def rows_without_image(runs: Sequence[RunConfig], stages: Sequence[StageName]) -> list[str]:
    """How many rows have no image, and what each stage does with them, in words; nothing where there are none.

    More of them than `data.max_rejected_fraction` allows are refused elsewhere (`preflight.check_file_questions`).
    """
    return list(dict.fromkeys(words for run in runs if (words := _without_image(run, stages))))


def _without_image(run: RunConfig, stages: Sequence[StageName]) -> str:
    question_sources = {"finetune": run.finetune.task.source, "ablate": run.ablate.source}
    if run.data.source != "questions":
        return ""
    try:
        source = open_task_source(run.data, "questions", "data.source")
    except DataError:
        return ""  # `plan` need not have the data at hand
    if not isinstance(source, QuestionSource) or not (counts := source.image_counts()).n_without:
        return ""
    effects = ["capture records them as rejected"] if {"capture", "correlate", "probe"} & set(stages) else []
    if "finetune" in stages and question_sources["finetune"] == "questions":
        effects.append("training and evaluation ask them as text")
    if "ablate" in stages and question_sources["ablate"] == "questions":
        effects.append("ablation leaves them out (table ablate_rejected)")
    n, of = counts.n_without, len(source)
    have = "rows have" if n > 1 else "row has"
    return (
        f"{n} of {of} {have} no image ({counts.first_without}{' first' * (n > 1)}): {', '.join(effects)}"
        if effects
        else ""
    )


def row_footprint(run: RunConfig) -> Footprint:
    """`footprint` of a run with the pictures that its rows show. Errors as there."""
    return footprint(run, row_pictures(run))
