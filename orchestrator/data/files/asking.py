"""The question of a stored row: listed choices, boxes in hundredths, and the facts for judging its answer."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

from orchestrator.config import QuestionsConfig
from orchestrator.data.files.scoring import LETTERS, shuffled_choices
from orchestrator.data.questions import Question
from orchestrator.errors import DataError

Stored = Mapping[str, Any]
"""A row as stored in the index: the fields of the row model, and `place` in its file."""


def options_of(row: Stored, config: QuestionsConfig) -> list[str] | None:
    """The choices of a row as shown to the model; None if they are not shown."""
    if config.show_choices == "no" or not row["choices"]:
        return None
    if config.show_choices == "listed":
        return list(row["choices"])
    return shuffled_choices(row["choices"], config.seed, zlib.crc32(row["id"].encode()))


def prompt_of(row: Stored, config: QuestionsConfig) -> str:
    """The question; choices, if shown, follow below it with a letter before each."""
    options = options_of(row, config) or []
    return "\n".join([row["question"], *(f"{LETTERS[i]}. {option}" for i, option in enumerate(options))])


def check_place(row: Stored, size: tuple[int, int] | None) -> None:
    """Raise DataError for a box or point outside its image of `size` (width, height; px; None unless one image)."""
    place = row.get("box") or row.get("point")
    if not place:
        return
    if size is None:
        raise DataError(f"{row['place']}: a box or point needs a picture, and one alone")
    if not (max(place[0::2]) <= size[0] + 1 and max(place[1::2]) <= size[1] + 1):
        raise DataError(f"{row['place']}: box or point {place} lies outside its picture of {size[0]} x {size[1]} px")


def make_question(
    row: Stored, config: QuestionsConfig, scoring: str, size: tuple[int, int] | None, facts: Mapping[str, Any]
) -> Question:
    """The question of a row.

    Args:
        row: a valid row.
        config: how choices are shown and answers extracted.
        scoring: scoring rule.
        size: (width, height) of the image, px: the reference answer is a box or point in hundredths of it, rounded to
            two digits; answers are judged against the exact numbers.
        facts: further details of the question.
    """
    answers, choices = row["answers"], tuple(row["choices"]) if row["choices"] else None
    frequent = max(answers, key=answers.count) if answers else ""
    options = options_of(row, config)
    if options:
        choices = tuple(LETTERS[: len(options)])
        frequent = LETTERS[options.index(frequent)] if frequent else ""
    if size is not None and (place := row["box"] or row["point"]):
        hundredths = [100 * value / size[i % 2] for i, value in enumerate(place)]
        answers, scoring = [" ".join(f"{value:.4f}" for value in hundredths)], "box" if row["box"] else "point"
        frequent = " ".join(f"{min(99, round(value)):02d}" for value in hundredths)
    detail = {
        "wording": row["family"],
        "scoring": scoring,
        "answers": answers,
        "complexity": row["complexity"],
        "options": options,
        "extract": config.extract,
        **facts,
    }
    image_id = " + ".join(row["images"]) or row["id"]
    return Question(
        row["id"], image_id, row["family"], row["tier"], prompt_of(row, config), frequent, choices, 0, detail
    )
