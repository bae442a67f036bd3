"""Which layer first puts the right answer above its rivals, and what other tokens say of it: logit and tuned lens.

Read are the prompt's last token, tokens of the question and visual tokens (of objects and of background apart where
boxes are known); visual tokens of a `cross_kv` model never enter the residual stream, so that none are read there.

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
    """What part of its question's visual tokens those of this place are, float64 (M,); 1 for text."""


def tree_of(bench: Bench, i: int) -> tuple[Branch, int] | None:
    """The tree of a question's choices and where its right answer is among `branch_shares`; None where no first token
    after the prompt tells choices apart. Answers that share that token count together."""
    question = bench.asked[i].question
    if question.choices is None or question.answer not in question.choices:
        return None
    tree = bench.adapter.choice_trees.get(question.choices, True)
    if not isinstance(tree, Branch) or tree.prefix:
        return None
    token = token_of(tree, question.choices.index(question.answer))
    return tree, len(tree.children) if token is None else list(tree.children).index(token)


def token_of(tree: Branch, number: int) -> int | None:
    """The first token of an answer; None where it ends at the root."""
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
    """Keep the last token and at most `n_tokens` of each other place of every question that can be read."""
    numbers = [i for i in range(len(bench.asked)) if tree_of(bench, i) is not None]
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
    """Positions of one prompt that are kept, the place of each, and what part of the image that place is."""
    found = [("last", torch.tensor([len(groups) - 1]), 1.0), ("text", (groups == TEXT).nonzero()[:, 0], 1.0)]
    vision = (groups == VISION).nonzero()[:, 0]
    item = bench.asked[i]
    if len(vision) and boxes_of(item) is not None:
        shown = object_tokens(bench.adapter, item, grid)
        found += [(name, vision[which], float(which.float().mean())) for name, which in _parts(shown)]
    elif len(vision):
        found.append(("vision", vision, 1.0))
    places, names, shares = [], [], []
    for name, all_of, share in found:
        some = all_of[torch.linspace(0, len(all_of) - 1, min(n, len(all_of))).round().long()]
        places.append(some)
        names += [name] * len(some)
        shares += [share] * len(some)
    return torch.cat(places), names, shares


def _parts(shown: Bool[Tensor, " V"]) -> Iterator[tuple[str, Bool[Tensor, " V"]]]:
    yield from (pair for pair in (("object", shown), ("background", ~shown)) if bool(pair[1].any()))


def read_scores(bench: Bench, read: Read, lens: str) -> tuple[np.ndarray, np.ndarray]:
    """Probability of the right answer's first token among those of all choices, and its lead over the best rival.

    Both are float64 (L + 1, M).
    """
    trees = {i: tree_of(bench, i) for i in dict.fromkeys(read.question.tolist())}
    clusters = [bench.asked[i].question.cluster for i in read.question]
    folds, visual = folds_of(clusters), torch.from_numpy(np.isin(read.place, IMAGE_PLACES))
    probability, lead = np.empty((2, len(read.states), len(read.question)))
    for layer, own in enumerate(read.states):
        states = own
        if lens == "tuned" and layer < len(read.states) - 1:
            states = own.clone()
            for group in (visual, ~visual):  # visual and text states are different clouds: a map of each
                if bool(group.any()):
                    states[group] = calibrated(own[group], read.states[-1][group], folds[group])
        for start in range(0, len(states), AT_ONCE):
            logits = lens_logits(bench.adapter, states[start : start + AT_ONCE])
            here = read.question[start : start + AT_ONCE]
            for i in dict.fromkeys(here.tolist()):
                found = trees[i]
                assert found is not None, "kept for having a tree"
                rows = np.flatnonzero(here == i)
                shares = branch_shares(found[0], logits[rows]).double().numpy()
                probability[layer, start + rows] = shares[:, found[1]]
                lead[layer, start + rows] = shares[:, found[1]] - np.delete(shares, found[1], axis=1).max(axis=1)
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
            for tier, family, numbers in _scopes(bench, of_place):
                values = np.stack([of_place[i] for i in numbers])  # (n, 2, L + 1)
                clusters = [bench.asked[i].question.cluster for i in numbers]
                names = {"lens": lens, "place": place, "tier": tier, "family": family}
                points += [{**names, **row} for row in _point_rows(values, clusters)]
                if place == "last":
                    layers.append({"lens": lens, "tier": tier, "family": family, **_first(values[:, 1] > 0)})
    return points, layers


def _by_question(read: Read, place: str, probability: np.ndarray, above: np.ndarray) -> dict[int, np.ndarray]:
    """Mean over the kept tokens of a place of each question: (probability, above) by layer, (2, L + 1).

    `vision` is the mean over all visual tokens, of which those of objects and background are samples.
    """
    inside = np.isin(read.place, IMAGE_PLACES) if place == "vision" else read.place == place
    found: dict[int, np.ndarray] = {}
    for i in dict.fromkeys(read.question[inside].tolist()):
        own = np.flatnonzero(inside & (read.question == i))
        weights = np.array([read.share[k] / (read.place[own] == read.place[k]).sum() for k in own])
        weights = weights if place == "vision" else np.ones(len(own))
        found[i] = np.stack([np.average(part[:, own], axis=1, weights=weights) for part in (probability, above)])
    return found


def _scopes(bench: Bench, among: dict[int, np.ndarray]) -> Iterator[tuple[str, str, list[int]]]:
    keys = {i: (bench.asked[i].question.tier, bench.asked[i].question.family) for i in among}
    for tier in dict.fromkeys(t for t, _ in keys.values()):
        yield str(tier), "all", [i for i, (t, _) in keys.items() if t == tier]
        for family in dict.fromkeys(f for t, f in keys.values() if t == tier):
            yield str(tier), family, [i for i, key in keys.items() if key == (tier, family)]


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
    """Where the right answer of the last token is first above its rivals, and where it is so for good."""
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
