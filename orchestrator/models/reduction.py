"""Token reduction within the forward pass: at one depth or several, by selection or merging of visual tokens.

A `Reduction` defines the decoder layers at which tokens are deleted, their number, and the selector. Selection uses the
states computed so far: no separate pass is needed, and the time saved is real. `Adapter.reduce` attaches a reduction to
a batch; `run` and `generate` apply it.

A kept token keeps its position. A merged token has the position of the token that it is merged into (its anchor): the
first nonzero entry of its row of weights, in the order of the selector.

Shapes: V remaining visual tokens of one image, K kept ones, T tokens of its question, D width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from orchestrator.models.batching import Batch
from orchestrator.models.groups import PADDING, TEXT, VISION
from orchestrator.models.needs import Need
from orchestrator.models.reading import Heads, padded_rows, peek
from orchestrator.models.shortening import Shortening, shortening


@dataclass(frozen=True)
class Seen:
    """Inputs of a selection for one image and its question; inputs that were not requested are None."""

    states: Float[Tensor, "V D"]
    order: Int[Tensor, " V"]
    """Indices among the image's tokens, ascending."""
    text: Float[Tensor, "T D"] | None = None
    attention: Float[Tensor, "R V"] | None = None
    """Weights from the T tokens of the question, then from the last token of the prompt; mean over heads."""
    keys: Float[Tensor, "V E"] | None = None
    """Keys of all heads, concatenated."""
    text_keys: Float[Tensor, "T E"] | None = None
    """Keys of the question's tokens; None if text has no keys next to the image's (`cross_kv`)."""
    encoder: Float[Tensor, " V"] | None = None
    """Attention from the encoder's class token, or mean received attention if there is none; class tokens: inf."""
    encoder_keys: Float[Tensor, "V E"] | None = None
    """Keys of that block, mean over heads."""
    given: Float[Tensor, " V"] | None = None
    """Scores from a separate pass."""


@dataclass(frozen=True)
class Kept:
    """Kept tokens: `index` into the remaining ones, each once, and their new states.

    `weights` (K, V): token k becomes weights[k] @ states; unchanged if None.
    """

    index: Int[Tensor, " K"]
    weights: Float[Tensor, "K V"] | None = None


Choose = Callable[[Seen, int, int], Kept]
"""(inputs, number to keep, row of the batch) -> kept tokens."""


@dataclass
class Reduction:
    """Depths, numbers of kept tokens and selector of a reduction; and its outcome in the last pass.

    Args:
        layers: depths, ascending; 0 is before the decoder, k after k layers.
        shares: share of the image's tokens that remain from each depth on, `shares[depth][row]`.
        needs: inputs of `choose`.
    """

    layers: tuple[int, ...]
    shares: Sequence[Sequence[float]]
    choose: Choose
    needs: frozenset[Need] = frozenset()
    given: list[Float[Tensor, " V"]] | None = None
    """Scores of each image's tokens from a separate pass."""
    make_encoder_reading: Callable[[Any, Batch], Any] | None = None
    """(adapter, batch) -> an `EncoderReading`, if `needs` includes the encoder."""
    cuts: list[Shortening] = field(default_factory=list)
    """For each depth reached: remaining positions of the full sequence (`cross_kv`: of the states), on the CPU."""
    kept: list[Int[Tensor, " B"]] = field(default_factory=list)
    """For each depth reached: number of remaining visual tokens of each row."""
    seconds: float = 0.0
    """Time of reading and selection in the last pass, s."""
    seconds_before: float = 0.0
    """Time of a separate pass, s."""

    def encoder_reading(self, adapter: Any, batch: Batch) -> Any:
        """Return the reader of the vision encoder for the next pass; None if it is not needed."""
        return None if self.make_encoder_reading is None else self.make_encoder_reading(adapter, batch)

    def start(self) -> None:
        """Clear the outcome of the last pass."""
        self.cuts, self.kept, self.seconds = [], [], 0.0

    def cut_at(self, layer: int) -> Shortening | None:
        """Return the remaining positions at the input of a decoder layer; None before the first depth."""
        reached = [cut for at, cut in zip(self.layers, self.cuts, strict=False) if at <= layer]
        return reached[-1] if reached else None


def reduction_of(batch: Batch) -> Reduction | None:
    """Return the reduction that `Adapter.reduce` attached to a batch."""
    reduction: Any = batch.get("reduction")
    return reduction


def n_kept(n_tokens: int, deleted_share: float) -> int:
    """Number of tokens kept of `n_tokens` at `deleted_share`, rounded half up; 0 only if all are deleted.

    >>> n_kept(64, 0.99), n_kept(64, 0.5), n_kept(64, 1.0), n_kept(64, 0.0)
    (1, 32, 0, 64)
    """
    if deleted_share >= 1.0:
        return 0
    return min(n_tokens, max(1, int(np.floor((1.0 - deleted_share) * n_tokens + 0.5))))


@dataclass
class Progress:
    """State of a reduction during one pass.

    `vision` (B, P): mask of remaining visual tokens over the P positions of the current sequence (`residual`), or of
    the current cross-attended states (`cross_kv`).
    """

    reduction: Reduction
    groups: Int[Tensor, "B S"]
    """Groups of the current sequence, on the CPU."""
    vision: Bool[Tensor, "B P"]
    real: Bool[Tensor, "B P"]
    """Positions that are not padding or fillers."""
    across: bool
    counts: Int[Tensor, " B"]
    """Number of visual tokens of each image before any deletion."""
    left: list[Int[Tensor, " V"]] = field(default_factory=list)
    """For each row: indices of the remaining tokens of the image."""
    heads: Heads | None = None
    encoder: list[tuple[Tensor, Tensor]] | None = None
    """Attention and keys of each image's tokens in the vision encoder."""
    absolute: Shortening | None = None

    def __post_init__(self) -> None:
        self.left = [torch.arange(int(n)) for n in self.counts]
        self.reduction.start()

    def peek(self, block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Read a block's own attention before it runs."""
        started = time.perf_counter()
        self.heads = peek(block, args, kwargs)
        self.reduction.seconds += time.perf_counter() - started

    def decide(self, depth: int, source: Float[Tensor, "B P D"]) -> tuple[Shortening, Float[Tensor, "B P D"]]:
        """Select at a depth; return the kept ones of the present positions, and the states with merged tokens."""
        started = time.perf_counter()
        weights = self._attention()
        stays, changed = self.real.clone(), source
        kept_counts = []
        for row, places in enumerate(mask.nonzero()[:, 0] for mask in self.vision):
            n = min(n_kept(int(self.counts[row]), 1.0 - self.reduction.shares[depth][row]), len(places))
            if n < len(places):
                kept = self._choose(row, places, n, source, weights)
                stays[row, places] = False
                stays[row, places[kept.index]] = True
                if kept.weights is not None and n:
                    if changed is source:
                        changed = source.clone()
                    merged = kept.weights.to(source.device, source.dtype) @ source[row, places.to(source.device)]
                    changed[row, places[kept.index].to(source.device)] = merged
                self.left[row] = self.left[row][kept.index.sort().values]
            kept_counts.append(n)
        step = shortening(stays)
        self._advance(step, torch.tensor(kept_counts))
        self.reduction.seconds += time.perf_counter() - started
        return step, changed

    @torch.no_grad()
    def _choose(self, row: int, places: Tensor, n: int, source: Tensor, weights: Tensor | None) -> Kept:
        if n == 0:
            return Kept(torch.zeros(0, dtype=torch.long))
        needs, positions = self.reduction.needs, places.to(source.device)
        text = (self.groups[row] == TEXT).nonzero()[:, 0]
        more: dict[str, Tensor] = {}
        if needs & {"text", "keys"} and not self.across:  # cross-attended states contain no text
            more["text"] = source[row, text.to(source.device)].float().cpu()
        if weights is not None and self.heads is not None:
            rows = [*range(len(text)), weights.shape[1] - 1]
            more["attention"] = weights[row][rows][:, positions].cpu()
            if "keys" in needs:
                more["keys"] = self.heads.keys[row, positions].float().cpu()
                if not self.across:
                    more["text_keys"] = self.heads.keys[row, text.to(source.device)].float().cpu()
        if self.encoder is not None:
            attention, keys = self.encoder[row]
            more["encoder"], more["encoder_keys"] = attention[self.left[row]], keys[self.left[row]]
        if self.reduction.given is not None:
            more["given"] = self.reduction.given[row][self.left[row]]
        return self.reduction.choose(Seen(source[row, positions].float().cpu(), self.left[row], **more), n, row)

    def _attention(self) -> Tensor | None:
        """Weights (B, R, P) of each question's tokens, filled up with the first position, then the last token's."""
        if self.heads is None:
            return None
        index, _ = padded_rows([(row == TEXT).nonzero()[:, 0] for row in self.groups])
        last = torch.full_like(index[:, :1], self.groups.shape[1] - 1)
        return self.heads.weights(torch.cat([index, last], dim=1))

    def _advance(self, step: Shortening, counts: Tensor) -> None:
        self.vision = step.tokens(self.vision) & step.real
        self.real = step.real
        before = self.absolute
        self.absolute = step if before is None else Shortening(before.index.gather(1, step.index), step.real)
        if not self.across:
            self.groups = step.tokens(self.groups).masked_fill(~step.real, PADDING)
        self.heads = None
        self.reduction.cuts.append(self.absolute)
        self.reduction.kept.append(counts)


def sequence_progress(reduction: Reduction, groups: Int[Tensor, "B S"], counts: Int[Tensor, " B"]) -> Progress:
    """Return the progress of a reduction over visual tokens that stand in the sequence."""
    return Progress(reduction, groups, groups == VISION, groups != PADDING, False, counts)
