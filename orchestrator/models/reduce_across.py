"""Token reduction over cross-attended states: hooks that select, shorten and merge them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.models.block_shortening import hidden_of
from orchestrator.models.reading import Heads, attention_module, attention_read
from orchestrator.models.reduction import Progress, Reduction
from orchestrator.models.shortening import Shortening


class AcrossReduction:
    """Hooks for one pass over prompts, and the decoding steps after it.

    Args:
        vision: mask of visual content over the N cross-attended states; padding tiles are kept, as in `drop`.
        cross: indices of the cross-attention layers.
    """

    def __init__(
        self, reduction: Reduction, groups: Tensor, vision: Tensor, layers: list[nn.Module], cross: list[int]
    ) -> None:
        everything = torch.ones_like(vision)
        self.progress = Progress(reduction, groups, vision, everything, True, vision.sum(dim=1))
        self.reduction, self.layers, self.cross = reduction, layers, cross
        self.states: Tensor | None = None
        """The current states."""
        self._encoder: Any = None

    @contextlib.contextmanager
    def active(self, encoder: Any = None) -> Iterator[None]:
        """Keep the hooks in place; see `SequenceReduction.active`."""
        self._encoder = encoder
        readers: dict[nn.Module, Any] = {} if encoder is None else dict(encoder.readers())
        entries: dict[int, list[int]] = {}
        for depth, at in enumerate(self.reduction.layers):
            after, before = [i for i in self.cross if i >= at], [i for i in self.cross if i < at]
            if after:
                entries.setdefault(after[0], []).append(depth)
            if "attention" in self.reduction.needs and before:
                readers[attention_module(self.layers[before[-1]])] = self._note
        with contextlib.ExitStack() as stack:
            stack.enter_context(attention_read(readers))
            for i in [i for i in self.cross if entries and i >= min(entries)]:
                hook = _Cross(self, entries.get(i, []))
                block = self.layers[i]
                stack.callback(block.register_forward_pre_hook(hook.before, with_kwargs=True).remove)
                stack.callback(block.register_forward_hook(hook.after, with_kwargs=True).remove)
            yield

    def _note(self, heads: Heads) -> None:
        if heads.query.shape[2] > 1:
            self.progress.heads = heads

    def decide(self, depth: int, states: Tensor) -> None:
        """Select at a depth, and shorten the states."""
        if self._encoder is not None and self.progress.encoder is None:
            self.progress.encoder = self._encoder.found()
            self.reduction.seconds += self._encoder.seconds
        step, states = self.progress.decide(depth, states)
        self.states = step.to(states.device).tokens(states)


class _Cross:
    """Pre-hook and hook of one cross-attention block."""

    def __init__(self, owner: AcrossReduction, depths: list[int]) -> None:
        self.owner, self.depths = owner, depths
        self.cut: Shortening | None = None
        self.sees: Tensor | None = None

    def before(self, block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        owner, states, hidden = self.owner, kwargs.get("cross_attention_states"), hidden_of(args, kwargs)
        if states is not None and self.cut is None:
            rows = hidden.shape[0]
            if owner.states is None:
                owner.states = states.reshape(rows, -1, states.shape[-1])
            for depth in self.depths:
                if "own_attention" in owner.reduction.needs:
                    owner.progress.peek(block, args, self._shortened(kwargs, hidden))
                owner.decide(depth, owner.states)
            self.cut = owner.progress.absolute
            self.sees = owner.progress.vision.any(dim=1)
        return args, self._shortened(kwargs, hidden)

    def _shortened(self, kwargs: dict[str, Any], hidden: Tensor) -> dict[str, Any]:
        cut = self.cut or self.owner.progress.absolute
        if cut is None:
            return kwargs
        cut, out = cut.to(hidden.device), dict(kwargs)
        if kwargs.get("cross_attention_states") is not None:
            out["cross_attention_states"] = self.owner.states
        mask = kwargs.get("cross_attention_mask")
        if mask is None:
            mask = hidden.new_zeros(len(cut.index), 1, hidden.shape[1], cut.index.shape[1])
        else:
            mask = mask.gather(3, cut.index[:, None, None, :].expand(-1, 1, mask.shape[2], -1))
        lowest = torch.finfo(mask.dtype).min
        out["cross_attention_mask"] = mask.masked_fill(~cut.real[:, None, None, :], lowest)
        return out

    def after(self, block: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        """Undo the layer for rows without visual tokens: it is skipped for a prompt without an image."""
        if self.sees is None:
            return output
        return torch.where(self.sees[:, None, None].to(output.device), output, hidden_of(args, kwargs))
