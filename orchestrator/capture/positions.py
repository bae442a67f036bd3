"""Which tokens' states are kept for probes, and how they become float16.

| position | token |
|---|---|
| `vision_mean`, `text_mean` | mean over the group's tokens |
| `vision_00`, `vision_01`, ... | seeded quantiles of the image's vision tokens |
| `text_00`, `text_01`, ... | tokens of the question, evenly spaced from its first to its last |
| `vision_object` | mean over the image's vision tokens that show an object (`models.box_tokens`) |
| `vision_background` | mean over those that show none; both are NaN where an image has no such token |
| `last` | last token of the sequence |
| `before` | last token before the image, if vision tokens are in the sequence and not at its start |

A vision position is a quantile q in [0, 1): token floor(q N) of an image's N vision tokens. Images of different sizes
thus share positions, at the same relative place in reading order (`vision_quantiles`).

Shapes: B images, N tokens, D width, P positions.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

FLOAT16_MAX = 65504.0
CLASSES = ("vision_object", "vision_background")
"""Positions that are means over a part of the vision tokens."""


def vision_ordinals(quantiles: np.ndarray, counts: Int64[Tensor, " B"]) -> Int64[Tensor, "B P"]:
    """Index among an image's vision tokens, from 0, of each quantile."""
    places = torch.as_tensor(quantiles, dtype=torch.float64, device=counts.device)
    return (places[None] * counts[:, None].double()).floor().long()


def text_ordinals(n: int, counts: Int64[Tensor, " B"]) -> Int64[Tensor, "B P"]:
    """Indices of `n` tokens of a question, evenly spaced from its first to its last."""
    steps = torch.linspace(0.0, 1.0, n, dtype=torch.float64, device=counts.device)
    return (steps[None] * (counts[:, None] - 1).double()).round().long()


def position_names(n_vision: int | None, n_text: int | None, before: bool = False) -> list[str]:
    """Position names in storage order; pass None for a group that a tap does not have."""
    names: list[str] = []
    if n_vision is not None:
        names += ["vision_mean", *(f"vision_{k:02d}" for k in range(n_vision))]
    if n_text is not None:
        names += ["text_mean", *(f"text_{k:02d}" for k in range(n_text)), "last"]
    if before:
        names.append("before")
    return names


def masked_mean(tokens: Float[Tensor, "*L B T D"], present: Bool[Tensor, "B T"] | None) -> Float32[Tensor, "*L B D"]:
    """Mean over the tokens that are present (all for None); non-finite states propagate."""
    if present is None:
        return tokens.mean(-2, dtype=torch.float32)
    # Absent states are set to zero, not multiplied by it: padding may contain inf, and 0 x inf is NaN.
    total = tokens.masked_fill(~present[..., None], 0.0).sum(-2, dtype=torch.float32)
    return total / present.sum(1, keepdim=True).clamp(min=1)


def class_means(tokens: Float[Tensor, "*L B T D"], classes: Bool[Tensor, "B K T"]) -> Float32[Tensor, "*L B K D"]:
    """Mean over the tokens of each class; NaN for a class that an image has no token of."""
    parts = []
    for k in range(classes.shape[1]):
        own = classes[:, k]
        parts.append(masked_mean(tokens, own).masked_fill(~own.any(1)[:, None], torch.nan))
    return torch.stack(parts, dim=-2)


def take(tokens: Float[Tensor, "*L B N D"], places: Int64[Tensor, "B P"]) -> Float[Tensor, "*L B P D"]:
    """States at `places` of the token axis, by `index_select` of rows: several times faster than `gather`."""
    *layers, n_images, n_tokens, width = tokens.shape
    offsets = torch.arange(n_images, device=places.device)[:, None] * n_tokens
    rows = tokens.reshape(*layers, n_images * n_tokens, width)
    selected = rows.index_select(len(layers), (places + offsets).flatten())
    return selected.view(*layers, n_images, places.shape[1], width)


def to_float16(features: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Features as float16 without overflow.

    Args:
        features: float32 (n_images, n_layers, n_positions, D).

    Returns:
        The float16 array, and None if every value fits. Otherwise vectors that would overflow are divided by a
        power of two (exact but for the smallest values), and the second array, float32 (n_images, n_layers,
        n_positions), holds the factor that restores each vector.
    """
    largest = np.abs(features).max(axis=-1, initial=0.0)
    if not (largest > FLOAT16_MAX).any():
        return features.astype(np.float16), None
    exponents = np.ceil(np.log2(np.maximum(largest / FLOAT16_MAX, 1.0)))
    scales = np.exp2(exponents).astype(np.float32)
    return (features / scales[..., None]).astype(np.float16), scales
