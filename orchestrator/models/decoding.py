"""Greedy decoding with the same deletions as a plain pass.

transformers' `generate` rebuilds masks and positions from the shortened length; here every step is given the positions
and masks it would have had. Without a deletion it returns what `generate(do_sample=False)` returns.
"""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import DynamicCache

from orchestrator.models.batching import Batch
from orchestrator.models.shortening import attention_form


class Decoder(Protocol):
    """What decoding asks of an adapter; see the methods of `Adapter`."""

    model: Any

    @property
    def device(self) -> torch.device: ...
    @property
    def decoder(self) -> nn.Module: ...
    @property
    def eos_token_ids(self) -> set[int]: ...
    @property
    def pad_token_id(self) -> int: ...
    def activated(self, batch: Batch, *, decoding: bool = False) -> AbstractContextManager[None]: ...
    def deleting(self, batch: Batch) -> AbstractContextManager[None]: ...
    def key_mask(self, batch: Batch) -> Bool[Tensor, "B S"]: ...
    def forward_inputs(self, batch: Batch) -> dict[str, Any]: ...
    def step_inputs(self, batch: Batch) -> dict[str, Any]: ...


def greedy(adapter: Decoder, batch: Batch, max_new_tokens: int) -> Int[Tensor, "B T"]:
    """Return the most probable continuation of each row, token by token, padded after an end token.

    The batch must be padded on the left, as `collate` does. Labels are ignored.
    """
    batch = {key: value for key, value in batch.items() if key != "labels"}
    end = torch.tensor(sorted(adapter.eos_token_ids), device=adapter.device)
    tokens: list[Tensor] = []
    with adapter.activated(batch, decoding=True), adapter.deleting(batch):
        masks = _StepMasks(adapter, adapter.key_mask(batch).to(adapter.device))
        # without a config: sliding-window layers keep all tokens, masks do the windowing
        cache = {_cache_name(adapter.decoder): DynamicCache()}
        handle = adapter.decoder.register_forward_pre_hook(masks, with_kwargs=True)
        try:
            output = adapter.model(**adapter.forward_inputs(batch), **cache, use_cache=True, logits_to_keep=1)
            done = torch.zeros(output.logits.shape[0], dtype=torch.bool, device=output.logits.device)
            while True:
                token = output.logits[:, -1].argmax(dim=-1)
                token = torch.where(done, adapter.pad_token_id, token)
                tokens.append(token)
                done = done | torch.isin(token, end)
                if len(tokens) >= max_new_tokens or bool(done.all()):
                    break
                output = adapter.model(
                    input_ids=token[:, None],
                    **masks.advance(),
                    **adapter.step_inputs(batch),
                    **cache,
                    use_cache=True,
                )
        finally:
            handle.remove()
    return torch.stack(tokens, dim=1).cpu()


def _cache_name(decoder: nn.Module) -> str:
    """Return the keyword of the key and value cache: transformers 5.24 renamed it."""
    return "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"


class _StepMasks:
    """Pre-hook on the decoder that notes the prompt's positions and then gives each step its own.

    Decoders that take a mask for each kind of layer get the sliding window by position, not by place in the cache.
    """

    def __init__(self, adapter: Decoder, key_mask: Bool[Tensor, "B S"]) -> None:
        self.keys = key_mask
        decoder: Any = adapter.decoder
        self.config: Any = decoder.config
        self.positions: Tensor | None = None
        self.key_positions: Tensor | None = None

    def advance(self) -> dict[str, Tensor]:
        """Return attention mask and position ids of one more token."""
        assert self.positions is not None
        assert self.key_positions is not None
        self.positions = self.positions + 1
        self.keys = torch.cat([self.keys, torch.ones_like(self.keys[:, :1])], dim=1)
        self.key_positions = torch.cat([self.key_positions, self.key_positions[:, -1:] + 1], dim=1)
        return {"attention_mask": self.keys.long(), "position_ids": self.positions}

    def __call__(self, decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        if self.positions is None:
            self._note_prompt(kwargs)
            return None
        if not isinstance(kwargs.get("attention_mask"), dict):
            return None
        return args, {**kwargs, "attention_mask": {kind: self._mask(kind) for kind in kwargs["attention_mask"]}}

    def _note_prompt(self, kwargs: dict[str, Any]) -> None:
        rows, length = self.keys.shape
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = torch.arange(length, device=self.keys.device)[None]
        positions = positions.expand(*positions.shape[:-2], rows, length)
        self.positions = positions[..., -1:]
        self.key_positions = positions if positions.ndim == 2 else positions[0]

    def _mask(self, kind: str) -> Tensor:
        assert self.key_positions is not None
        allowed = self.keys
        if kind == "sliding_attention":
            allowed = allowed & (self.key_positions[:, -1:] - self.key_positions < self.config.sliding_window)
        return attention_form(allowed[:, None, None, :], self.config, torch.float32)
