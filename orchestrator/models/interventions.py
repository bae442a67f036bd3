"""Causal interventions on a model, as contexts around `adapter.run` and `adapter.generate`.

`Adapter.drop` deletes tokens (after the projector or at a later layer). Here are attention knock-out, activation
patching, and the attention scores by which tokens can be ranked. They are exact: knock-out in every layer equals
deletion of every vision token, and patching an image with its own states changes nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from orchestrator.errors import ModelError
from orchestrator.models.adapter import Adapter
from orchestrator.models.batching import Batch
from orchestrator.models.block_shortening import hidden_of, with_hidden
from orchestrator.models.cross_attention import CrossAttentionAdapter
from orchestrator.models.groups import PADDING, TEXT, VISION
from orchestrator.models.marking import layer_error
from orchestrator.models.reading import Heads, attention_module, attention_read, padded_rows
from orchestrator.models.sequence import SequenceAdapter
from orchestrator.models.shortening import attention_form, block, full_mask


@contextlib.contextmanager
def vision_blocked(adapter: Adapter, layers: Sequence[int]) -> Iterator[None]:
    """Stop every other token from attending to vision tokens in some decoder layers.

    Vision tokens still attend to one another. In a `cross_kv` model the cross-attention layers among `layers` are
    switched off whole, as they are for a prompt without an image.

    Args:
        layers: decoder layers, 0 to L - 1.

    Raises:
        ModelError: if there is no such layer.
    """
    for layer in layers:
        if not 0 <= layer < adapter.n_layers:
            raise layer_error("vision_blocked", layer, adapter.n_layers - 1)
    with contextlib.ExitStack() as stack:
        for layer in layers:
            module = adapter.layers[layer]
            if isinstance(adapter, SequenceAdapter):
                hook = _BlockVision(adapter, layer)
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            elif isinstance(adapter, CrossAttentionAdapter) and layer in adapter.cross_layers:
                stack.callback(module.register_forward_hook(_skip, with_kwargs=True).remove)
        yield


def _skip(_: nn.Module, args: tuple, kwargs: dict[str, Any], __: Any) -> Any:
    return args[0] if args else kwargs["hidden_states"]


class _BlockVision:
    """Pre-hook that hides vision keys from the other queries of one block."""

    def __init__(self, adapter: SequenceAdapter, layer: int) -> None:
        self.adapter, self.layer = adapter, layer

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        hidden = args[0] if args else kwargs["hidden_states"]
        batch = self.adapter.active_batch
        assert batch is not None, "vision_blocked works on passes of adapter.run and adapter.generate"
        groups = self.adapter.groups_at(batch, self.layer).to(hidden.device)
        vision, keys = groups == VISION, groups != PADDING
        mask, n_queries = kwargs.get(self.adapter.mask_name), hidden.shape[1]
        if n_queries == groups.shape[1]:
            queries = ~vision
            n_new = 0
        else:  # a decoding step: its token comes after the prompt and those generated before
            queries = torch.ones(len(groups), n_queries, dtype=torch.bool, device=hidden.device)
            n_new = self.adapter.cached_length(kwargs, self.layer) + n_queries - groups.shape[1]
            vision = torch.cat([vision, torch.zeros_like(vision[:, :1]).expand(-1, n_new)], dim=1)
            keys = torch.cat([keys, torch.ones_like(keys[:, :1]).expand(-1, n_new)], dim=1)
        if mask is None or mask.ndim == 2:
            mask = attention_form(full_mask(None, keys, n_queries), self.adapter.decoder.config, hidden.dtype)
        where = queries[:, None, :, None] & vision[:, None, None, :]
        return args, {**kwargs, self.adapter.mask_name: block(mask, where)}


def vision_states(adapter: Adapter, batch: Batch, layer: int) -> Float[Tensor, "B V D"]:
    """Return the vision tokens' states at the input of a decoder layer, in the order of `vision_grid`, zero-padded.

    Of a `cross_kv` model: the states that cross-attention reads, which are the same for every layer.
    """
    kept: list[Tensor] = []

    def record(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        source = _vision_input(adapter, args, kwargs)
        where = vision_mask(adapter, batch, layer).to(source.device)
        rows = [row[mask] for row, mask in zip(source.reshape(*where.shape, -1), where, strict=True)]
        kept.append(nn.utils.rnn.pad_sequence(rows, batch_first=True))

    handle = _patch_points(adapter, layer)[0].register_forward_pre_hook(record, with_kwargs=True)
    try:
        with torch.no_grad():
            adapter.run(batch, logits_to_keep=1)
    finally:
        handle.remove()
    return kept[0]


@contextlib.contextmanager
def vision_patched(
    adapter: Adapter, layer: int, states: Float[Tensor, "B V D"], tokens: Bool[Tensor, "B V"] | None = None
) -> Iterator[None]:
    """Put other vision-token states in place at the input of a decoder layer, for the prompt of each pass.

    Of a `cross_kv` model: in place of what the cross-attention layers from `layer` on read. Qwen3-VL adds its own
    image's DeepStack features after the first layers, so only later layers are patched whole.

    Args:
        states: as from `vision_states` of another batch with the same numbers of vision tokens.
        tokens: replace these only, in the order of `vision_grid`; all when absent.

    Raises:
        ModelError: if there is no such layer; in the pass, if the numbers of tokens differ.
    """

    def replace(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        batch = adapter.active_batch
        assert batch is not None, "vision_patched works on passes of adapter.run and adapter.generate"
        source = _vision_input(adapter, args, kwargs)
        where = vision_mask(adapter, batch, layer)
        if source is None or source.numel() != where.numel() * source.shape[-1]:
            return None  # a decoding step
        counts = where.sum(dim=1)
        if states.shape[0] != len(counts) or int(counts.max()) != states.shape[1]:
            raise ModelError(
                f"vision_patched: states {tuple(states.shape)} for images with {counts.tolist()} vision tokens;"
                " patch between images of the same size."
            )
        patched = source.reshape(*where.shape, -1).clone()
        for row, mask in enumerate(where):
            places, new = mask.nonzero()[:, 0], states[row, : counts[row]]
            if tokens is not None:
                chosen = tokens[row, : counts[row]].cpu()
                places, new = places[chosen.to(places.device)], new[chosen.to(new.device)]
            patched[row, places.to(source.device)] = new.to(source.device, source.dtype)
        patched = patched.reshape(source.shape)
        if isinstance(adapter, CrossAttentionAdapter):
            return args, {**kwargs, "cross_attention_states": patched}
        return with_hidden(args, kwargs, patched)

    with contextlib.ExitStack() as stack:
        for module in _patch_points(adapter, layer):
            stack.callback(module.register_forward_pre_hook(replace, with_kwargs=True).remove)
        yield


def prompt_states(adapter: Adapter, batch: Batch, layer: int) -> Float[Tensor, "B S D"]:
    """Return the states of the whole prompt at the input of a decoder layer."""
    kept: list[Tensor] = []
    module = _block_at(adapter, layer)
    record = module.register_forward_pre_hook(lambda _, a, k: kept.append(hidden_of(a, k)), with_kwargs=True)
    try:
        with torch.no_grad():
            adapter.run(batch, logits_to_keep=1)
    finally:
        record.remove()
    return kept[0]


@contextlib.contextmanager
def prompt_patched(
    adapter: Adapter, layer: int, states: Float[Tensor, "B S D"], where: Bool[Tensor, "B S"]
) -> Iterator[None]:
    """Put other states in place at some positions of the prompt, at the input of a decoder layer, in each pass.

    Args:
        states: as from `prompt_states` of a batch of prompts of the same lengths.
        where: positions to replace.

    Raises:
        ModelError: if there is no such layer; in the pass, if the lengths differ.
    """

    def replace(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        hidden, batch = hidden_of(args, kwargs), adapter.active_batch
        assert batch is not None, "prompt_patched works on passes of adapter.run and adapter.generate"
        if hidden.shape[1] != batch["input_ids"].shape[1]:
            return None  # a decoding step
        if hidden.shape != states.shape:
            raise ModelError(f"prompt_patched: states {tuple(states.shape)} for prompts {tuple(hidden.shape)}.")
        return with_hidden(args, kwargs, torch.where(where[:, :, None].to(hidden.device), states.to(hidden), hidden))

    handle = _block_at(adapter, layer).register_forward_pre_hook(replace, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _block_at(adapter: Adapter, layer: int) -> nn.Module:
    if not 0 <= layer < adapter.n_layers:
        raise layer_error("patch", layer, adapter.n_layers - 1)
    return adapter.layers[layer]


def _patch_points(adapter: Adapter, layer: int) -> list[nn.Module]:
    """Return the blocks at whose input vision states are read or replaced for a patch at `layer`."""
    block_there = _block_at(adapter, layer)
    if not isinstance(adapter, CrossAttentionAdapter):
        return [block_there]
    points = [adapter.layers[i] for i in adapter.cross_layers if i >= layer]
    if not points:
        raise layer_error("patch: no cross-attention layer at or after", layer, adapter.cross_layers[-1])
    return points


def _vision_input(adapter: Adapter, args: tuple, kwargs: dict[str, Any]) -> Any:
    if isinstance(adapter, CrossAttentionAdapter):
        return kwargs.get("cross_attention_states")
    return args[0] if args else kwargs["hidden_states"]


def vision_mask(adapter: Adapter, batch: Batch, layer: int) -> Tensor:
    """Return which positions (`cross_kv`: which states) hold visual tokens at the input of a layer."""
    if isinstance(adapter, CrossAttentionAdapter):
        return adapter.vision_mask(batch)
    return adapter.groups_at(batch, layer) == VISION


@torch.no_grad()
def attention_to_vision(adapter: Adapter, batch: Batch, layers: Sequence[int] | None = None) -> Float[Tensor, "B V"]:
    """Return how much the question's tokens attend to each vision token: mean over layers, heads and those tokens.

    The weights of those tokens alone are computed, beside the kernel that computes the output.

    Args:
        layers: decoder layers (of a `cross_kv` model its cross-attention layers); all by default.
    """
    there = adapter.cross_layers if isinstance(adapter, CrossAttentionAdapter) else list(range(adapter.n_layers))
    wanted = there if layers is None else [layer for layer in layers if layer in there]
    if not wanted:
        raise ModelError(f"attention_to_vision: layers {list(layers or [])}; those that attend to vision are {there}.")
    modules = [attention_module(adapter.layers[i]) for i in wanted]
    where = vision_mask(adapter, batch, 0)
    text = adapter.groups(batch) == TEXT
    rows, real = padded_rows([row.nonzero()[:, 0] for row in text])
    share = real / real.sum(dim=1, keepdim=True)
    total = torch.zeros(where.shape)

    def add(heads: Heads) -> None:
        weights = heads.weights(rows)
        total.add_(torch.einsum("brs,br->bs", weights, share.to(weights.device)).cpu())

    with attention_read(dict.fromkeys(modules, add)):
        adapter.run(batch, logits_to_keep=1)
    found = [row[mask] / len(wanted) for row, mask in zip(total, where, strict=True)]
    return nn.utils.rnn.pad_sequence(found, batch_first=True)
