"""What a model answers: scored choices and free generation, judged; tables and accuracies with intervals.

A question with a closed set of answers, numbers included, is judged by the most probable of its choices
(`models/choosing.py`), so that accuracy is content and not form; what the model writes by itself is kept beside it,
with whether it is one of the choices. `judging` says what is right. Intervals are clustered by image or group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from orchestrator.answers.judging import is_valid, judge, judge_place, read_answer
from orchestrator.answers.places import Asked, as_judged, window_of
from orchestrator.answers.prepared import Prepared
from orchestrator.data.files.scoring import LETTERS, SOFT, listed_place, position_bias, yes_no_summary
from orchestrator.data.questions import Question
from orchestrator.models.adapter import Adapter
from orchestrator.models.memory import retry_with_smaller_batch
from orchestrator.stats.blind import Judge, blind_scores
from orchestrator.stats.intervals import clustered_share
from orchestrator.store.tables.core import check_table

MAX_NEW_TOKENS = 16
"""Most tokens of a generated answer; and no more than the longest right answer has, and two."""
MAX_SENTENCE_TOKENS = 48
"""Most tokens where the answer is read from a whole sentence: by POPE's rule, or extracted."""


@dataclass(frozen=True)
class Reply:
    """What a model answered; a point or box in hundredths of the picture itself, whatever part of it was seen."""

    predicted: str
    """The answer that is judged: the most probable choice, or what was generated."""
    generated: str
    """What the model wrote by itself, greedily."""


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
        answered = adapter.answer(adapter.collate([examples[i] for i in chunk]), choices, max_new_tokens=limit)
        for i, (written, chosen) in zip(chunk, answered, strict=True):
            generated = as_judged(asked[i].question, written, window_of(adapter, asked[i]))
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
                **question.keys,
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


def _share(columns: dict[str, float], name: str, values: Any, images: Sequence[str]) -> None:
    """Add a share with its interval, clustered by image, where there is one."""
    estimate = clustered_share(values, images)
    columns[name] = estimate.value
    if estimate.low is not None and estimate.high is not None:
        columns[f"{name}_low"], columns[f"{name}_high"] = estimate.low, estimate.high


def accuracy_columns(answers: pl.DataFrame, prefix: str = "") -> dict[str, float]:
    """Columns of table `trials`: shares of right answers and mean errors.

    `accuracy/TIER` and `accuracy/TIER/FAMILY` with `_low`, `_high` (clustered by image) beside each;
    `accuracy_generated/...` of what the model wrote by itself and `valid_share/...` of it that has the form of an
    answer; `count_error/TIER` in objects and `point_distance/TIER` in shares of the image, over the answers that hold
    the numbers they need. `prefix` goes after the first word (`accuracy_base/...`). Question files add the figures of
    their benchmark (`benchmark_figures`): `score/...` with its interval, `yes_no/...` and `position_bias/...`.
    """
    columns: dict[str, float] = {}
    for keys in (["tier"], ["tier", "family"]):
        for values, part in answers.group_by(keys, maintain_order=True):
            name = "/".join(str(v) for v in values)
            _share(columns, f"accuracy{prefix}/{name}", part["correct"].to_numpy(), part["cluster"].to_list())
            columns[f"accuracy_generated{prefix}/{name}"] = float(part["generated_correct"].to_numpy().mean())
            columns[f"valid_share{prefix}/{name}"] = float(part["valid"].to_numpy().mean())
            if part["scoring"].is_in(SOFT).any():
                _share(columns, f"score{prefix}/{name}", part["score"].to_numpy(), part["cluster"].to_list())
            for key, value in benchmark_figures(part).items():
                kind, _, figure = key.partition("/")
                columns["/".join([f"{kind}{prefix}", name, *filter(None, [figure])])] = value
    for name, families in (("count_error", ["count", "count_by_attribute"]), ("point_distance", ["point"])):
        errors = answers.filter(pl.col("family").is_in(families) & pl.col("error").is_not_null())
        for (tier,), part in errors.group_by(["tier"], maintain_order=True):
            columns[f"{name}{prefix}/{tier}"] = float(part["error"].to_numpy().mean())
    return columns


def benchmark_figures(answers: pl.DataFrame) -> dict[str, float]:
    """What benchmarks report beside accuracy, of rows with `predicted`, `answer`, `scoring` and `place`.

    `yes_no/precision`, `/recall`, `/f1` of yes and `/yes_share` where answers are judged as yes or no (POPE);
    `position_bias` where choices are listed: total variation distance of the places answered from the uniform, and
    `position_bias_right`, that of the right answers' places, which is what drawing the order leaves by chance.
    """
    measured: dict[str, float] = {}
    asked = answers.filter(pl.col("scoring") == "yes_no")
    if asked.height:
        figures = yes_no_summary(asked["predicted"].to_list(), asked["answer"].to_list())
        measured |= {f"yes_no/{key}": value for key, value in figures.items() if key != "accuracy"}
    listed = answers.drop_nulls("place")
    if listed.height:
        right = [LETTERS.index(answer) for answer in listed["answer"]]
        n = max(*right, *listed["place"].to_list()) + 1
        measured["position_bias"] = position_bias(listed["place"].to_list(), n)
        measured["position_bias_right"] = position_bias(right, n)
    return measured


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
    measured = benchmark_figures(pl.DataFrame(rows, schema=schema))
    scores = [judge(item.question, text).score for item, text in zip(asked, predicted, strict=True)]
    return {
        "score": float(np.mean(scores)),
        "yes_share": measured.get("yes_no/yes_share"),
        "f1": measured.get("yes_no/f1"),
        "position_bias": measured.get("position_bias"),
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
        near: Judge | None = (lambda _, wanted, given: judge_place(wanted, given)[0]) if place else None
        scores[part["row"].to_numpy()] = blind_scores(right, [wording] * len(right), images, judge=near)
    scored = answers.select("tier", "family", "cluster").with_columns(pl.Series("score", scores))
    columns: dict[str, float] = {}
    for keys in (["tier"], ["tier", "family"]):
        for names, part in scored.group_by(keys, maintain_order=True):
            name = "/".join(["blind", *map(str, names)])
            _share(columns, name, part["score"].to_numpy(), part["cluster"].to_list())
    return columns
