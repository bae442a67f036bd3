"""Token reduction over visual tokens in the decoder's sequence: hooks that select, shorten and merge."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from orchestrator.models.block_shortening import BlockShortening, hidden_of, late_deepstack, with_hidden
from orchestrator.models.reading import Heads, attention_module, attention_read
from orchestrator.models.reduction import Progress, Reduction, sequence_progress
from orchestrator.models.shortening import Shortening, shorten_decoder_inputs


class SequenceReduction:
    """Hooks for one pass over prompts, and the decoding steps after it.

    Args:
        door: whether tokens deleted before the decoder are removed at its input, or at that of its first block.
    """

    def __init__(
        self, reduction: Reduction, groups: Tensor, counts: Tensor, layers: list[nn.Module], mask: str, *, door: bool
    ) -> None:
        self.progress: Progress = sequence_progress(reduction, groups, counts)
        self.reduction, self.layers, self.mask_name, self.door = reduction, layers, mask, door
        self.full = groups.shape[1]
        self.base = self.full
        """Number of positions of the blocks' keyword arguments."""
        self.cut: Shortening | None = None
        """The positions that remain."""
        self.held: tuple[Shortening, int] | None = None
        """The positions that remain before the first block, if tokens are deleted at that block's input."""
        self._encoder: Any = None

    @contextlib.contextmanager
    def active(self, decoder: nn.Module, encoder: Any = None) -> Iterator[None]:
        """Install the hooks inside the context.

        Args:
            encoder: an `EncoderReading`, if the vision encoder's attention is needed.
        """
        self._encoder = encoder
        depths = list(self.reduction.layers)
        readers: dict[nn.Module, Any] = {} if encoder is None else dict(encoder.readers())
        if "attention" in self.reduction.needs:
            readers |= {attention_module(self.layers[at - 1]): self._note for at in depths if at > 0}
        with contextlib.ExitStack() as stack:
            stack.enter_context(attention_read(readers))
            if self.door and 0 in depths:
                stack.callback(decoder.register_forward_pre_hook(self._at_door, with_kwargs=True).remove)
            inside = [at for at in depths if at > 0 or not self.door]
            for number, at in enumerate(inside):
                end = inside[number + 1] if number + 1 < len(inside) else len(self.layers)
                for i in range(at, end):
                    hook = _Block(self, depths.index(at) if i == at else None, first=at == 0)
                    stack.callback(self.layers[i].register_forward_pre_hook(hook, with_kwargs=True).remove)
            if inside:
                stack.enter_context(late_deepstack(decoder, lambda: self.cut))
            yield

    def _note(self, heads: Heads) -> None:
        if heads.query.shape[2] > 1:  # no selection in a decoding step
            self.progress.heads = heads

    def decide(self, depth: int, hidden: Tensor) -> tuple[Shortening, Tensor]:
        """Select at a depth; see `Progress.decide`."""
        if self._encoder is not None and self.progress.encoder is None:
            self.progress.encoder = self._encoder.found()
            self.reduction.seconds += self._encoder.seconds
        return self.progress.decide(depth, hidden)

    def advance(self, step: Shortening, *, first: bool) -> None:
        """Restrict the remaining positions to `step`."""
        if not first and self.cut is not None and 0 in self.reduction.layers and not self.door:
            self.held = (_then(self.held[0], step), self.held[1]) if self.held else (step, self.cut.index.shape[1])
        self.cut = step if self.cut is None else _then(self.cut, step)

    def _at_door(self, _: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        embeds = kwargs["inputs_embeds"]
        if embeds.shape[1] != self.full or self.reduction.cuts:
            return None  # a decoding step
        step, embeds = self.decide(0, embeds)
        self.base = step.index.shape[1]
        return args, shorten_decoder_inputs({**kwargs, "inputs_embeds": embeds}, step.to(embeds.device))


def _then(cut: Shortening, step: Shortening) -> Shortening:
    """Return the composition of `cut` and `step`, in the positions of `cut`'s input."""
    return Shortening(cut.to(step.index.device).index.gather(1, step.index), step.real)


class _Block:
    """Pre-hook of one block; at a depth it first selects tokens and shortens the hidden states."""

    def __init__(self, owner: SequenceReduction, depth: int | None, *, first: bool) -> None:
        self.owner, self.depth, self.first = owner, depth, first
        self.call: BlockShortening | None = None

    def __call__(self, block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        owner, hidden = self.owner, hidden_of(args, kwargs)
        if self.call is not None:  # the prompt has passed
            return args, self.call.step(kwargs, hidden.shape[1])
        if self.depth is not None:
            if "own_attention" in owner.reduction.needs:
                before = owner.cut
                known = kwargs if before is None else self._shortening(before).prompt(kwargs, hidden.device)
                owner.progress.peek(block, args, known)
            step, hidden = owner.decide(self.depth, hidden)
            hidden = step.to(hidden.device).tokens(hidden)
            owner.advance(step, first=self.first)
        assert owner.cut is not None, "a block after a depth was called before it"
        self.call = self._shortening(owner.cut)
        return with_hidden(args, self.call.prompt(kwargs, hidden.device), hidden)

    def _shortening(self, cut: Shortening) -> BlockShortening:
        return BlockShortening(cut, self.owner.base, self.owner.mask_name, first=self.first, held=self.owner.held)
