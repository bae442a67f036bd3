"""Ablation of visual states at the input of a layer by zeros, their mean, or noise.

Zeros are out of distribution; the mean over images and draws from their distribution are not (Zhang and Nanda 2024, on
choosing a corruption). If zeros change an answer and the mean does not, the change is an artefact of the corruption.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from orchestrator.ablate.bench import Answered, Bench
from orchestrator.ablate.places import image_part
from orchestrator.models.batching import Batch
from orchestrator.models.decoding import Generated
from orchestrator.models.interventions import vision_patched, vision_states


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of the visual states of a bench at a layer, over images and tokens."""

    mean: Float[Tensor, " D"]
    deviation: Float[Tensor, " D"]


def moments(bench: Bench, layer: int) -> Moments:
    """Moments of the visual states at the input of a layer, without an intervention."""
    n, total, squares = 0, torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for chunk in bench.batches(range(len(bench.examples)), bench.inputs):
        batch = bench.adapter.collate([bench.inputs[i] for i in chunk])
        states = vision_states(bench.adapter, batch, layer).double().cpu()
        for row, count in zip(states, bench.adapter.n_vision(batch).tolist(), strict=True):
            n, total, squares = n + count, total + row[:count].sum(0), squares + row[:count].square().sum(0)
    mean = total / n
    return Moments(mean.float(), (squares / n - mean.square()).clamp(min=0).sqrt().float())


def replaced(bench: Bench, kind: str, layer: int, seed: int, of: Moments, place: str = "image") -> Answered:
    """Answers with visual states at the input of a layer replaced by `zero`, `mean` or `noise`.

    A question's noise depends only on the seed and its index.

    Args:
        place: tokens whose states are replaced: `image`, `object` or `background`.
    """

    def answer(batch: Batch, chunk: list[int]) -> tuple[Batch, Generated]:
        counts = bench.adapter.n_vision(batch).tolist()
        rows = [_states(kind, n, (seed, i), of) for n, i in zip(counts, chunk, strict=True)]
        states = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        tokens = image_part(bench.adapter, batch, [bench.examples[i] for i in chunk], place)
        with vision_patched(bench.adapter, layer, states, tokens):
            return batch, bench.adapter.generate_measured(batch, max_new_tokens=bench.max_new_tokens)

    return bench.ask(answer)


def _states(kind: str, n: int, seed: tuple[int, int], of: Moments) -> Float[Tensor, "V D"]:
    if kind == "zero":
        return torch.zeros(n, len(of.mean))
    if kind == "mean":
        return of.mean.expand(n, -1)
    draw = torch.Generator().manual_seed(seed[0] * 1_000_003 + seed[1])
    return of.mean + of.deviation * torch.randn(n, len(of.mean), generator=draw)
