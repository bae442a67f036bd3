"""Where in a batch the tokens lie that a capture keeps, worked out once a pass on the host, from masks that are there.

The kept tokens of a tap point stand side by side: vision tokens, text tokens, the token before the image, the last
token. One gather copies them out of a layer's states; all layers of a pass that share masks share a layout.

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
"""Tokens of a group are padded to a multiple of this on a GPU: an odd number doubles the cost of their products."""


@dataclass(frozen=True)
class GroupLayout:
    """One group's tokens among the kept ones: places `start` to `start + size`, each image's own first."""

    start: int
    size: int
    counts: Int64[np.ndarray, " B"]
    full: bool
    """Whether every image has `size` tokens."""
    device_counts: Int64[Tensor, " B"]
    ordinals: Int64[Tensor, "B P"]
    """Which kept tokens are kept for probes (counted among all kept ones)."""

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
    """Places among the kept tokens of what `position_names` calls `last` and `before`, as far as they are there."""
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
        masks: group -> which tokens are its own; on the CPU, so that nothing is waited for.
        device: where the states lie.
        quantiles: `positions.vision_quantiles`.
        n_text_positions: text tokens kept for probes.
        own_prompts: images have prompts of their own.
    """
    multiple = GPU_MULTIPLE if device.type == "cuda" else 1
    parts: list[np.ndarray] = []
    groups: dict[str, GroupLayout] = {}
    start, first_vision = 0, None
    for group, mask in masks.items():
        present = mask.cpu().numpy()
        counts = present.sum(1).astype(np.int64)
        most = max(1, int(counts.max(initial=0)))  # a group that no image has keeps one place, which is empty
        size = -(-most // multiple) * multiple
        order = np.argsort(~present, axis=1, kind="stable")[:, :most]
        if group == "vision":
            first_vision = order[:, :1]
            ordinals = positions.vision_ordinals(quantiles, torch.from_numpy(counts))
        else:
            # With one prompt a stage no token is kept twice; where images have prompts of their own, short ones repeat
            # tokens, so that all images keep the same positions.
            n_kept = n_text_positions if own_prompts else min(n_text_positions, most)
            ordinals = positions.text_ordinals(n_kept, torch.from_numpy(counts))
        # padding is the row's own first token: what stands there is finite where the row is
        order = np.where(np.arange(most) < counts[:, None], order, order[:, :1])
        parts.append(np.concatenate([order, np.repeat(order[:, :1], size - most, 1)], 1))
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
        parts.append(np.full((n_rows, 1), n_all - 1))
        extra.append(start)
        start += 1
    before = first_vision is not None and "text" in masks and first_vision.size > 0 and int(first_vision.min()) > 0
    if before and first_vision is not None:
        parts.append(first_vision - 1)
        extra.append(start)
        start += 1
    places = np.concatenate(parts, axis=1) + np.arange(n_rows)[:, None] * n_all
    names = positions.position_names(
        len(quantiles) if "vision" in masks else None,
        groups["text"].ordinals.shape[1] if "text" in masks else None,
        before,
    )
    return TokenLayout(_send(torch.from_numpy(places.reshape(-1)), device), start, groups, extra, names)


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=True)
