"""Arguments of decoder blocks after a token deletion: masks, positions and DeepStack features."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.models.shortening import Shortening, block, shorten_mask


class BlockShortening:
    """Shortens the keywords of one block, for the prompt and for the decoding steps after it.

    Args:
        cut: kept positions of those that the decoder is called with.
        length: S, number of positions that the decoder is called with.
        mask_name: keyword of a block's mask.
        first: tokens are deleted before the first block, so that no cache contains them and masks of decoding steps
            fit.
        held: the same as `cut` and `length`, of the positions that the masks of decoding steps speak of; where tokens
            left before the first block and again later, those are fewer.
    """

    def __init__(
        self,
        cut: Shortening,
        length: int,
        mask_name: str,
        *,
        first: bool,
        held: tuple[Shortening, int] | None = None,
    ) -> None:
        self.cut, self.length, self.mask_name, self.first = cut, length, mask_name, first
        self.held = held
        self.steps = 1

    def prompt(self, kwargs: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """Return the keywords of the prompt's pass."""
        self.cut, self.steps = self.cut.to(device), 1
        out = dict(kwargs)
        out[self.mask_name] = self._prompt_mask(kwargs.get(self.mask_name))
        if kwargs.get("position_ids") is not None:
            positions = kwargs["position_ids"]
            out["position_ids"] = self.cut.tokens(positions, positions.ndim - 1)
        if kwargs.get("position_embeddings") is not None:
            rotary = kwargs["position_embeddings"]
            out["position_embeddings"] = tuple(self.cut.tokens(part, part.ndim - 2) for part in rotary)
        return out

    def step(self, kwargs: dict[str, Any], n_new: int) -> dict[str, Any]:
        """Return the keywords of a decoding step of `n_new` tokens."""
        out = dict(kwargs)
        if not self.first:
            out[self.mask_name] = self._step_mask(kwargs.get(self.mask_name))
        self.steps += n_new
        return out

    def _prompt_mask(self, mask: Tensor | None) -> Tensor | None:
        if mask is None and bool(self.cut.real.all()):
            return None  # a block reads no mask as causal, which the kept positions still are
        if mask is None:
            length = self.cut.real.shape[1]
            causal = torch.ones(length, length, dtype=torch.bool, device=self.cut.real.device).tril()
            return causal[None, None] & self.cut.real[:, None, None, :]
        return shorten_mask(mask, self.cut)

    def _step_mask(self, mask: Tensor | None) -> Tensor | None:
        """Return a (B, 1, Q, S + steps) mask with only the kept ones of the prompt's S positions; Q is 1 or all."""
        cut, length = self.held or (self.cut, self.length)
        cut = cut.to(self.cut.real.device)
        real = torch.cat([cut.real, cut.real.new_ones(len(cut.real), self.steps)], dim=1)
        if mask is None:
            return None if bool(real.all()) else real[:, None, None, :]
        rows, n_keys = cut.index.shape[0], mask.shape[3]
        new = torch.arange(length, n_keys, device=mask.device).expand(rows, -1)
        index = torch.cat([cut.index, new], dim=1)
        mask = mask.expand(rows, *mask.shape[1:])
        if mask.shape[2] == n_keys:
            mask = mask.gather(2, index[:, None, :, None].expand(-1, mask.shape[1], -1, n_keys))
        kept = mask.gather(3, index[:, None, None, :].expand(-1, mask.shape[1], mask.shape[2], -1))
        return block(kept, ~real[:, None, None, :])


class BlockHook:
    """Shortens the arguments of one decoder block; at `entry` the hidden states too."""

    def __init__(self, cut: Shortening, length: int, mask_name: str, *, entry: bool, first: bool) -> None:
        self.call = BlockShortening(cut, length, mask_name, first=first)
        self.entry = entry

    def __call__(self, block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        hidden = hidden_of(args, kwargs)
        length = self.call.length if self.entry else self.call.cut.index.shape[1]
        if hidden.shape[1] != length or hidden.shape[1] == 1:
            return args, self.call.step(kwargs, hidden.shape[1])
        kwargs = self.call.prompt(kwargs, hidden.device)
        return with_hidden(args, kwargs, self.call.cut.tokens(hidden) if self.entry else hidden)


def hidden_of(args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """Return the hidden states that a block is called with."""
    return args[0] if args else kwargs["hidden_states"]


def with_hidden(args: tuple, kwargs: dict[str, Any], hidden: Tensor) -> tuple[tuple, dict[str, Any]]:
    """Return a block's arguments with other hidden states."""
    return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})


@contextlib.contextmanager
def late_deepstack(decoder: Any, current: Callable[[], Shortening | None]) -> Iterator[None]:
    """Let DeepStack features, added between blocks, follow a sequence shortened at one of those blocks.

    Args:
        current: kept positions of those that the decoder was called with.
    """
    add = getattr(decoder, "_deepstack_process", None)
    if add is None:
        yield
        return

    def add_to_kept(hidden: Tensor, visual: Tensor, embeds: Tensor) -> Tensor:
        cut = current()
        if cut is None or hidden.shape[1] == visual.shape[1]:
            return add(hidden, visual, embeds)
        rows = cut.tokens(visual.flatten().cumsum(0).view_as(visual) - 1)
        kept = cut.tokens(visual)
        return add(hidden, kept, embeds[rows[kept]])

    decoder._deepstack_process = add_to_kept
    try:
        yield
    finally:
        del decoder._deepstack_process
