"""How many pictures the rows of a run show, and what the model's passes then take."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.config import RunConfig
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


def row_footprint(run: RunConfig) -> Footprint:
    """`footprint` of a run with the pictures that its rows show. Errors as there."""
    return footprint(run, row_pictures(run))
