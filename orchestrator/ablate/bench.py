"""Questions asked of one model while something is done to its visual tokens."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from orchestrator.ablate.selection import keep_mask, score_tokens, shrink
from orchestrator.data.mixture import Example
from orchestrator.finetune.evaluate import judge
from orchestrator.models.adapter import Adapter
from orchestrator.models.batching import Batch
from orchestrator.models.interventions import vision_blocked, vision_patched, vision_states

MAX_NEW_TOKENS = 8

Change = Callable[[Batch, list[int]], Batch]
"""Takes a batch and the numbers of its questions, returns the batch to answer instead."""


@dataclass(frozen=True)
class Answered:
    """Answers in the order of the questions."""

    predicted: list[str]
    correct: np.ndarray
    """bool (n,)"""
    kept: np.ndarray
    """Visual tokens the decoder saw, int (n,)."""
    seconds: float
    """Time of generation, selection of tokens included, s."""


class Bench:
    """A model and a fixed set of questions, prepared once and batched by like length.

    Args:
        adapter: the model.
        asked: questions with their images.
        batch_size: questions a forward pass.
    """

    def __init__(self, adapter: Adapter, asked: Sequence[Example], batch_size: int) -> None:
        self.adapter, self.asked, self.batch_size = adapter, list(asked), batch_size
        self.inputs = [adapter.prepare(item.image(), item.question.text) for item in self.asked]

    def answer(self, change: Change | None = None, inputs: Sequence[Batch] | None = None) -> Answered:
        """Answer every question; `change` deletes tokens, `inputs` replaces the prepared images and prompts."""
        inputs = self.inputs if inputs is None else inputs
        predicted, kept = [""] * len(inputs), np.zeros(len(inputs), dtype=np.int64)
        seconds = 0.0
        for numbers in self.batches(inputs):
            batch = self.adapter.collate([inputs[i] for i in numbers])
            started = time.perf_counter()
            changed = batch if change is None else change(batch, numbers)
            texts = self.adapter.generate(changed, max_new_tokens=MAX_NEW_TOKENS)
            seconds += time.perf_counter() - started
            counts = changed["keep"].sum(dim=1) if "keep" in changed else self.adapter.n_vision(batch)
            for i, text, count in zip(numbers, texts, counts.tolist(), strict=True):
                predicted[i], kept[i] = text, count
        correct = np.array([judge(a.question, p)[0] for a, p in zip(self.asked, predicted, strict=True)])
        return Answered(predicted, correct, kept, seconds)

    def batches(self, inputs: Sequence[Batch]) -> list[list[int]]:
        """Numbers of the inputs in batches that may be collated, similar lengths together."""
        groups: dict[tuple[str, ...], list[int]] = {}
        for i, example in enumerate(inputs):
            groups.setdefault(self.adapter.bucket(example), []).append(i)
        found = []
        for numbers in groups.values():
            numbers.sort(key=lambda i: inputs[i]["input_ids"].shape[1])
            found += [numbers[k : k + self.batch_size] for k in range(0, len(numbers), self.batch_size)]
        return found

    # ------------------------------------------------------------ what is done to the tokens

    def deleted(self, method: str, deleted_share: float, *, seed: int = 0, layer: int = 0) -> Answered:
        """Answer with a share of visual tokens deleted: after the projector (`layer` 0) or at a later layer's input.

        Tokens are deleted by shortening the sequence, so that the time saved is real.
        """
        if method == "downsample":
            return self.answer(inputs=self._shrunk(deleted_share))
        if deleted_share == 0.0:
            return self.answer()

        def change(batch: Batch, numbers: list[int]) -> Batch:
            seeds = [(seed, i) for i in numbers]
            scores = score_tokens(self.adapter, batch, method, layer=layer, seeds=seeds)
            return self.adapter.drop(batch, keep_mask(scores, self.adapter.n_vision(batch), deleted_share), layer=layer)

        return self.answer(change)

    def _shrunk(self, deleted_share: float) -> list[Batch]:
        images = [item.image() for item in self.asked]
        small = [None if image is None else shrink(image, deleted_share) for image in images]
        return [self.adapter.prepare(i, a.question.text) for i, a in zip(small, self.asked, strict=True)]

    def keeping(self, shares: Sequence[float], method: str, *, seed: int = 0, layer: int = 0) -> Answered:
        """Answer with a share of tokens deleted that differs from question to question: how a policy is applied."""

        def change(batch: Batch, numbers: list[int]) -> Batch:
            counts = self.adapter.n_vision(batch).tolist()
            scores = score_tokens(self.adapter, batch, method, layer=layer, seeds=[(seed, i) for i in numbers])
            rows = [keep_mask(scores[r : r + 1], [counts[r]], shares[i]) for r, i in enumerate(numbers)]
            return self.adapter.drop(batch, torch.cat(rows), layer=layer)

        return self.answer(change)

    def blocked(self, layers: Sequence[int]) -> Answered:
        """Answer with attention from other tokens to visual ones blocked in `layers`."""
        with vision_blocked(self.adapter, layers) if layers else contextlib.nullcontext():
            return self.answer()

    def patched(self, donors: Bench, layer: int) -> Answered:
        """Answer each question on its own image with the donor image's visual states put in place at `layer`."""
        predicted = [""] * len(self.asked)
        started = time.perf_counter()
        for numbers in self.batches(self.inputs):
            batch = self.adapter.collate([self.inputs[i] for i in numbers])
            states = vision_states(self.adapter, self.adapter.collate([donors.inputs[i] for i in numbers]), layer)
            with vision_patched(self.adapter, layer, states):
                texts = self.adapter.generate(batch, max_new_tokens=MAX_NEW_TOKENS)
            for i, text in zip(numbers, texts, strict=True):
                predicted[i] = text
        correct = np.array([judge(a.question, p)[0] for a, p in zip(self.asked, predicted, strict=True)])
        kept = np.array([int(self.adapter.n_vision(example)[0]) for example in self.inputs])
        return Answered(predicted, correct, kept, time.perf_counter() - started)
