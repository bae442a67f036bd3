"""Deletion of tokens from a decoder's sequence: kept positions, and the arguments that must be shortened with them.

Position ids are kept: a token after a gap keeps its rotary position, so that the effect of missing content is measured
and not of a shifted prompt. Rows that keep different numbers of tokens are padded with masked tokens to the longest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class Shortening:
    """Kept positions of a (B, S) sequence.

    `index` (B, S') in ascending order; `real` (B, S') is false at fillers, which are masked.
    """

    index: Int[Tensor, "B S2"]
    real: Bool[Tensor, "B S2"]

    def to(self, device: torch.device) -> Shortening:
        """Return the same shortening on a device; a model may be spread over several."""
        return self if self.index.device == device else Shortening(self.index.to(device), self.real.to(device))

    def tokens(self, x: Tensor, axis: int = 1) -> Tensor:
        """Return `x` with only the kept positions along `axis`; the axis before it is the batch (B, or 1 for all)."""
        index = self.index.to(x.device)
        batch_axis = axis - 1
        if x.shape[batch_axis] == 1 and index.shape[0] > 1:
            x = x.expand(*(index.shape[0] if i == batch_axis else -1 for i in range(x.ndim)))
        shape = [1] * x.ndim
        shape[batch_axis], shape[axis] = index.shape
        target = list(x.shape)
        target[axis] = index.shape[1]
        return x.gather(axis, index.view(shape).expand(target))


def shortening(kept: Bool[Tensor, "B S"]) -> Shortening:
    """Return the shortening that keeps the positions where `kept` is true."""
    counts = kept.sum(dim=1)
    length = max(int(counts.max()), 1)
    # A stable sort on "not kept" puts kept positions first, in order; the following ones are fillers.
    order = torch.sort((~kept).to(torch.int8), dim=1, stable=True).indices[:, :length]
    index = order.sort(dim=1).values
    return Shortening(index=index, real=kept.gather(1, index))


def full_mask(mask: Tensor | None, key_mask: Bool[Tensor, "B S"], query_length: int) -> Tensor:
    """Return a 4-D mask (B, 1, Q, S) equivalent to `mask`, which may be None (causal), 2-D or 4-D.

    Args:
        key_mask: true at real tokens; used if `mask` is None or 2-D.
        query_length: Q; the queries are the last Q of the S positions.
    """
    if mask is not None and mask.ndim == 4:
        return mask
    keys = key_mask if mask is None else mask.bool()
    length = keys.shape[1]
    causal = torch.ones(query_length, length, dtype=torch.bool, device=keys.device).tril(length - query_length)
    return causal[None, None] & keys[:, None, None, :]


def attention_form(allowed: Bool[Tensor, "B 1 Q S"], config: Any, dtype: torch.dtype) -> Tensor:
    """Return a boolean mask in the form of the config's attention implementation: additive for `eager`."""
    if config._attn_implementation != "eager":
        return allowed
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


def block(mask: Tensor, blocked: Bool[Tensor, "B 1 Q S"]) -> Tensor:
    """Return a 4-D boolean or additive mask with attention blocked where `blocked` is true."""
    if mask.dtype == torch.bool:
        return mask & ~blocked
    return mask.masked_fill(blocked, torch.finfo(mask.dtype).min)


def shorten_mask(mask: Any, cut: Shortening) -> Any:
    """Return an attention mask (absent, 2-D, 4-D, or a dict of those by layer kind) for the shortened sequence."""
    if isinstance(mask, dict):
        return {kind: shorten_mask(each, cut) if each is not None else _none(cut) for kind, each in mask.items()}
    if mask is None:
        # A 2-D mask even if it is all ones: without one, gaps in position ids are interpreted as packed sequences.
        return cut.real.long()
    if mask.ndim == 2:
        return cut.tokens(mask) * cut.real.to(mask.dtype)
    if mask.shape[0] == 1 and cut.index.shape[0] > 1:
        mask = mask.expand(cut.index.shape[0], *mask.shape[1:])
    rows = cut.index[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3])
    mask = mask.gather(2, rows)
    cols = cut.index[:, None, None, :].expand(-1, mask.shape[1], mask.shape[2], -1)
    return block(mask.gather(3, cols), ~cut.real[:, None, None, :])


def _none(cut: Shortening) -> Tensor | None:
    """Return the replacement of an absent mask inside a dict: None unless fillers must be masked."""
    return None if bool(cut.real.all()) else full_mask(None, cut.real, cut.real.shape[1])


def shorten_decoder_inputs(kwargs: dict[str, Any], cut: Shortening) -> dict[str, Any]:
    """Return a decoder's keyword arguments with everything that has a sequence axis cut to the kept positions."""
    out = dict(kwargs)
    embeds = out["inputs_embeds"]
    positions = out.get("position_ids")
    if positions is None:
        positions = torch.arange(embeds.shape[1], device=embeds.device)[None]
    out["position_ids"] = cut.tokens(positions, positions.ndim - 1)
    out["inputs_embeds"] = cut.tokens(embeds)
    out["attention_mask"] = shorten_mask(out.get("attention_mask"), cut)
    if out.get("visual_pos_masks") is not None:
        mask = out["visual_pos_masks"]
        rows = cut.tokens(mask.flatten().cumsum(0).view_as(mask) - 1)
        out["visual_pos_masks"] = cut.tokens(mask)
        kept_rows = rows[out["visual_pos_masks"]]
        out["deepstack_visual_embeds"] = [level[kept_rows] for level in out["deepstack_visual_embeds"]]
    return out
