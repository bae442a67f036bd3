"""Logit lens and tuned lens: the first layer at which the right answer outranks the other choices, by kind of token.

Tokens read: the prompt's last token, tokens of the question and visual tokens (objects and background separately if
boxes are known). Visual tokens of a `cross_kv` model never enter the residual stream and are not read.

Shapes: n questions, K kept tokens of one, L decoder layers, M kept tokens of all questions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from orchestrator.ablate.bench import Bench
from orchestrator.ablate.places import object_tokens
from orchestrator.ablate.tuned_lens import calibrated, folds_of
from orchestrator.data.boxes import boxes_of
from orchestrator.models.choosing import Branch
from orchestrator.models.groups import TEXT, VISION
from orchestrator.models.lens import AT_ONCE, branch_shares, kept_states, lens_logits
from orchestrator.stats.intervals import clustered_share

LENSES = ("logit", "tuned")
IMAGE_PLACES = ("object", "background", "vision")


@dataclass(frozen=True)
class Read:
    """Kept tokens of questions with choices that differ in their first token."""

    states: Float[Tensor, "L1 M D"]
    question: np.ndarray
    """Number of each token's question, int64 (M,)."""
    place: np.ndarray
    """`last`, `text`, `object`, `background`, or `vision` where boxes are not known, (M,)."""
    share: np.ndarray
    """Share of the question's visual tokens that lie at this place, float64 (M,); 1 for text."""


def tree_of(bench: Bench, i: int) -> tuple[Branch, int] | None:
    """The tree of a question's choices and the index of the right answer in `branch_shares`; None if all choices begin
    with the same token. Choices with the same first token are counted together."""
    question = bench.examples[i].question
    if question.choices is None or question.answer not in question.choices:
        return None
    tree = bench.adapter.choice_trees.get(question.choices, True)
    if not isinstance(tree, Branch) or tree.prefix:
        return None
    token = token_of(tree, question.choices.index(question.answer))
    return tree, len(tree.children) if token is None else list(tree.children).index(token)


def token_of(tree: Branch, number: int) -> int | None:
    """The first token of an answer; None if the answer ends at the root."""
    for token, child in tree.children.items():
        if child == number or (isinstance(child, Branch) and _holds(child, number)):
            return token
    return None


def _holds(branch: Branch, number: int) -> bool:
    if branch.ends == number:
        return True
    return any(c == number or (isinstance(c, Branch) and _holds(c, number)) for c in branch.children.values())


# ---------------------------------------------------------------- reading


def read_states(bench: Bench, n_tokens: int) -> Read:
    """States of the last token and of at most `n_tokens` tokens of every other place, for questions with a tree."""
    numbers = [i for i in range(len(bench.examples)) if tree_of(bench, i) is not None]
    parts: dict[int, tuple[Tensor, list[str], list[float]]] = {}
    for chunk in bench.batches(numbers, bench.inputs):
        batch = bench.adapter.collate([bench.inputs[i] for i in chunk])
        groups, grids = bench.adapter.full_groups(batch), bench.adapter.vision_grid(batch)
        kept = [_kept(bench, i, groups[row], grids[row], n_tokens) for row, i in enumerate(chunk)]
        index = torch.nn.utils.rnn.pad_sequence([places for places, _, _ in kept], batch_first=True)
        states = kept_states(bench.adapter, batch, index)
        for row, (i, (places, names, shares)) in enumerate(zip(chunk, kept, strict=True)):
            parts[i] = states[:, row, : len(places)], names, shares
    order = [i for i in numbers for _ in parts[i][1]]
    return Read(
        torch.cat([parts[i][0] for i in numbers], dim=1) if numbers else torch.zeros(bench.adapter.n_layers + 1, 0, 1),
        np.array(order, dtype=np.int64),
        np.array([name for i in numbers for name in parts[i][1]]),
        np.array([share for i in numbers for share in parts[i][2]]),
    )


def _kept(bench: Bench, i: int, groups: Tensor, grid: Tensor, n: int) -> tuple[Tensor, list[str], list[float]]:
    """Kept positions of one prompt, the place of each, and the place's share of the visual tokens."""
    token_sets = [("last", torch.tensor([len(groups) - 1]), 1.0), ("text", (groups == TEXT).nonzero()[:, 0], 1.0)]
    vision = (groups == VISION).nonzero()[:, 0]
    item = bench.examples[i]
    if len(vision) and boxes_of(item) is not None:
        shown = object_tokens(bench.adapter, item, grid)
        token_sets += [(name, vision[mask], float(mask.float().mean())) for name, mask in _parts(shown)]
    elif len(vision):
        token_sets.append(("vision", vision, 1.0))
    places, names, shares = [], [], []
    for name, positions, share in token_sets:
        sampled = positions[torch.linspace(0, len(positions) - 1, min(n, len(positions))).round().long()]
        places.append(sampled)
        names += [name] * len(sampled)
        shares += [share] * len(sampled)
    return torch.cat(places), names, shares


def _parts(shown: Bool[Tensor, " V"]) -> Iterator[tuple[str, Bool[Tensor, " V"]]]:
    yield from (pair for pair in (("object", shown), ("background", ~shown)) if bool(pair[1].any()))


def read_scores(bench: Bench, read: Read, lens: str) -> tuple[np.ndarray, np.ndarray]:
    """Probability of the right answer's first token among those of all choices, and its lead over the best other one.

    Both are float64 (L + 1, M).
    """
    trees = {i: tree_of(bench, i) for i in dict.fromkeys(read.question.tolist())}
    clusters = [bench.examples[i].question.cluster for i in read.question]
    folds, visual = folds_of(clusters), torch.from_numpy(np.isin(read.place, IMAGE_PLACES))
    probability, lead = np.empty((2, len(read.states), len(read.question)))
    for layer, layer_states in enumerate(read.states):
        states = layer_states
        if lens == "tuned" and layer < len(read.states) - 1:
            states = layer_states.clone()
            for group in (visual, ~visual):  # visual and text states are distributed differently: one map each
                if bool(group.any()):
                    states[group] = calibrated(layer_states[group], read.states[-1][group], folds[group])
        for start in range(0, len(states), AT_ONCE):
            logits = lens_logits(bench.adapter, states[start : start + AT_ONCE])
            chunk = read.question[start : start + AT_ONCE]
            for i in dict.fromkeys(chunk.tolist()):
                tree = trees[i]
                assert tree is not None, "kept for having a tree"
                rows = np.flatnonzero(chunk == i)
                shares = branch_shares(tree[0], logits[rows]).double().numpy()
                probability[layer, start + rows] = shares[:, tree[1]]
                lead[layer, start + rows] = shares[:, tree[1]] - np.delete(shares, tree[1], axis=1).max(axis=1)
    return probability, lead


# ---------------------------------------------------------------- rows


def lens_rows(bench: Bench, n_tokens: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of tables `lens` and `lens_layers`, without the checkpoint: each tier as a whole and by family."""
    read = read_states(bench, n_tokens)
    points, layers = [], []
    for lens in LENSES:
        probability, lead = read_scores(bench, read, lens)
        for place in ("last", "text", *IMAGE_PLACES):
            of_place = _by_question(read, place, probability, (lead > 0).astype(float))
            for tier, family, numbers in bench.scopes(of_place):
                values = np.stack([of_place[i] for i in numbers])  # (n, 2, L + 1)
                clusters = [bench.examples[i].question.cluster for i in numbers]
                names = {"lens": lens, "place": place, "tier": tier, "family": family}
                points += [{**names, **row} for row in _point_rows(values, clusters)]
                if place == "last":
                    layers.append({"lens": lens, "tier": tier, "family": family, **_first(values[:, 1] > 0)})
    return points, layers


def _by_question(read: Read, place: str, probability: np.ndarray, above: np.ndarray) -> dict[int, np.ndarray]:
    """Mean of (probability, above) by layer over each question's kept tokens of a place, (2, L + 1).

    For `vision`, tokens of objects and background are weighted by their share of the visual tokens.
    """
    inside = np.isin(read.place, IMAGE_PLACES) if place == "vision" else read.place == place
    by_question: dict[int, np.ndarray] = {}
    for i in dict.fromkeys(read.question[inside].tolist()):
        tokens = np.flatnonzero(inside & (read.question == i))
        weights = np.array([read.share[k] / (read.place[tokens] == read.place[k]).sum() for k in tokens])
        weights = weights if place == "vision" else np.ones(len(tokens))
        by_question[i] = np.stack(
            [np.average(part[:, tokens], axis=1, weights=weights) for part in (probability, above)]
        )
    return by_question


def _point_rows(values: Float[np.ndarray, "n two L1"], clusters: list[str]) -> Iterator[dict[str, Any]]:
    settled = np.flip(np.minimum.accumulate(np.flip(values[:, 1] > 0.5, 1), 1), 1)
    for layer in range(values.shape[2]):
        share = clustered_share(values[:, 1, layer], clusters)
        yield {
            "layer": layer,
            "probability": float(values[:, 0, layer].mean()),
            "above": share.value,
            "ci_low": share.low,
            "ci_high": share.high,
            "settled": float(settled[:, layer].mean()),
            "n": len(values),
        }


def _first(above: Bool[np.ndarray, "n L1"]) -> dict[str, Any]:
    """Layer at which the last token's right answer first outranks the other choices, and from which it always does."""
    settled = np.flip(np.minimum.accumulate(np.flip(above, 1), 1), 1)
    ever, stays = above.any(1), settled[:, -1]
    first, good = above[ever].argmax(1), settled[stays].argmax(1)

    def quantile(of: np.ndarray, q: float) -> float | None:
        return float(np.quantile(of, q, method="inverted_cdf")) if len(of) else None

    return {
        "first": quantile(first, 0.5),
        "first_quarter": quantile(first, 0.25),
        "first_three_quarters": quantile(first, 0.75),
        "for_good": quantile(good, 0.5),
        "never_share": float(1 - ever.mean()),
        "right_share": float(stays.mean()),
        "n": len(above),
    }
