"""A fixed set of questions asked of one model under interventions on its visual tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from orchestrator.ablate.places import TEXT_PLACES, image_part
from orchestrator.ablate.selection import make_reduction, seen_size, shrink
from orchestrator.ablate.selectors.entries import DOWNSAMPLE
from orchestrator.ablate.selectors.kinds import Settings
from orchestrator.answers.evaluate import answer_limit
from orchestrator.answers.judging import judge
from orchestrator.answers.places import as_judged, window_of
from orchestrator.data.mixture import Example
from orchestrator.models.adapter import Adapter
from orchestrator.models.batching import Batch
from orchestrator.models.decoding import Generated
from orchestrator.models.interventions import (
    prompt_patched,
    prompt_states,
    vision_blocked,
    vision_patched,
    vision_states,
)
from orchestrator.models.memory import retry_with_smaller_batch
from orchestrator.models.reduction import reduction_of
from orchestrator.models.routes import readers

Answer = Callable[[Batch, list[int]], tuple[Batch, Generated]]
"""Takes a batch and the numbers of its questions; returns the batch as it was answered, and what was generated."""


@dataclass(frozen=True)
class Answered:
    """Answers in the order of the questions asked."""

    predicted: list[str]
    correct: np.ndarray
    """bool (n,)"""
    kept: np.ndarray
    """Visual tokens left in the last decoder layer, int64 (n,)."""
    seconds: float
    """Time of selection and generation, s, without input preparation."""
    score: np.ndarray
    """float64 (n,), by the rule of each question."""
    prefill_seconds: float = 0.0
    """Part of `seconds` until the first token's logits, selection included."""
    decode_seconds: float = 0.0
    selection_seconds: float = 0.0
    """Part of the prefill spent on selection and its inputs."""
    cache_bytes: int | None = None
    """Keys and values of all prompts; None if the model does not report them."""
    peak_bytes: int | None = None
    """Peak GPU memory of a batch, weights included; None without a GPU."""
    depths: tuple[int, ...] = ()
    kept_at: np.ndarray | None = None
    """Visual tokens left from each depth on, int64 (depths, n)."""

    def stages(self, i: int) -> list[tuple[int, int]]:
        """(depth, tokens left) of the i-th question asked."""
        if self.kept_at is None or not self.depths:
            return []
        return list(zip(self.depths, self.kept_at[:, i].tolist(), strict=True))


@dataclass
class _Sums:
    seconds: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    selection: float = 0.0
    cache: int | None = 0
    peak: int | None = None


class Bench:
    """A model and a fixed set of questions, prepared once and batched by similar length.

    Args:
        adapter: the model.
        examples: questions with their images.
        batch_size: questions per forward pass; halved for a batch that does not fit the GPU's memory.
        instruction: text appended to every question.
        settings: settings of selection methods, by method name.
    """

    def __init__(
        self,
        adapter: Adapter,
        examples: Sequence[Example],
        batch_size: int,
        instruction: str = "",
        settings: Mapping[str, Settings] | None = None,
    ) -> None:
        self.adapter, self.examples, self.batch_size = adapter, list(examples), batch_size
        self.settings = settings or {}
        self.texts = [f"{item.question.text} {instruction}".strip() for item in self.examples]
        images = (item.image() for item in self.examples)
        self.inputs = [adapter.prepare(image, text) for image, text in zip(images, self.texts, strict=True)]
        self.windows = [window_of(adapter, item) for item in self.examples]
        self.max_new_tokens = answer_limit(adapter, [item.question for item in self.examples])

    # ------------------------------------------------------------ asking

    @cached_property
    def plain(self) -> Answered:
        """The answers without an intervention."""
        return self.unchanged()

    def unchanged(self, numbers: Sequence[int] | None = None) -> Answered:
        """Ask without an intervention; not cached, unlike `plain`."""
        return self.ask(self._generate, numbers)

    def ask(
        self, answer: Answer, numbers: Sequence[int] | None = None, inputs: Sequence[Batch] | None = None
    ) -> Answered:
        """Ask the questions `numbers` (None for all) with `inputs` (None for the prepared ones)."""
        numbers = range(len(self.examples)) if numbers is None else numbers
        inputs = self.inputs if inputs is None else inputs
        predicted: dict[int, str] = {}
        kept: dict[int, list[int]] = {}
        sums, device = _Sums(), self.adapter.device

        def ask_some(chunk: Sequence[int]) -> None:
            batch = self.adapter.collate([inputs[i] for i in chunk])
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            started = time.perf_counter()
            answered, generated = answer(batch, list(chunk))
            texts = self.adapter.texts(generated.ids)
            sums.seconds += time.perf_counter() - started
            _add(sums, answered, generated)
            if device.type == "cuda":
                sums.peak = max(sums.peak or 0, torch.cuda.max_memory_allocated(device))
            for i, text in zip(chunk, texts, strict=True):
                predicted[i] = as_judged(self.examples[i].question, text, self.windows[i])
            kept.update(zip(chunk, self._kept(answered), strict=True))

        retry_with_smaller_batch(self.batches(numbers, inputs), ask_some)
        judged = [judge(self.examples[i].question, predicted[i]) for i in numbers]
        counts = np.array([kept[i] for i in numbers], dtype=np.int64)
        return Answered(
            [predicted[i] for i in numbers],
            np.array([judgement.correct for judgement in judged]),
            counts[:, -1],
            sums.seconds,
            np.array([judgement.score for judgement in judged]),
            sums.prefill,
            sums.decode,
            sums.selection,
            sums.cache,
            sums.peak,
            kept_at=counts.T,
        )

    def _kept(self, answered: Batch) -> list[list[int]]:
        """Visual tokens of each row left from each depth on; an unreached depth has those of the depth before."""
        counts = self.adapter.n_vision(answered)
        if (reduction := reduction_of(answered)) is None:
            return counts[:, None].tolist()
        by_depth = list(reduction.kept)
        by_depth += [by_depth[-1] if by_depth else counts] * (len(reduction.layers) - len(by_depth))
        return torch.stack(by_depth, dim=1).tolist()

    def batches(self, numbers: Sequence[int], inputs: Sequence[Batch]) -> list[list[int]]:
        """`numbers` in batches that can be collated, sorted by length."""
        groups: dict[tuple[str, ...], list[int]] = {}
        for i in sorted(numbers, key=lambda i: inputs[i]["input_ids"].shape[1]):
            groups.setdefault(self.adapter.bucket(inputs[i]), []).append(i)
        size = self.batch_size
        return [group[k : k + size] for group in groups.values() for k in range(0, len(group), size)]

    def scopes(self, among: Collection[int] | None = None) -> Iterator[tuple[str | None, str, list[int]]]:
        """(tier, family, numbers) of the questions `among` (None for all): each tier as `all`, then by family."""
        numbers = range(len(self.examples)) if among is None else among
        keys = {i: (self.examples[i].question.tier, self.examples[i].question.family) for i in numbers}
        for tier in dict.fromkeys(tier for tier, _ in keys.values()):
            of_tier = {i: family for i, (t, family) in keys.items() if t == tier}
            yield tier, "all", list(of_tier)
            for family in dict.fromkeys(of_tier.values()):
                yield tier, family, [i for i, name in of_tier.items() if name == family]

    def _generate(self, batch: Batch, chunk: list[int]) -> tuple[Batch, Generated]:
        return batch, self.adapter.generate_measured(batch, max_new_tokens=self.max_new_tokens)

    # ------------------------------------------------------------ interventions

    def deleted(self, method: str, deleted_share: float, *, seed: int = 0, layer: int = 0) -> Answered:
        """Answers with a share of visual tokens deleted: after the projector (`layer` 0) or after `layer` layers."""
        if deleted_share == 0.0:
            return self.plain
        return self.keeping([deleted_share] * len(self.examples), method, seed=seed, layer=layer)

    def keeping(
        self,
        shares: Sequence[float],
        method: str,
        *,
        seed: int = 0,
        layer: int = 0,
        numbers: Sequence[int] | None = None,
    ) -> Answered:
        """Answers with an individual share of tokens deleted per question; see `reduced`.

        Args:
            shares: share deleted, for every question of the bench.
            numbers: ask only these questions; None for all.
        """
        return self.reduced(method, [layer], [[1.0 - share for share in shares]], seed=seed, numbers=numbers)

    def reduced(
        self,
        method: str,
        layers: Sequence[int],
        shares: Sequence[Sequence[float]],
        *,
        seed: int = 0,
        numbers: Sequence[int] | None = None,
    ) -> Answered:
        """Answers with tokens deleted at one or several depths, selected within the same forward pass.

        The sequence is shortened, so the measured time includes the saving and the cost of the selection.

        Args:
            layers: depths, ascending; 0 is after the projector.
            shares: share of the image's tokens left from each depth on, `shares[depth][question]`, of all questions.
            numbers: ask only these questions; None for all.
        """
        numbers = range(len(self.examples)) if numbers is None else numbers
        if method == DOWNSAMPLE:
            inputs = list(self.inputs)
            for i in numbers:
                inputs[i] = self._shrunk(i, 1.0 - shares[-1][i])
            return replace(self.ask(self._generate, numbers, inputs), depths=(0,))

        def answer(batch: Batch, chunk: list[int]) -> tuple[Batch, Generated]:
            rows = [[row[i] for i in chunk] for row in shares]
            seeds = [(seed, i) for i in chunk]
            reduction = make_reduction(self.adapter, batch, method, layers, rows, seeds=seeds, settings=self.settings)
            return self._generate(self.adapter.reduce(batch, reduction), chunk)

        return replace(self.ask(answer, numbers), depths=tuple(layers))

    def _shrunk(self, i: int, deleted_share: float) -> Batch:
        image = self.examples[i].image()
        if image is None or deleted_share == 0.0:
            return self.inputs[i]
        if deleted_share == 1.0:
            return self.adapter.prepare(None, self.texts[i])
        size = seen_size(self.inputs[i])
        if isinstance(image, np.ndarray):
            return self.adapter.prepare(shrink(image, deleted_share, size), self.texts[i])
        return self.adapter.prepare([shrink(picture, deleted_share, size) for picture in image], self.texts[i])

    def blocked(self, layers: Sequence[int]) -> Answered:
        """Answers with attention from other tokens to visual ones blocked in `layers`."""
        if not layers:
            return self.plain
        with vision_blocked(self.adapter, layers):
            return self.ask(self._generate)

    def patched(self, donors: Bench, layer: int, place: str = "image") -> Answered:
        """Activation patching: answers with states of the donor's pass at the input of `layer`.

        Args:
            place: tokens whose states are patched: `image`, a part of it (`changed`, `object`, `background`),
                `question` or `last`.
        """
        adapter = self.adapter

        def answer(batch: Batch, chunk: list[int]) -> tuple[Batch, Generated]:
            donor_batch = adapter.collate([donors.inputs[i] for i in chunk])
            if place in TEXT_PLACES:
                positions = readers(adapter, batch, place)
                with prompt_patched(adapter, layer, prompt_states(adapter, donor_batch, layer), positions):
                    return self._generate(batch, chunk)
            pairs = [self.examples[i] for i in chunk], [donors.examples[i] for i in chunk]
            tokens = image_part(adapter, batch, pairs[0], place, pairs[1])
            with vision_patched(adapter, layer, vision_states(adapter, donor_batch, layer), tokens):
                return self._generate(batch, chunk)

        return self.ask(answer)


def _add(sums: _Sums, answered: Batch, generated: Generated) -> None:
    sums.prefill += generated.prefill_seconds
    sums.decode += generated.decode_seconds
    if sums.cache is not None:
        sums.cache = None if generated.cache_bytes is None else sums.cache + generated.cache_bytes
    if (reduction := reduction_of(answered)) is not None:
        sums.selection += reduction.seconds + reduction.seconds_before
        sums.prefill += reduction.seconds_before
