"""What a model answers: greedy answers or scored choices, judged by exact match; tables and accuracies with intervals.

An answer is right when it equals the expected one after normalisation. Coordinates cannot be hit exactly: a point is
right within `POINT_TOLERANCE` of the centre, a box when it overlaps the expected one by `BOX_OVERLAP` (the usual rule
for referring expressions, Yu et al. 2016). The raw distance is kept beside it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import polars as pl
import torch
from scipy.stats import binomtest

from orchestrator.data.questions import Question
from orchestrator.finetune.prepared import Asked, Prepared, in_halves
from orchestrator.finetune.train import answer_logits
from orchestrator.models.adapter import Adapter
from orchestrator.store.tables.core import check_table

POINT_TOLERANCE = 0.05
"""Largest distance of a right point from the object's centre, in shares of the image."""
BOX_OVERLAP = 0.5
"""Least intersection over union of a right box."""
MAX_NEW_TOKENS = 16
CONFIDENCE = 0.95

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


def judge(question: Question, predicted: str) -> tuple[bool, float | None]:
    """Whether an answer is right, and its error: of a count in objects, of a point or box in shares of the image.

    The error is None for other families and for answers without the numbers it needs.
    """
    if question.family == "point":
        return _judge_place(question.answer, predicted)
    correct = normalise(predicted) == normalise(question.answer)
    if question.family.startswith("count"):
        found = _numbers(normalise(predicted))
        return correct, float(abs(found[0] - int(question.answer))) if found else None
    return correct, None


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d{1,6}", text)]


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


def predict(
    adapter: Adapter, prepared: Prepared, asked: Sequence[Asked], batch_size: int, *, by: str = "generate"
) -> list[str]:
    """The model's answer to each question, in order.

    Args:
        by: `generate` decodes greedily; `score` takes the most probable of a question's choices, and decodes where it
            has none.
    """
    answers: dict[int, str] = {}
    scored = [i for i, a in enumerate(asked) if by == "score" and a.question.choices]
    for i in scored:
        answers[i] = most_probable_choice(adapter, prepared, asked[i], batch_size)
    decoded = [i for i in range(len(asked)) if i not in answers]
    examples = {i: prepared.prompt(asked[i]) for i in decoded}

    def answer(chunk: Sequence[int]) -> None:
        batch = adapter.collate([examples[i] for i in chunk])
        answers.update(zip(chunk, adapter.generate(batch, max_new_tokens=MAX_NEW_TOKENS), strict=True))

    in_halves(prepared.batches(examples, batch_size), answer)
    return [answers[i] for i in range(len(asked))]


@torch.no_grad()
def most_probable_choice(adapter: Adapter, prepared: Prepared, asked: Asked, batch_size: int) -> str:
    """The choice whose tokens, end of answer included, have the greatest total log-probability."""
    choices = asked.question.choices or ()
    scores: list[float] = []
    for start in range(0, len(choices), batch_size):
        examples = [prepared.with_answer(asked, choice) for choice in choices[start : start + batch_size]]
        logits, labels = answer_logits(adapter, adapter.collate(examples))
        targets = labels[:, 1:].to(logits.device)
        chosen = logits[:, :-1].float().log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        scores += chosen.masked_fill(targets == -100, 0.0).sum(1).tolist()
    return choices[max(range(len(choices)), key=scores.__getitem__)]


def answer_table(asked: Sequence[Asked], predicted: Sequence[str]) -> pl.DataFrame:
    """Table `answers`."""
    rows: list[dict[str, Any]] = []
    for item, answer in zip(asked, predicted, strict=True):
        question = item.question
        correct, error = judge(question, answer)
        rows.append(
            {
                "question_id": question.question_id,
                "image_id": question.image_id,
                "family": question.family,
                "tier": question.tier,
                "wording": str(question.detail["wording"]),
                "question": question.text,
                "answer": question.answer,
                "predicted": answer,
                "correct": correct,
                "error": error,
            }
        )
    return check_table(pl.DataFrame(rows, infer_schema_length=None), "answers")


def wilson(k: int, n: int) -> tuple[float, float]:
    """Wilson score interval of a share k / n at `CONFIDENCE` (Wilson 1927)."""
    interval = binomtest(k, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def accuracy_columns(answers: pl.DataFrame, prefix: str = "") -> dict[str, float]:
    """Columns of table `trials`: shares of right answers and mean errors.

    `accuracy/TIER` and `accuracy/TIER/FAMILY` with `_low`, `_high` (Wilson) beside each; `count_error/TIER` in objects
    and `point_distance/TIER` in shares of the image, over the answers that hold the numbers they need. `prefix` goes
    after the first word (`accuracy_base/...`).
    """
    found: dict[str, float] = {}
    for keys in (["tier"], ["tier", "family"]):
        for values, part in answers.group_by(keys, maintain_order=True):
            name = f"accuracy{prefix}/" + "/".join(str(v) for v in values)
            k, n = int(part["correct"].sum()), part.height
            found[name] = k / n
            found[f"{name}_low"], found[f"{name}_high"] = wilson(k, n)
    for name, families in (("count_error", ["count", "count_by_attribute"]), ("point_distance", ["point"])):
        errors = answers.filter(pl.col("family").is_in(families) & pl.col("error").is_not_null())
        for (tier,), part in errors.group_by(["tier"], maintain_order=True):
            found[f"{name}{prefix}/{tier}"] = float(part["error"].to_numpy().mean())
    return found


def _best_constant(family: str, answers: Sequence[str]) -> int:
    """How many questions the best single one of their true answers gets right: a point also counts where it is near."""
    if family != "point":
        return Counter(answers).most_common(1)[0][1]
    return max(sum(_judge_place(wanted, given)[0] for wanted in answers) for given in set(answers))


def blind_columns(answers: pl.DataFrame) -> dict[str, float]:
    """Columns `blind/TIER` and `blind/TIER/FAMILY` of table `trials`: what one earns without seeing the image.

    The share of right answers when every question gets the best of the true answers of its tier, family and wording;
    as these are the questions themselves, slightly more than a blind model can hope for. A model whose accuracy rises
    to this level has learned how to answer, not what it sees.
    """
    keys = ["tier", "family", "wording"]
    parts = answers.group_by(keys, maintain_order=True)
    rows = [(*values, part.height, _best_constant(values[1], part["answer"].to_list())) for values, part in parts]
    groups = pl.DataFrame(rows, schema=[*keys, "n", "right"], orient="row")
    found: dict[str, float] = {}
    for keys in (["tier"], ["tier", "family"]):
        for *names, right, n in groups.group_by(keys).agg(pl.col("right").sum(), pl.col("n").sum()).sort(keys).rows():
            found["/".join(["blind", *names])] = right / n
    return found
