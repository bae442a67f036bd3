"""Attention knock-out by route: change of the right answer's probability, and share of answers that flip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from orchestrator.ablate.bench import Answered, Bench
from orchestrator.ablate.places import image_part
from orchestrator.models.batching import Batch
from orchestrator.models.choosing import scores_of
from orchestrator.models.decoding import Generated, continue_greedily, prompted
from orchestrator.models.routes import Route, route_blocked
from orchestrator.stats.intervals import clustered_share, student_interval


def routed(bench: Bench, route: Route, layers: Sequence[int]) -> tuple[Answered, np.ndarray]:
    """Answers with a route blocked in `layers` (none if empty), and the probability of each right answer.

    The probability is among the choices, float64 (n,); NaN for a question without choices.
    """
    chances = np.full(len(bench.examples), np.nan)
    adapter = bench.adapter

    def answer(batch: Batch, chunk: list[int]) -> tuple[Batch, Generated]:
        items = [bench.examples[i] for i in chunk]
        parted = route.source in ("object", "background")
        objects = image_part(adapter, batch, items, "object") if parted else None
        questions = [item.question for item in items]
        trees, numbers = zip(*[_tree(bench, q.choices, q.answer) for q in questions], strict=True)
        with route_blocked(adapter, layers, route, objects), prompted(adapter, batch) as prompts:
            scores = scores_of(prompts, trees, numbers)
            ids = continue_greedily(prompts, bench.max_new_tokens)
        chances[chunk] = [np.nan if score is None else score for score in scores]
        return batch, Generated(ids, 0.0, 0.0, None)

    with torch.no_grad():
        return bench.ask(answer), chances


def _tree(bench: Bench, choices: tuple[str, ...] | None, answer: str) -> tuple[Any, int | None]:
    if choices is None or answer not in choices:
        return None, None
    return bench.adapter.choice_trees.get(choices, True), choices.index(answer)


def route_rows(
    bench: Bench, plain: tuple[Answered, np.ndarray], blocked: tuple[Answered, np.ndarray]
) -> list[dict[str, Any]]:
    """Rows of table `routes` for one setting, without its key columns: each tier as a whole and by family."""
    rows = []
    for tier, family, numbers in bench.scopes():
        clusters = np.array([bench.examples[i].question.cluster for i in numbers])
        rows.append({"tier": tier, "family": family, **_effect(plain, blocked, numbers, clusters)})
    return rows


def _effect(
    plain: tuple[Answered, np.ndarray], blocked: tuple[Answered, np.ndarray], numbers: list[int], clusters: np.ndarray
) -> dict[str, Any]:
    before, after = plain[1][numbers], blocked[1][numbers]
    is_finite = np.isfinite(before) & np.isfinite(after)
    row: dict[str, Any] = dict.fromkeys(("probability", "probability_plain", "change", "change_low", "change_high"))
    if is_finite.any():
        gap = after[is_finite] - before[is_finite]
        images = [gap[clusters[is_finite] == cluster].mean() for cluster in dict.fromkeys(clusters[is_finite])]
        change = student_interval(images)  # an image counts once, however many questions it has
        row |= {
            "probability": float(after[is_finite].mean()),
            "probability_plain": float(before[is_finite].mean()),
            "change": float(np.mean(images)),
            "change_low": change.low,
            "change_high": change.high,
        }
    was_right = plain[0].correct[numbers]
    texts = [(plain[0].predicted[i], blocked[0].predicted[i]) for i in numbers]
    flipped = np.array([a != b for a, b in texts])[was_right]
    share = clustered_share(flipped, clusters[was_right]) if len(flipped) else None
    return row | {
        "accuracy": float(blocked[0].correct[numbers].mean()),
        "accuracy_plain": float(was_right.mean()),
        "flip_share": None if share is None else share.value,
        "ci_low": None if share is None else share.low,
        "ci_high": None if share is None else share.high,
        "n_flippable": len(flipped),
        "n": len(numbers),
    }
