"""Which visual tokens to keep: a score for each token, and the highest are kept.

V: visual tokens of one image, D: width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from orchestrator.models.adapter import Adapter
from orchestrator.models.batching import Batch
from orchestrator.models.cross_attention import CrossAttentionAdapter
from orchestrator.models.interventions import attention_to_vision, vision_states

LEVERAGE_RANK = 5
"""Dimensions of the top subspace in which leverage is measured."""


def n_kept(n_tokens: int, deleted_share: float) -> int:
    """Tokens left of `n_tokens` when `deleted_share` of them is deleted, rounded half up; 0 only when all are deleted.

    >>> n_kept(64, 0.99), n_kept(64, 0.5), n_kept(64, 1.0), n_kept(64, 0.0)
    (1, 32, 0, 64)
    """
    if deleted_share >= 1.0:
        return 0
    return min(n_tokens, max(1, int(np.floor((1.0 - deleted_share) * n_tokens + 0.5))))


def keep_mask(scores: Sequence[Float[Tensor, " V"]], deleted_shares: Sequence[float]) -> Bool[Tensor, "B V"]:
    """The tokens of each image with the highest scores, as `Adapter.drop` wants them; of equals, the earlier ones."""
    keep = torch.zeros(len(scores), max(len(s) for s in scores), dtype=torch.bool)
    for row, (score, share) in enumerate(zip(scores, deleted_shares, strict=True)):
        order = torch.argsort(score, descending=True, stable=True)
        keep[row, order[: n_kept(len(score), share)]] = True
    return keep


def random_scores(n_tokens: int, seed: Sequence[int]) -> Float[Tensor, " V"]:
    """A uniform order of the tokens that depends on the seed sequence alone."""
    return torch.from_numpy(np.random.default_rng(list(seed)).random(n_tokens, dtype=np.float32))


def score_tokens(adapter: Adapter, batch: Batch, method: str, layer: int = 0) -> list[Float[Tensor, " V"]]:
    """Scores of each image's visual tokens for deletion at the input of decoder layer `layer`.

    Args:
        method: `norm` keeps the tokens of largest norm, `similarity` those least like the others (smallest mean
            cosine), `leverage` those of largest leverage in the top singular subspace, all by the states at the input
            of the layer. `attention` keeps those the question attends to most: in the last layer before `layer` (as
            FastV does, Chen et al. 2024), or over all layers of a pass of its own where `layer` is 0.

    Raises:
        ValueError: another method.
        ModelError: `attention` before the first layer that attends to the image.
    """
    counts = adapter.n_vision(batch).tolist()
    if method == "attention":
        scores = attention_to_vision(adapter, batch, attention_layers(adapter, layer))
        return [row[:n] for row, n in zip(scores, counts, strict=True)]
    states = vision_states(adapter, batch, layer).float().cpu()
    return [_by_states(method, row[:n]) for row, n in zip(states, counts, strict=True)]


def attention_layers(adapter: Adapter, layer: int) -> list[int] | None:
    """The layer whose attention ranks tokens for deletion at `layer`; None for all of them."""
    if layer == 0:
        return None
    there = adapter.cross_layers if isinstance(adapter, CrossAttentionAdapter) else range(adapter.n_layers)
    return [i for i in there if i < layer][-1:]


def _by_states(method: str, states: Float[Tensor, "V D"]) -> Float[Tensor, " V"]:
    if method == "norm":
        return states.norm(dim=1)
    if method == "similarity":
        unit = torch.nn.functional.normalize(states, dim=1)
        return -(unit @ unit.sum(dim=0))
    if method == "leverage":
        return _leverage(states.double(), LEVERAGE_RANK).float()
    raise ValueError(f"unknown method {method!r}; expected norm, similarity, leverage or attention")


def _leverage(x: Float64[Tensor, "V D"], rank: int) -> Float64[Tensor, " V"]:
    """Squared norms of the rows of the first `rank` left singular vectors, from the Gram matrix of the smaller side."""
    wide = x.shape[0] <= x.shape[1]
    values, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
    there = values[-rank:] > values[-1] * 1e-10
    values, vectors = values[-rank:][there], vectors[:, -rank:][:, there]
    left = vectors if wide else (x @ vectors) / values.sqrt()
    return left.square().sum(dim=1)


def seen_size(example: Batch) -> tuple[int, int] | None:
    """Height and width, px, at which a model of fixed resolution sees a prepared image; None for any other model."""
    pixels = example.get("pixel_values")
    if pixels is None or pixels.ndim < 4 or pixels.shape[-3] != 3 or int(np.prod(pixels.shape[:-3])) != 1:
        return None
    return int(pixels.shape[-2]), int(pixels.shape[-1])


def shrink(image: np.ndarray, deleted_share: float, seen: tuple[int, int] | None = None) -> np.ndarray:
    """The image with a share `1 - deleted_share` of the pixels that the model would see, shrunk by area.

    A model of native resolution then has that share of its visual tokens. One of fixed resolution enlarges the image
    again: it has as many tokens as before, holding no more detail than that share of them could, and saves no time.

    Args:
        image: uint8 (H, W, 3).
        seen: from `seen_size`.
    """
    import cv2

    sides = image.shape[:2] if seen is None else np.minimum(image.shape[:2], seen)
    height, width = (max(1, round(side * float(np.sqrt(1.0 - deleted_share)))) for side in sides)
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))
