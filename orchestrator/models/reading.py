"""Attention weights of chosen queries, computed during the forward pass in the requested layers only.

Fused kernels return no weights. A module that is read computes its output by its usual kernel; the weights of the
chosen queries are computed in addition, from its queries and keys. Reading changes no output, and costs R x S per head
in one layer instead of S x S in all layers.

Shapes: B rows, H heads, G heads of keys (H a multiple of G), Q queries, S keys, R chosen queries, E width of a head.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from orchestrator.errors import ModelError

READING = "vtsweep_reading"
"""Name under which the reading attention function is registered in transformers."""
NAMES = ("cross_attn", "self_attn", "attn", "attention")
"""Possible names of a block's attention module; the first existing one is used."""


@dataclass(frozen=True)
class Heads:
    """Inputs of one attention function: after projections, norms and rotary embedding."""

    query: Float[Tensor, "B H Q E"]
    key: Float[Tensor, "B G S E"]
    mask: Tensor | None
    """None, (B, S), or 4-D boolean or additive; as passed to the kernel."""
    scaling: float
    causal: bool
    softcap: float | None = None

    @torch.no_grad()
    def weights(self, rows: Int[Tensor, "B R"] | None = None) -> Float[Tensor, "B R S"]:
        """Return attention weights, mean over heads, float32: of the queries at `rows`, or of all of them."""
        query, n_queries, n_keys = self.query, self.query.shape[2], self.key.shape[2]
        if rows is None:
            rows = torch.arange(n_queries, device=query.device).expand(len(query), -1)
        rows = rows.to(query.device)
        chosen = query.gather(2, rows[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3]))
        grouped = chosen.unflatten(1, (self.key.shape[1], -1)).float()
        scores = torch.einsum("bghre,bgse->bghrs", grouped, self.key.float()).flatten(1, 2) * self.scaling
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        return self._masked(scores, rows, n_queries, n_keys).softmax(-1).mean(1)

    def _masked(self, scores: Tensor, rows: Tensor, n_queries: int, n_keys: int) -> Tensor:
        lowest = torch.finfo(scores.dtype).min
        mask = self.mask
        if mask is not None and mask.ndim == 4:
            mask = mask.expand(len(rows), -1, n_queries, -1)[..., :n_keys]
            mask = mask.gather(2, rows[:, None, :, None].expand(-1, mask.shape[1], -1, n_keys))
            return scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask.float()
        if mask is not None:
            scores = scores.masked_fill(~mask.bool()[:, None, None, :n_keys], lowest)
        if self.causal:
            last = rows[:, :, None] + n_keys - n_queries
            later = torch.arange(n_keys, device=scores.device) > last
            scores = scores.masked_fill(later[:, None], lowest)
        return scores

    @property
    def keys(self) -> Float[Tensor, "B S GE"]:
        """The keys of all heads, concatenated."""
        return self.key.transpose(1, 2).flatten(2)

    @property
    def mean_keys(self) -> Float[Tensor, "B S E"]:
        """The keys, mean over heads."""
        return self.key.mean(dim=1)


Reader = Callable[[Heads], None]
_READERS: dict[int, tuple[Reader, str]] = {}


def attention_module(block: nn.Module) -> nn.Module:
    """Return a block's attention module.

    Raises:
        ModelError: it has none with a configurable attention function, so that weights cannot be read.
    """
    for name in NAMES:
        module = getattr(block, name, None)
        if isinstance(module, nn.Module) and hasattr(module, "config"):
            return module
    raise ModelError(f"{type(block).__name__}: its attention weights cannot be read; rank tokens another way.")


@contextlib.contextmanager
def attention_read(readers: Mapping[nn.Module, Reader]) -> Iterator[None]:
    """Pass each attention module's queries and keys to its reader, inside the context."""
    _register()
    with contextlib.ExitStack() as stack:
        for module, reader in readers.items():
            switch = _Switch(reader)
            stack.callback(module.register_forward_pre_hook(switch.on).remove)
            stack.callback(module.register_forward_hook(switch.off, always_call=True).remove)
        yield


class _Switch:
    """Selects the reading attention function while one module runs; other modules share its config."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def on(self, module: Any, _: Any) -> None:
        _READERS[id(module)] = self.reader, module.config._attn_implementation
        module.config._attn_implementation = READING

    def off(self, module: Any, *_: Any) -> None:
        if id(module) in _READERS:
            module.config._attn_implementation = _READERS.pop(id(module))[1]


def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(READING, _reading_attention)


def _reading_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
) -> Any:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    reader, name = _READERS[id(module)]
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    reader(Heads(query, key, attention_mask, scaling, bool(causal) and query.shape[2] > 1, kwargs.get("softcap")))
    if name == "eager":
        plain = sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[attr-defined]
    else:
        plain = ALL_ATTENTION_FUNCTIONS[name]
    return plain(module, query, key, value, attention_mask, **kwargs)


class _EnoughError(Exception):
    """Raised to end a block's pass after its attention was read."""


def peek(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Heads:
    """Return the inputs of a block's attention without running the rest of the block or changing its cache."""
    captured: list[Heads] = []

    def read(heads: Heads) -> None:
        captured.append(heads)
        raise _EnoughError

    without: dict[str, Any] = {
        key: None for key in ("cache", "past_key_values", "past_key_value", "layer_past") if key in kwargs
    }
    readers: dict[nn.Module, Reader] = {attention_module(block): read}
    with contextlib.suppress(_EnoughError), attention_read(readers), torch.no_grad():
        block.forward(*args, **{**kwargs, **without})
    return captured[0]


def padded_rows(rows: list[Int[Tensor, " R"]]) -> tuple[Int[Tensor, "B R"], Bool[Tensor, "B R"]]:
    """Return lists of positions as one tensor, filled with 0, and which are real."""
    index = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    real = torch.arange(index.shape[1])[None] < torch.tensor([len(r) for r in rows])[:, None]
    return index, real
