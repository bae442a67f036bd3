"""What a model answers: scored choices and free generation, judged; tables and accuracies with intervals.

A question with a closed set of answers, numbers included, is judged by the most probable of its choices
(`models/choosing.py`), so that accuracy is content and not form; what the model writes by itself is kept beside it,
with whether it is one of the choices. Coordinates cannot be hit exactly: a point is right within `POINT_TOLERANCE` of
the centre, a box when it overlaps the expected one by `BOX_OVERLAP` (the usual rule for referring expressions, Yu et
al. 2016). The raw distance is kept beside it. Rows of question files are judged by the rule of their benchmark
(`data/files/scoring.py`), whose score may lie between wrong and right. Intervals are clustered by image or group.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl

from orchestrator.answers.prepared import Asked, Prepared
from orchestrator.data.files.extraction import find_extractor
from orchestrator.data.files.scoring import LETTERS, SOFT, listed_place, position_bias, score, yes_no_summary
from orchestrator.data.questions import Question
from orchestrator.models.adapter import Adapter
from orchestrator.models.memory import retry_with_smaller_batch
from orchestrator.stats.blind import Judge, blind_scores
from orchestrator.stats.intervals import clustered_share
from orchestrator.store.tables.core import check_table

POINT_TOLERANCE = 0.05
"""Largest distance of a right point from the object's centre, in shares of the image."""
BOX_OVERLAP = 0.5
"""Least intersection over union of a right box."""
MAX_NEW_TOKENS = 16
"""Most tokens of a generated answer; and no more than the longest right answer has, and two."""
MAX_SENTENCE_TOKENS = 48
"""Most tokens where the answer is read from a whole sentence: by POPE's rule, or extracted."""
RIGHT_FROM = 0.5
"""Score from which an answer counts as right."""

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBER_WORDS = {word: str(number) for number, word in enumerate(_NUMBERS)}


def normalise(text: str) -> str:
    """Lower case, one space between words, no closing punctuation, no article in front, digits for number words.

    >>> normalise(" The  Red circle. ")
    'red circle'
    >>> normalise("Three")
    '3'
    """
    words = re.sub(r"\s+", " ", text.strip().lower()).strip(" .!\"'").split(" ")
    if len(words) > 1 and words[0] in ("a", "an", "the"):
        words = words[1:]
    return " ".join(_NUMBER_WORDS.get(word, word) for word in words)


def read_answer(question: Question, text: str) -> str:
    """The answer in a generated text, by the question file's own rule of extraction; the text itself without one."""
    name = question.detail.get("extract")
    return find_extractor(name)(text) if name else text


class Judgement(NamedTuple):
    """An answer judged."""

    correct: bool
    """Whether it is right; of a soft score, whether that is at least `RIGHT_FROM`."""
    error: float | None
    """Error of a count in objects, of a point or box in shares of the image; None for other families and for answers
    without the numbers it needs."""
    score: float
    """What the rule gives for it, 0 to 1: 1 for right and 0 for wrong where the rule knows no more."""


def judge(question: Question, predicted: str) -> Judgement:
    """Judge an answer by the rule of its question: that of its benchmark, or of its family."""
    if rule := question.detail.get("scoring"):  # rows of question files name their benchmark's rule
        detail = question.detail
        answer = read_answer(question, predicted)
        given = score(rule, answer, detail["answers"], detail.get("options") or question.choices)
        return Judgement(given >= RIGHT_FROM, None, given)
    correct, error = _judge_scene(question, predicted)
    return Judgement(correct, error, float(correct))


def _judge_scene(question: Question, predicted: str) -> tuple[bool, float | None]:
    if question.family == "point":
        return _judge_place(question.answer, predicted)
    correct = normalise(predicted) == normalise(question.answer)
    if question.family.startswith("count"):
        found = _numbers(normalise(predicted))
        return correct, float(abs(found[0] - int(question.answer))) if found else None
    return correct, None


@lru_cache(maxsize=4096)
def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d{1,6}", text))


def _judge_place(answer: str, predicted: str) -> tuple[bool, float | None]:
    wanted, found = _numbers(answer), _numbers(predicted)
    if len(found) != len(wanted):
        return False, None
    corners = [
        ((found[i] - wanted[i]) ** 2 + (found[i + 1] - wanted[i + 1]) ** 2) ** 0.5 / 100
        for i in range(0, len(wanted), 2)
    ]
    distance = sum(corners) / len(corners)
    if len(wanted) == 2:
        return distance <= POINT_TOLERANCE, distance
    return _overlap(wanted, found) >= BOX_OVERLAP, distance


def _overlap(a: Sequence[int], b: Sequence[int]) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1)."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, width) * max(0, height)
    areas = [max(0, c[2] - c[0]) * max(0, c[3] - c[1]) for c in (a, b)]
    union = sum(areas) - shared
    return shared / union if union else 0.0


@dataclass(frozen=True)
class Reply:
    """What a model answered."""

    predicted: str
    """The answer that is judged: the most probable choice, or what was generated."""
    generated: str
    """What the model wrote by itself, greedily."""


def is_valid(question: Question, generated: str) -> bool:
    """Whether a generated answer has the form of one: a choice of the question, or as many numbers as asked for."""
    if question.family == "point":
        return len(_numbers(generated)) == len(_numbers(question.answer))
    generated = read_answer(question, generated)
    if question.detail.get("options"):
        return listed_place(generated, question.detail["options"]) is not None
    if question.choices is None:
        return bool(generated)
    return normalise(generated) in _normal(question.choices)


@cache
def _normal(choices: tuple[str, ...]) -> frozenset[str]:
    return frozenset(map(normalise, choices))


def answer_limit(adapter: Adapter, questions: Sequence[Question]) -> int:
    """Most tokens of generated answers: one that is cut there is too long to be right."""
    if any(q.detail.get("extract") or q.detail.get("scoring") == "yes_no" for q in questions):
        return MAX_SENTENCE_TOKENS
    right = {answer for q in questions for answer in (q.answer, *(q.detail.get("options") or ()))}
    longest = max((len(adapter.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in right), default=0)
    return min(MAX_NEW_TOKENS, longest + 2)


def predict(
    adapter: Adapter,
    prepared: Prepared,
    asked: Sequence[Asked],
    batch_size: int,
    *,
    by: Literal["score", "generate"] = "score",
) -> list[Reply]:
    """The model's answer to each question, in order; one pass of the prompt serves both ways.

    Args:
        by: `score` judges the most probable of a question's choices, and what is generated where it has none;
            `generate` judges what is generated.
    """
    replies: dict[int, Reply] = {}
    examples = {i: prepared.prompt(item) for i, item in enumerate(asked)}
    limit = answer_limit(adapter, [item.question for item in asked])

    def answer(chunk: Sequence[int]) -> None:
        choices = [asked[i].question.choices if by == "score" else None for i in chunk]
        found = adapter.answer(adapter.collate([examples[i] for i in chunk]), choices, max_new_tokens=limit)
        for i, (generated, chosen) in zip(chunk, found, strict=True):
            replies[i] = Reply(generated if chosen is None else chosen, generated)

    retry_with_smaller_batch(prepared.batches(examples, batch_size), answer)
    return [replies[i] for i in range(len(asked))]


def answer_table(asked: Sequence[Asked], replies: Sequence[Reply]) -> pl.DataFrame:
    """Table `answers`."""
    rows: list[dict[str, Any]] = []
    for item, reply in zip(asked, replies, strict=True):
        question = item.question
        judged, generated = judge(question, reply.predicted), judge(question, reply.generated)
        options = question.detail.get("options")
        rows.append(
            {
                "question_id": question.question_id,
                "image_id": question.image_id,
                "cluster": question.cluster,
                "family": question.family,
                "tier": question.tier,
                "wording": str(question.detail["wording"]),
                "question": question.text,
                "answer": question.answer,
                "predicted": read_answer(question, reply.predicted),
                "correct": judged.correct,
                "score": judged.score,
                "error": judged.error,
                "generated": reply.generated,
                "generated_correct": generated.correct,
                "generated_score": generated.score,
                "scoring": question.detail.get("scoring") or "family",
                "place": listed_place(read_answer(question, reply.predicted), options) if options else None,
                "valid": is_valid(question, reply.generated),
            }
        )
    return check_table(pl.DataFrame(rows, infer_schema_length=None), "answers")


def _share(found: dict[str, float], name: str, values: Any, images: Sequence[str]) -> None:
    """Add a share with its interval, clustered by image, where there is one."""
    estimate = clustered_share(values, images)
    found[name] = estimate.value
    if estimate.low is not None and estimate.high is not None:
        found[f"{name}_low"], found[f"{name}_high"] = estimate.low, estimate.high


def accuracy_columns(answers: pl.DataFrame, prefix: str = "") -> dict[str, float]:
    """Columns of table `trials`: shares of right answers and mean errors.

    `accuracy/TIER` and `accuracy/TIER/FAMILY` with `_low`, `_high` (clustered by image) beside each;
    `accuracy_generated/...` of what the model wrote by itself and `valid_share/...` of it that has the form of an
    answer; `count_error/TIER` in objects and `point_distance/TIER` in shares of the image, over the answers that hold
    the numbers they need. `prefix` goes after the first word (`accuracy_base/...`). Question files add the figures of
    their benchmark (`benchmark_figures`): `score/...` with its interval, `yes_no/...` and `position_bias/...`.
    """
    found: dict[str, float] = {}
    for keys in (["tier"], ["tier", "family"]):
        for values, part in answers.group_by(keys, maintain_order=True):
            name = "/".join(str(v) for v in values)
            _share(found, f"accuracy{prefix}/{name}", part["correct"].to_numpy(), part["cluster"].to_list())
            found[f"accuracy_generated{prefix}/{name}"] = float(part["generated_correct"].to_numpy().mean())
            found[f"valid_share{prefix}/{name}"] = float(part["valid"].to_numpy().mean())
            if part["scoring"].is_in(SOFT).any():
                _share(found, f"score{prefix}/{name}", part["score"].to_numpy(), part["cluster"].to_list())
            for key, value in benchmark_figures(part).items():
                kind, _, figure = key.partition("/")
                found["/".join([f"{kind}{prefix}", name, *filter(None, [figure])])] = value
    for name, families in (("count_error", ["count", "count_by_attribute"]), ("point_distance", ["point"])):
        errors = answers.filter(pl.col("family").is_in(families) & pl.col("error").is_not_null())
        for (tier,), part in errors.group_by(["tier"], maintain_order=True):
            found[f"{name}{prefix}/{tier}"] = float(part["error"].to_numpy().mean())
    return found


def benchmark_figures(answers: pl.DataFrame) -> dict[str, float]:
    """What benchmarks report beside accuracy, of rows with `predicted`, `answer`, `scoring` and `place`.

    `yes_no/precision`, `/recall`, `/f1` of yes and `/yes_share` where answers are judged as yes or no (POPE);
    `position_bias` where choices are listed: total variation distance of the places answered from the uniform, and
    `position_bias_right`, that of the right answers' places, which is what drawing the order leaves by chance.
    """
    found: dict[str, float] = {}
    asked = answers.filter(pl.col("scoring") == "yes_no")
    if asked.height:
        figures = yes_no_summary(asked["predicted"].to_list(), asked["answer"].to_list())
        found |= {f"yes_no/{key}": value for key, value in figures.items() if key != "accuracy"}
    listed = answers.drop_nulls("place")
    if listed.height:
        right = [LETTERS.index(answer) for answer in listed["answer"]]
        n = max(*right, *listed["place"].to_list()) + 1
        found["position_bias"] = position_bias(listed["place"].to_list(), n)
        found["position_bias_right"] = position_bias(right, n)
    return found


def figures(asked: Sequence[Asked], predicted: Sequence[str]) -> dict[str, float | None]:
    """Columns `score`, `yes_share`, `f1` and `position_bias` of the tables of causal checks, over some answers."""
    rows = []
    for item, text in zip(asked, predicted, strict=True):
        options = item.question.detail.get("options")
        answer = read_answer(item.question, text)
        place = listed_place(answer, options) if options else None
        rule = item.question.detail.get("scoring") or "family"
        rows.append({"predicted": answer, "answer": item.question.answer, "scoring": rule, "place": place})
    schema = {"predicted": pl.String, "answer": pl.String, "scoring": pl.String, "place": pl.Int32}
    found = benchmark_figures(pl.DataFrame(rows, schema=schema))
    scores = [judge(item.question, text).score for item, text in zip(asked, predicted, strict=True)]
    return {
        "score": float(np.mean(scores)),
        "yes_share": found.get("yes_no/yes_share"),
        "f1": found.get("yes_no/f1"),
        "position_bias": found.get("position_bias"),
    }


def blind_columns(answers: pl.DataFrame) -> dict[str, float]:
    """Columns `blind/TIER` and `blind/TIER/FAMILY` of table `trials`: what one earns without seeing the image.

    The share of right answers when every question gets the best single answer of its tier, family and wording, chosen
    on other images (cross-fitted), with `_low`, `_high`. A point also counts where it is near. A model whose accuracy
    rises to this level has learned how to answer, not what it sees.
    """
    table = answers.with_row_index("row")
    scores = np.zeros(answers.height)
    for (_, family, wording), part in table.group_by(["tier", "family", "wording"], maintain_order=True):
        right, images = part["answer"].to_list(), part["cluster"].to_list()
        place = family == "point" or bool(part["scoring"].is_in(["box", "point"]).all())
        near: Judge | None = (lambda _, wanted, given: _judge_place(wanted, given)[0]) if place else None
        scores[part["row"].to_numpy()] = blind_scores(right, [wording] * len(right), images, judge=near)
    scored = answers.select("tier", "family", "cluster").with_columns(pl.Series("score", scores))
    found: dict[str, float] = {}
    for keys in (["tier"], ["tier", "family"]):
        for names, part in scored.group_by(keys, maintain_order=True):
            name = "/".join(["blind", *map(str, names)])
            _share(found, name, part["score"].to_numpy(), part["cluster"].to_list())
    return found
