"""The most probable of a closed set of answers, with a single pass over the prompt.

The answers' tokens form a tree. At each branch the model's probabilities are renormalised over the possible next
tokens, and an answer's score is their product along its path. Tokens without an alternative have no effect, so that
long answers or rare word pieces are not penalised; two answers are compared only in the tokens in which they differ.
The scores of a set sum to one. If an answer is a prefix of another ("1" of "12"), stopping has all probability that is
not on a
continuation: a full stop and an end of turn both end an answer.

The search is exact: a branch is expanded only while its probability exceeds that of the best complete answer.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from orchestrator.errors import ModelError
from orchestrator.models.decoding import Prompts
from orchestrator.models.prompts import render

Ids = tuple[int, ...]


@dataclass
class Branch:
    """A node of the tree: answers with a common prefix."""

    prefix: Ids = ()
    """Tokens after the prompt up to this node."""
    ends: int | None = None
    """Index of the answer that ends here."""
    children: dict[int, Branch | int] = field(default_factory=dict)
    """Next token -> a further branch, or the index of the only answer that continues with it."""


def make_tree(choices: Sequence[Ids], prefix: Ids = (), numbers: Sequence[int] | None = None) -> Branch | int:
    """Build the tree of answers; the index of the answer if there is only one.

    Raises:
        ModelError: two answers have the same tokens, or one has none.
    """
    numbers = range(len(choices)) if numbers is None else numbers
    if len(numbers) == 1 and (prefix or len(choices) == 1):
        return numbers[0]
    depth = len(prefix)
    groups: dict[int, list[int]] = {}
    branch = Branch(prefix)
    for i in numbers:
        if len(choices[i]) > depth:
            groups.setdefault(choices[i][depth], []).append(i)
        elif branch.ends is None and depth:
            branch.ends = i
        else:
            raise ModelError(f"choices: two have the same tokens {list(choices[i])}, or one has none")
    for token, inside in groups.items():
        branch.children[token] = make_tree(choices, (*prefix, token), inside)
    if len(branch.children) == 1 and branch.ends is None:
        return next(iter(branch.children.values()))
    return branch


def choice_ids(processor: Any, family: str, choices: Sequence[str], image: bool = True) -> list[Ids]:
    """Return each answer's tokens after a prompt, without end-of-turn tokens."""
    tokenizer = getattr(processor, "tokenizer", processor)
    special = set(getattr(tokenizer, "all_special_ids", ()))
    ids_of_choices = []
    for choice in choices:
        continuation = render(processor, family, "?", image=image, answer=choice)[1]
        ids = list(tokenizer(continuation, add_special_tokens=False)["input_ids"])
        while len(ids) > 1 and ids[-1] in special:
            ids.pop()
        ids_of_choices.append(tuple(ids))
    return ids_of_choices


class ChoiceTrees:
    """Cached trees of answers of one model, one per set of choices."""

    def __init__(self, processor: Any, family: str) -> None:
        self.get = cache(lambda choices, image: make_tree(choice_ids(processor, family, choices, image)))


def branch_probabilities(branch: Branch, logits: Tensor) -> dict[int | None, float]:
    """Probability of each next token of a branch, and of stopping (None); they sum to one.

    Args:
        logits: of the token after the branch's prefix, (vocabulary,).
    """
    tokens = list(branch.children)
    log = logits.float().log_softmax(-1)[torch.tensor(tokens, device=logits.device)]
    if branch.ends is None:
        return dict(zip(tokens, log.softmax(-1).tolist(), strict=True))
    going_on = log.exp().tolist()
    return {**dict(zip(tokens, going_on, strict=True)), None: max(0.0, 1.0 - sum(going_on))}


@torch.no_grad()
def choose(prompts: Prompts, trees: Sequence[Branch | int | None]) -> list[tuple[int, float] | None]:
    """Return the number and score of the best answer of each row; None for a row without a tree.

    Needs no pass if all answers of a row differ in their first token, else one decoding step per token of the
    branches that may contain the best answer. The prompts' cache is unchanged.
    """
    queues = [_Queue(tree, prompts.logits[row]) for row, tree in enumerate(trees)]
    while any(queue.open for queue in queues):
        waiting = {row: queue.open.prefix for row, queue in enumerate(queues) if queue.open}
        pad = prompts.adapter.pad_token_id
        for place in range(max(map(len, waiting.values()))):
            tokens = [waiting.get(row, ())[place : place + 1] or (pad,) for row in range(len(queues))]
            logits = prompts.step(torch.tensor(tokens, device=prompts.logits.device)[:, 0])
            for row, prefix in waiting.items():
                if len(prefix) == place + 1:
                    queues[row].look_into(logits[row])
        prompts.rewind()
    return [queue.best for queue in queues]


@torch.no_grad()
def scores_of(
    prompts: Prompts, trees: Sequence[Branch | int | None], numbers: Sequence[int | None]
) -> list[float | None]:
    """Return the score of one answer of each row, `choose`'s for the best; None for a row without a tree or number.

    The prompts' cache is unchanged.
    """
    paths = [None if tree is None or n is None else _path(tree, n) for tree, n in zip(trees, numbers, strict=True)]
    scores: list[float | None] = [None if path is None else 1.0 for path in paths]
    longest = [max((b.prefix for b, _ in path or ()), key=len, default=()) for path in paths]
    logits, pad = prompts.logits, prompts.adapter.pad_token_id
    for place in range(max(map(len, longest), default=0) + 1):
        if place:
            tokens = [prefix[place - 1 : place] or (pad,) for prefix in longest]
            logits = prompts.step(torch.tensor(tokens, device=logits.device)[:, 0])
        for row, path in enumerate(paths):
            for branch, token in path or ():
                if len(branch.prefix) == place:
                    scores[row] = (scores[row] or 0.0) * branch_probabilities(branch, logits[row])[token]
    prompts.rewind()
    return scores


def _path(tree: Branch | int, number: int) -> list[tuple[Branch, int | None]] | None:
    """Branches on the path to an answer, with the token chosen at each (None: stop)."""
    if not isinstance(tree, Branch):
        return [] if tree == number else None
    if tree.ends == number:
        return [(tree, None)]
    for token, child in tree.children.items():
        rest = _path(child, number)
        if rest is not None:
            return [(tree, token), *rest]
    return None


class _Queue:
    """Best-first search of one row's tree."""

    def __init__(self, tree: Branch | int | None, logits: Tensor) -> None:
        self._heap: list[tuple[float, int, Branch | int]] = []
        self._count = 0
        self.open: Branch | None = None
        """The branch whose logits are needed next."""
        self.best: tuple[int, float] | None = None
        if tree is not None:
            self._push(1.0, tree)
            self._pop()
        if self.open is not None and not self.open.prefix:
            self.look_into(logits)

    def look_into(self, logits: Tensor) -> None:
        """Take the logits after the open branch's prefix."""
        assert self.open is not None
        for token, share in branch_probabilities(self.open, logits).items():
            child = self.open.ends if token is None else self.open.children[token]
            assert child is not None
            self._push(self._score * share, child)
        self._pop()

    def _push(self, score: float, node: Branch | int) -> None:
        self._count += 1  # ties: the first wins
        heapq.heappush(self._heap, (-score, self._count, node))

    def _pop(self) -> None:
        score, _, node = heapq.heappop(self._heap)
        self._score = -score
        if isinstance(node, Branch):
            self.open = node
        else:
            self.open, self.best = None, (node, -score)
