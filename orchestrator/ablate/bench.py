"""Questions asked of one model while something is done to its visual tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from torch import Tensor

from orchestrator.ablate.selection import keep_mask, random_scores, score_tokens, seen_size, shrink
from orchestrator.answers.evaluate import answer_limit, judge
from orchestrator.data.mixture import Example
from orchestrator.models.adapter import Adapter
from orchestrator.models.batching import Batch
from orchestrator.models.interventions import vision_blocked, vision_patched, vision_states
from orchestrator.models.memory import retry_with_smaller_batch

Answer = Callable[[Batch, list[int]], tuple[Batch, list[str]]]
"""Takes a batch and the numbers of its questions; returns the batch as it was answered, and the answers."""


@dataclass(frozen=True)
class Answered:
    """Answers in the order of the questions asked."""

    predicted: list[str]
    correct: np.ndarray
    """bool (n,)"""
    kept: np.ndarray
    """Visual tokens the decoder saw to the end, int64 (n,)."""
    seconds: float
    """Time of selection and generation, s; preparing inputs is left out."""
    score: np.ndarray
    """float64 (n,), by the rule of each question."""


class Bench:
    """A model and a fixed set of questions, prepared once and batched by like length.

    Args:
        adapter: the model.
        asked: questions with their images.
        batch_size: questions a forward pass; halved for a batch that does not fit the GPU's memory.
        instruction: words put after every question.
    """

    def __init__(self, adapter: Adapter, asked: Sequence[Example], batch_size: int, instruction: str = "") -> None:
        self.adapter, self.asked, self.batch_size = adapter, list(asked), batch_size
        self.texts = [f"{item.question.text} {instruction}".strip() for item in self.asked]
        images = (item.image() for item in self.asked)
        self.inputs = [adapter.prepare(image, text) for image, text in zip(images, self.texts, strict=True)]
        self.max_new_tokens = answer_limit(adapter, [item.question for item in self.asked])
        self._scores: dict[tuple[str, int, int], tuple[Tensor, float]] = {}

    # ------------------------------------------------------------ asking

    @cached_property
    def plain(self) -> Answered:
        """The answers with nothing done to the tokens."""
        return self.unchanged()

    def unchanged(self, numbers: Sequence[int] | None = None) -> Answered:
        """Ask with nothing done to the tokens, however often that was asked before."""
        return self.ask(self._generate, numbers)

    def ask(
        self, answer: Answer, numbers: Sequence[int] | None = None, inputs: Sequence[Batch] | None = None
    ) -> Answered:
        """Ask the questions `numbers` (all when absent), of other `inputs` than the prepared ones where given."""
        numbers = range(len(self.asked)) if numbers is None else numbers
        inputs = self.inputs if inputs is None else inputs
        predicted: dict[int, str] = {}
        kept: dict[int, int] = {}
        seconds = 0.0

        def ask_some(chunk: Sequence[int]) -> None:
            nonlocal seconds
            batch = self.adapter.collate([inputs[i] for i in chunk])
            started = time.perf_counter()
            answered, texts = answer(batch, list(chunk))
            seconds += time.perf_counter() - started
            counts = answered["keep"].sum(dim=1) if "keep" in answered else self.adapter.n_vision(answered)
            predicted.update(zip(chunk, texts, strict=True))
            kept.update(zip(chunk, counts.tolist(), strict=True))

        retry_with_smaller_batch(self.batches(numbers, inputs), ask_some)
        judged = [judge(self.asked[i].question, predicted[i]) for i in numbers]
        return Answered(
            [predicted[i] for i in numbers],
            np.array([one.correct for one in judged]),
            np.array([kept[i] for i in numbers]),
            seconds,
            np.array([one.score for one in judged]),
        )

    def batches(self, numbers: Sequence[int], inputs: Sequence[Batch]) -> list[list[int]]:
        """`numbers` in batches that may be collated, similar lengths together."""
        groups: dict[tuple[str, ...], list[int]] = {}
        for i in sorted(numbers, key=lambda i: inputs[i]["input_ids"].shape[1]):
            groups.setdefault(self.adapter.bucket(inputs[i]), []).append(i)
        size = self.batch_size
        return [found[k : k + size] for found in groups.values() for k in range(0, len(found), size)]

    def _generate(self, batch: Batch, chunk: list[int]) -> tuple[Batch, list[str]]:
        return batch, self.adapter.generate(batch, max_new_tokens=self.max_new_tokens)

    # ------------------------------------------------------------ what is done to the tokens

    def deleted(self, method: str, deleted_share: float, *, seed: int = 0, layer: int = 0) -> Answered:
        """Answers with a share of visual tokens deleted: after the projector (`layer` 0) or after `layer` layers."""
        if deleted_share == 0.0:
            return self.plain
        return self.keeping([deleted_share] * len(self.asked), method, seed=seed, layer=layer)

    def keeping(
        self,
        shares: Sequence[float],
        method: str,
        *,
        seed: int = 0,
        layer: int = 0,
        numbers: Sequence[int] | None = None,
    ) -> Answered:
        """Answers with a share of tokens deleted that differs from question to question.

        Tokens are deleted by shortening the sequence, so that the time saved is real. Scores of a method are computed
        once for each question, in a pass of their own, and that time counts every time they are used.

        Args:
            shares: share deleted, for every question of the bench.
            numbers: ask these only.
        """
        if method == "downsample":
            numbers = range(len(self.asked)) if numbers is None else numbers
            inputs = list(self.inputs)
            for i in numbers:
                inputs[i] = self._shrunk(i, shares[i])
            return self.ask(self._generate, numbers, inputs)
        reused = 0.0

        def answer(batch: Batch, chunk: list[int]) -> tuple[Batch, list[str]]:
            nonlocal reused
            scores, earlier = self._scored(batch, chunk, method, layer, seed)
            reused += earlier
            keep = keep_mask(scores, [shares[i] for i in chunk])
            return self._generate(self.adapter.drop(batch, keep, layer=layer), chunk)

        found = self.ask(answer, numbers)
        return replace(found, seconds=found.seconds + reused)

    def _shrunk(self, i: int, deleted_share: float) -> Batch:
        image = self.asked[i].image()
        if image is None or deleted_share == 0.0:
            return self.inputs[i]
        if deleted_share == 1.0:
            return self.adapter.prepare(None, self.texts[i])
        return self.adapter.prepare(shrink(image, deleted_share, seen_size(self.inputs[i])), self.texts[i])

    def _scored(self, batch: Batch, chunk: list[int], method: str, layer: int, seed: int) -> tuple[list[Tensor], float]:
        """Scores of a batch's tokens, and the time an earlier call spent on those that are reused, s."""
        if method == "random":
            counts = self.adapter.n_vision(batch).tolist()
            return [random_scores(n, (seed, i)) for n, i in zip(counts, chunk, strict=True)], 0.0
        keys = [(method, layer, i) for i in chunk]
        if not all(key in self._scores for key in keys):
            started = time.perf_counter()
            scores = score_tokens(self.adapter, batch, method, layer)
            each = (time.perf_counter() - started) / len(chunk)
            self._scores |= {key: (score, each) for key, score in zip(keys, scores, strict=True)}
            return scores, 0.0
        return [self._scores[key][0] for key in keys], sum(self._scores[key][1] for key in keys)

    def blocked(self, layers: Sequence[int]) -> Answered:
        """Answers with attention from other tokens to visual ones blocked in `layers`."""
        if not layers:
            return self.plain
        with vision_blocked(self.adapter, layers):
            return self.ask(self._generate)

    def patched(self, donors: Bench, layer: int) -> Answered:
        """Answers about each image with the donor image's visual states put in place at the input of `layer`."""

        def answer(batch: Batch, chunk: list[int]) -> tuple[Batch, list[str]]:
            states = vision_states(self.adapter, self.adapter.collate([donors.inputs[i] for i in chunk]), layer)
            with vision_patched(self.adapter, layer, states):
                return self._generate(batch, chunk)

        return self.ask(answer)
