"""Indices of the tokens that a capture keeps, computed once per pass on the host from the masks.

The kept tokens of a tap point are contiguous: vision tokens, text tokens, the last token, the token before the image.
One gather copies them from the states of a layer; all layers of a pass that share masks share a layout.

Shapes: B images, N tokens of the states, T kept ones, P positions kept for probes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from orchestrator.capture import positions

GPU_MULTIPLE = 16
"""On a GPU a group's tokens are padded to a multiple of this: an odd number doubles the cost of matrix products."""


@dataclass(frozen=True)
class GroupLayout:
    """The tokens of one group: kept tokens `start` to `start + size`; padding comes last."""

    start: int
    size: int
    counts: Int64[np.ndarray, " B"]
    full: bool
    """Whether every image has `size` tokens."""
    device_counts: Int64[Tensor, " B"]
    ordinals: Int64[Tensor, "B P"]
    """Indices, among all kept tokens, of those whose states are kept for probes."""

    @property
    def end(self) -> int:
        return self.start + self.size


@dataclass(frozen=True)
class TokenLayout:
    """All kept tokens of a tap point."""

    places: Int64[Tensor, " BT"]
    """Rows of the states, flattened over images and tokens, in the order of the kept tokens."""
    n_tokens: int
    """T."""
    groups: dict[str, GroupLayout]
    extra: list[int]
    """Indices among the kept tokens of the positions `last` and `before`, if present."""
    position_names: list[str] = field(default_factory=list)


def make_layout(
    masks: dict[str, Bool[Tensor, "B N"]],
    device: torch.device,
    quantiles: np.ndarray,
    n_text_positions: int,
    own_prompts: bool = False,
) -> TokenLayout:
    """The layout of a tap point.

    Args:
        masks: group -> mask of its tokens; on the CPU, so that no synchronization is needed.
        device: device of the states.
        quantiles: `vision_quantiles`.
        n_text_positions: text tokens kept for probes.
        own_prompts: each image has its own prompt.
    """
    multiple = GPU_MULTIPLE if device.type == "cuda" else 1
    columns: list[np.ndarray] = []
    groups: dict[str, GroupLayout] = {}
    start, first_vision = 0, None
    for group, mask in masks.items():
        present = mask.cpu().numpy()
        counts = present.sum(1).astype(np.int64)
        max_count = max(1, int(counts.max(initial=0)))  # a group that is absent from all images keeps one empty slot
        size = -(-max_count // multiple) * multiple
        order = np.argsort(~present, axis=1, kind="stable")[:, :max_count]
        if group == "vision":
            first_vision = order[:, :1]
            ordinals = positions.vision_ordinals(quantiles, torch.from_numpy(counts))
        else:
            # With one prompt per stage no token is kept twice. If each image has its own prompt, short prompts repeat
            # tokens, so that all images have the same positions.
            n_kept = n_text_positions if own_prompts else min(n_text_positions, max_count)
            ordinals = positions.text_ordinals(n_kept, torch.from_numpy(counts))
        # pad with the row's first token: the padding is finite if the row is
        order = np.where(np.arange(max_count) < counts[:, None], order, order[:, :1])
        columns.append(np.concatenate([order, np.repeat(order[:, :1], size - max_count, 1)], 1))
        groups[group] = GroupLayout(
            start,
            size,
            counts,
            bool((counts == size).all()),
            _send(torch.from_numpy(counts), device),
            _send(ordinals + start, device),
        )
        start += size
    n_rows, n_all = next(iter(masks.values())).shape
    extra = []
    if "text" in masks:
        columns.append(np.full((n_rows, 1), n_all - 1))
        extra.append(start)
        start += 1
    before = first_vision is not None and "text" in masks and first_vision.size > 0 and int(first_vision.min()) > 0
    if before and first_vision is not None:
        columns.append(first_vision - 1)
        extra.append(start)
        start += 1
    places = np.concatenate(columns, axis=1) + np.arange(n_rows)[:, None] * n_all
    names = positions.position_names(
        len(quantiles) if "vision" in masks else None,
        groups["text"].ordinals.shape[1] if "text" in masks else None,
        before,
    )
    return TokenLayout(_send(torch.from_numpy(places.reshape(-1)), device), start, groups, extra, names)


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=True)
