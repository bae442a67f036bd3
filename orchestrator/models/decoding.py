"""Greedy decoding with the same deletions as a plain pass.

transformers' `generate` rebuilds masks and positions from the shortened length; here every step gets the positions
and masks of the full sequence. Without a deletion the result equals that of `generate(do_sample=False)`.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import DynamicCache

from orchestrator.models.batching import Batch
from orchestrator.models.shortening import attention_form


class Decoder(Protocol):
    """Interface of an adapter for decoding; see the methods of `Adapter`."""

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
    def prompt_pass(self, batch: Batch) -> AbstractContextManager[Prompts]: ...


class Prompts(Protocol):
    """A batch of prompts after its pass, so that continuations can be evaluated."""

    adapter: Decoder
    logits: Tensor
    """Logits of the first token after each prompt, (B, vocabulary)."""

    @property
    def cache_bytes(self) -> int: ...
    def step(self, token: Int[Tensor, " B"]) -> Tensor: ...
    def rewind(self) -> None: ...


class Prompted:
    """Prompts whose keys and values are in a transformers cache."""

    def __init__(self, adapter: Decoder, batch: Batch, masks: _StepMasks) -> None:
        self.adapter, self._batch, self._masks = adapter, batch, masks
        # without a config: sliding-window layers keep all tokens, masks do the windowing
        self._cache = DynamicCache()
        self._keyword = {_cache_name(adapter.decoder): self._cache}
        output = adapter.model(**adapter.forward_inputs(batch), **self._keyword, use_cache=True, logits_to_keep=1)
        self.logits: Tensor = output.logits[:, -1]
        """Logits of the first token after each prompt, (B, vocabulary)."""
        self._layers: list[Any] = list(self._cache.layers)
        self._lengths = [layer.get_seq_length() for layer in self._layers]
        self._start = masks.state

    @property
    def cache_bytes(self) -> int:
        """Keys and values that the cache holds now."""
        parts = (part for layer in self._layers for part in (layer.keys, layer.values))
        return sum(part.nbytes for part in parts if part is not None)  # without an image, cross-attention keeps nothing

    def step(self, token: Int[Tensor, " B"]) -> Tensor:
        """Add one token to each row; return the logits of the next one, (B, vocabulary)."""
        output = self.adapter.model(
            input_ids=token[:, None],
            **self._masks.advance(),
            **self.adapter.step_inputs(self._batch),
            **self._keyword,
            use_cache=True,
        )
        return output.logits[:, -1]

    def rewind(self) -> None:
        """Crop the cache to the prompts."""
        self._masks.state = self._start
        for layer, length in zip(self._layers, self._lengths, strict=True):
            if layer.get_seq_length() > length:  # cross-attended states do not grow
                layer.keys, layer.values = layer.keys[..., :length, :], layer.values[..., :length, :]


@contextmanager
def prompted(adapter: Decoder, batch: Batch) -> Iterator[Prompts]:
    """Run a batch of prompts, padded on the left as `collate` does, and keep it for decoding. Labels are ignored."""
    batch = {key: value for key, value in batch.items() if key != "labels"}
    with adapter.activated(batch, decoding=True), adapter.deleting(batch), adapter.prompt_pass(batch) as prompts:
        yield prompts


@contextmanager
def cached_pass(adapter: Decoder, batch: Batch) -> Iterator[Prompts]:
    """Run prompts with a cache of transformers; see `Adapter.prompt_pass`."""
    masks = _StepMasks(adapter, batch)
    handle = adapter.decoder.register_forward_pre_hook(masks, with_kwargs=True)
    try:
        yield Prompted(adapter, batch, masks)
    finally:
        handle.remove()


@dataclass(frozen=True)
class Generated:
    """Generated ids (B, T), padded after an end token, with time and memory."""

    ids: Int[Tensor, "B T"]
    prefill_seconds: float
    """Time of the prompts' pass, until the first token's logits, s."""
    decode_seconds: float
    """Time of the decoding steps, s."""
    cache_bytes: int | None
    """Size of the prompts' key/value cache; None where it was not measured."""


def greedy(adapter: Decoder, batch: Batch, max_new_tokens: int) -> Generated:
    """Return the most probable continuation of each row, token by token.

    The batch must be padded on the left, as `collate` does. Labels are ignored.
    """
    clock = Clock(adapter.device)
    with prompted(adapter, batch) as prompts:
        prefill, cache_bytes = clock.lap(), prompts.cache_bytes
        ids = continue_greedily(prompts, max_new_tokens)
        return Generated(ids, prefill, clock.lap(), cache_bytes)


class Clock:
    """Wall-clock seconds between laps, with the device's queue empty at each."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.lap()

    def lap(self) -> float:
        """Return the seconds since the last lap, or since the start."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        seconds, self._last = now - getattr(self, "_last", now), now
        return seconds


def continue_greedily(prompts: Prompts, max_new_tokens: int) -> Int[Tensor, "B T"]:
    """`greedy` after prompts whose pass is done."""
    adapter, logits = prompts.adapter, prompts.logits
    end = torch.tensor(sorted(adapter.eos_token_ids), device=adapter.device)
    done = torch.zeros(logits.shape[0], dtype=torch.bool, device=logits.device)
    tokens: list[Tensor] = []
    while True:
        token = torch.where(done, adapter.pad_token_id, logits.argmax(dim=-1))
        tokens.append(token)
        done = done | torch.isin(token, end)
        if len(tokens) >= max_new_tokens or bool(done.all()):
            return torch.stack(tokens, dim=1).cpu()
        logits = prompts.step(token)


def _cache_name(decoder: nn.Module) -> str:
    """Return the keyword of the key and value cache: transformers 5.24 renamed it."""
    return "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"


class _StepMasks:
    """Pre-hook on the decoder that notes the prompt's positions and then gives each step its own.

    Decoders with one mask per kind of layer get the sliding window by position id, not by index in the cache.
    """

    def __init__(self, adapter: Decoder, batch: Batch) -> None:
        self.adapter, self.batch = adapter, batch
        self.keys: Tensor = torch.ones(1, 0)
        decoder: Any = adapter.decoder
        self.config: Any = decoder.config
        self.positions: Tensor | None = None
        self.key_positions: Tensor | None = None

    @property
    def state(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """State that `advance` updates."""
        return self.keys, self.positions, self.key_positions

    @state.setter
    def state(self, value: tuple[Tensor, Tensor | None, Tensor | None]) -> None:
        self.keys, self.positions, self.key_positions = value

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
        # After the pass, as a reduction before the decoder has selected its tokens by then.
        self.keys = self.adapter.key_mask(self.batch).to(self.adapter.device)
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
