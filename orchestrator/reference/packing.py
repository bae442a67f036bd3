"""Training questions about a scene, and packing: one sequence holds an image with all its questions.

A question and its answer attend only to the image and to themselves, and their position ids restart after the image, so
that each answer is the same as in a separate sequence, while the image is encoded once.

Shapes: ``B`` images, ``S`` sequence length, ``Q`` questions, ``M`` marks.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from orchestrator.data.questions import Question, make_questions
from orchestrator.data.scenes import COLOURS, SHAPES, Scene
from orchestrator.data.templates import templates
from orchestrator.reference.build import ASSISTANT, BOS, EOS, IMAGE, N_PATCHES, PAD, USER

FAMILIES = (
    *("existence", "existence", "colour", "colour", "shape", "count", "count_by_attribute", "count_by_attribute"),
    *("comparison", "comparison", "comparison", "relation", "relation", "relation", "point", "caption"),
)
"""Question families of a simple scene, with multiplicity, if the scene allows them."""

WEIGHTS = {"caption": 0.4, "point": 0.4, "relation": 1.5, "comparison": 1.5, "colour": 1.5, "existence": 1.5}
"""Weight of an answer token, default 1: captions have up to 11 tokens, boxes 8."""

_SINGULAR = {plural: shape for shape, plural in templates()["plurals"].items()}


class Mark(NamedTuple):
    """Ground truth about the referent of a word of a question; NaN if there is none."""

    word: int
    """Index of the last word of the name in the question."""
    x: float
    """Position of the only object of that name, as fractions of the canvas."""
    y: float
    log_n: float
    """log2(1 + number of objects of that name)."""


class TrainingQuestion(NamedTuple):
    """One question to train on."""

    text: str
    answer: str
    family: int
    """Index in `LOGGED`."""
    weight: float
    """Weight of an answer token."""
    marks: tuple[Mark, ...]


LOGGED = (
    *("colour", "shape", "existence", "count", "count_sparse", "count_by_attribute", "comparison"),
    *("relation_horizontal", "relation_vertical", "point", "caption"),
)
"""Kinds of questions whose accuracy is logged separately."""


def marks_of(question: Question, scene: Scene) -> tuple[Mark, ...]:
    """Ground truth about each referent of a question: "red circle", "circle", "red objects", "circles"."""
    words = question.text.split()
    names = [question.detail[key] for key in ("object", "group", "other") if key in question.detail]
    if not names and question.family == "shape":
        names = [f"{question.detail['colour']} object"]
    if not names and question.family == "colour":
        names = [question.detail["shape"]]
    if question.family == "count":
        names = ["objects"]
    marks = []
    for name in names:
        parts = name.split()
        at = next(i for i in range(len(words)) if words[i : i + len(parts)] == parts)
        colour = next((p for p in parts if p in COLOURS), None)
        shape = next((_SINGULAR.get(p, p) for p in parts if _SINGULAR.get(p, p) in SHAPES), None)
        named = [o for o in scene.objects if colour in (None, o.colour) and shape in (None, o.shape)]
        x = named[0].x / scene.width if len(named) == 1 else math.nan
        y = named[0].y / scene.height if len(named) == 1 else math.nan
        marks.append(Mark(at + len(parts) - 1, x, y, math.log2(1 + len(named))))
    return tuple(marks)


def ask(scene: Scene, seed: int, *, first: Question | None = None, sparse: bool = False) -> list[TrainingQuestion]:
    """Draw questions about a scene, after a given first one: all families for a simple scene, only counting for a
    sparse one."""
    families = ("count", "count_by_attribute") if sparse else FAMILIES
    questions = []
    drawn = make_questions(scene, families, len(families), seed)
    for q in drawn if first is None else [first, *(q for q in drawn if q.text != first.text)]:
        name = f"relation_{q.detail['wording']}" if q.family == "relation" else q.family
        name = "count_sparse" if sparse else name
        marks = marks_of(q, scene)
        questions.append(TrainingQuestion(q.text, q.answer, LOGGED.index(name), WEIGHTS.get(q.family, 1.0), marks))
    return questions


def pack(
    by_image: Sequence[Sequence[TrainingQuestion]], tokenizer: PreTrainedTokenizerFast, *, cross: bool
) -> dict[str, Tensor]:
    """Pack the questions about each image into one sequence per image.

    Returns:
        ``input_ids`` int64 (B, S); ``position_ids`` int64 (B, S); ``attention_mask`` bool (B, 1, S, S), True where a
        token (row) may attend; ``labels`` int64 (B, S), the *next* token if it belongs to an answer, else -100;
        ``weights`` float32 (B, S), the weight of each label; ``question`` int64 (B, S), the number of the question of
        each label in the batch; ``family`` int64 (Q), of each question; ``marks`` int64 (M, 2), row and token of each
        mark, and ``mark_values`` float32 (M, 3); ``asks`` int64 (Q, 2), row and token before each answer, and
        ``ask_values`` float32 (Q, 6), the first two marks of its question, NaN where there are fewer.
    """
    prefix = [BOS, USER, *[IMAGE] * (1 if cross else N_PATCHES)]
    words = sorted({word for row in by_image for q in row for text in q[:2] for word in text.split()})
    ids_of = dict(zip(words, tokenizer(words, add_special_tokens=False)["input_ids"], strict=True))

    def encoded(text: str) -> list[int]:
        """Token ids of a text whose tokens are separated by spaces: ten times as fast as the tokenizer."""
        return [token for word in text.split() for token in ids_of[word]]

    rows: list[tuple[list[Any], ...]] = []
    families: list[int] = []
    marks: list[tuple[int, int]] = []
    values: list[tuple[float, ...]] = []
    asks: list[tuple[int, int]] = []
    pairs: list[list[float]] = []
    for questions in by_image:
        ids, positions, part = list(prefix), list(range(len(prefix))), [0] * len(prefix)
        labels, weights, numbers = [-100] * len(prefix), [0.0] * len(prefix), [0] * len(prefix)
        for number, q in enumerate(questions, start=1):
            question, answer = [*encoded(q.text), ASSISTANT], [*encoded(q.answer), EOS]
            length = len(question) + len(answer)
            marks += [(len(rows), len(ids) + mark.word) for mark in q.marks]
            values += [mark[1:] for mark in q.marks]
            asks.append((len(rows), len(ids) + len(question) - 1))
            pairs.append([*(value for mark in q.marks[:2] for value in mark[1:]), *[math.nan] * 6][:6])
            ids += question + answer
            labels += [-100] * (len(question) - 1) + answer + [-100]
            weights += [0.0] * (len(question) - 1) + [q.weight] * (len(answer) - 1) + [0.3, 0.0]
            numbers += [len(families)] * length
            families.append(q.family)
            positions += range(len(prefix), len(prefix) + length)
            part += [number] * length
        rows.append((ids, positions, labels, weights, part, numbers))
    longest = -(-max(len(row[0]) for row in rows) // 8) * 8
    fill: tuple[float, ...] = (PAD, 0, -100, 0.0, -1, 0)
    table = [
        torch.from_numpy(np.array([row[k] + [fill[k]] * (longest - len(row[k])) for row in rows])) for k in range(6)
    ]
    parts = table[4]
    same = (parts[:, None, :] == parts[:, :, None]) | (parts[:, None, :] == 0)
    mask = same & torch.ones(longest, longest, dtype=torch.bool).tril()
    return {
        "input_ids": table[0],
        "position_ids": table[1],
        "attention_mask": mask[:, None],
        "labels": table[2],
        "weights": table[3].float(),
        "question": table[5],
        "family": torch.tensor(families),
        "marks": torch.tensor(marks, dtype=torch.long).reshape(-1, 2),
        "mark_values": torch.tensor(values, dtype=torch.float32).reshape(-1, 3),
        "asks": torch.tensor(asks, dtype=torch.long).reshape(-1, 2),
        "ask_values": torch.tensor(pairs, dtype=torch.float32).reshape(-1, 6),
    }
