"""Attention knock-out by source and target: which tokens may not read which, in some decoder layers.

A route goes from what is read to what reads: `image->last` stops the prompt's last token, and all tokens written after
it, from reading the image. A token always sees itself.

Shapes: B rows, S positions of the prompt, V visual tokens of an image, N cross-attended states.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from orchestrator.errors import ModelError
from orchestrator.models.adapter import Adapter
from orchestrator.models.batching import Batch
from orchestrator.models.block_shortening import hidden_of
from orchestrator.models.cross_attention import CrossAttentionAdapter
from orchestrator.models.groups import PADDING, TEXT, VISION
from orchestrator.models.marking import layer_error
from orchestrator.models.reduction import reduction_of
from orchestrator.models.sequence import SequenceAdapter
from orchestrator.models.shortening import attention_form, block, full_mask

IMAGE_PARTS = ("image", "object", "background")


@dataclass(frozen=True)
class Route:
    """Who may not read whom.

    `source` is `image`, `object`, `background` (parts of it) or `question`; `target` is `question` or `last`.
    """

    source: str
    target: str

    @classmethod
    def of(cls, name: str) -> Route:
        """Read `image->last`."""
        return cls(*name.split("->"))


@contextlib.contextmanager
def route_blocked(
    adapter: Adapter, layers: Sequence[int], route: Route, objects: Bool[Tensor, "B V"] | None = None
) -> Iterator[None]:
    """Block a route in some decoder layers, for passes of `adapter.run` and `adapter.generate`.

    In a `cross_kv` model the image is read in cross-attention layers and the question in the others; a token that may
    read nothing of the image any more skips the layer, as it is skipped for a prompt without an image.

    Args:
        objects: which of each image's visual tokens show an object, in the order of `vision_grid`; for routes from
            `object` or `background`.

    Raises:
        ModelError: there is no such layer, or objects are not given where they are needed.
    """
    for layer in layers:
        if not 0 <= layer < adapter.n_layers:
            raise layer_error("route_blocked", layer, adapter.n_layers - 1)
    if route.source in ("object", "background") and objects is None:
        raise ModelError(f"route_blocked: a route from {route.source} needs to know which tokens show objects.")
    cross = adapter.cross_layers if isinstance(adapter, CrossAttentionAdapter) else []
    with contextlib.ExitStack() as stack:
        for layer in layers:
            module = adapter.layers[layer]
            if isinstance(adapter, CrossAttentionAdapter) and layer in cross:
                if route.source in IMAGE_PARTS:
                    hook = _CrossRoute(adapter, route, objects)
                    stack.callback(module.register_forward_pre_hook(hook.before, with_kwargs=True).remove)
                    stack.callback(module.register_forward_hook(hook.after, with_kwargs=True).remove)
            elif not cross or route.source not in IMAGE_PARTS:
                own = _SelfRoute(adapter, layer, route, objects)
                stack.callback(module.register_forward_pre_hook(own, with_kwargs=True).remove)
        yield


def readers(adapter: Adapter, batch: Batch, target: str) -> Bool[Tensor, "B S"]:
    """Return the positions of the prompt that a target names."""
    groups = adapter.full_groups(batch)
    if target == "question":
        return groups == TEXT
    last = torch.zeros_like(groups, dtype=torch.bool)
    last[:, -1] = True
    return last


def _part(vision: Bool[Tensor, "B P"], source: str, objects: Bool[Tensor, "B V"] | None) -> Bool[Tensor, "B P"]:
    """Which places hold the visual tokens of a part of the image."""
    if source == "image" or objects is None:
        return vision
    found = torch.zeros_like(vision)
    for row, places in enumerate(mask.nonzero()[:, 0] for mask in vision):
        found[row, places] = objects[row, : len(places)] == (source == "object")
    return found


def _check(batch: Batch | None) -> Batch:
    assert batch is not None, "route_blocked works on passes of adapter.run and adapter.generate"
    if "keep" in batch or reduction_of(batch) is not None:
        raise ModelError("route_blocked: the batch has tokens dropped; block routes in whole prompts.")
    return batch


class _SelfRoute:
    """Pre-hook that hides keys from queries of one self-attention block."""

    def __init__(self, adapter: Adapter, layer: int, route: Route, objects: Tensor | None) -> None:
        self.adapter, self.layer, self.route, self.objects = adapter, layer, route, objects

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        adapter, hidden = self.adapter, hidden_of(args, kwargs)
        batch = _check(adapter.active_batch)
        groups = adapter.full_groups(batch).to(hidden.device)
        if self.route.source == "question":
            source = groups == TEXT
        else:
            source = _part((groups == VISION).cpu(), self.route.source, self.objects).to(hidden.device)
        keys, n_queries = groups != PADDING, hidden.shape[1]
        if n_queries == groups.shape[1]:
            queries = readers(adapter, batch, self.route.target).to(hidden.device)
            n_new = 0
        else:  # a decoding step: its token goes on from the last one
            queries = torch.full((len(groups), n_queries), self.route.target == "last", device=hidden.device)
            n_new = self._cached(kwargs) + n_queries - groups.shape[1]
            source = torch.cat([source, torch.zeros_like(source[:, :1]).expand(-1, n_new)], dim=1)
            keys = torch.cat([keys, torch.ones_like(keys[:, :1]).expand(-1, n_new)], dim=1)
        name = adapter.mask_name if isinstance(adapter, SequenceAdapter) else "attention_mask"
        mask = kwargs.get(name)
        if mask is None or mask.ndim == 2:
            config: Any = adapter.decoder.config
            mask = attention_form(full_mask(None, keys, n_queries), config, hidden.dtype)
        own = torch.eye(n_queries, keys.shape[1], dtype=torch.bool, device=hidden.device)
        own = own.roll(keys.shape[1] - n_queries, dims=1)
        where = queries[:, None, :, None] & source[:, None, None, :] & ~own
        return args, {**kwargs, name: block(mask, where)}

    def _cached(self, kwargs: dict[str, Any]) -> int:
        if isinstance(self.adapter, SequenceAdapter):
            return self.adapter.cached_length(kwargs, self.layer)
        cache = kwargs["cache"] if "cache" in kwargs else kwargs["past_key_values"]
        return int(cache.get_seq_length(self.layer))


class _CrossRoute:
    """Pre-hook that hides states from queries of one cross-attention block, and hook that skips blind queries."""

    def __init__(self, adapter: CrossAttentionAdapter, route: Route, objects: Tensor | None) -> None:
        self.adapter, self.route, self.objects = adapter, route, objects
        self.blind: Tensor | None = None

    def before(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        adapter, hidden = self.adapter, hidden_of(args, kwargs)
        batch, n_queries = _check(adapter.active_batch), hidden.shape[1]
        vision = adapter.vision_mask(batch)
        source = _part(vision, self.route.source, self.objects)
        queries = readers(adapter, batch, self.route.target)
        if n_queries != queries.shape[1]:
            queries = torch.full((len(queries), n_queries), self.route.target == "last")
        blind = (vision & ~source).sum(dim=1) == 0
        self.blind = (queries & blind[:, None]).to(hidden.device)
        where = (queries[:, :, None] & source[:, None, :] & ~blind[:, None, None])[:, None].to(hidden.device)
        mask = kwargs.get("cross_attention_mask")
        if mask is None:
            mask = hidden.new_zeros(len(vision), 1, n_queries, vision.shape[1])
        return args, {**kwargs, "cross_attention_mask": block(mask, where)}

    def after(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        if self.blind is None:
            return output
        return torch.where(self.blind[:, :, None], hidden_of(args, kwargs), output)
