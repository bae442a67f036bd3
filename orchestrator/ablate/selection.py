"""Which visual tokens to keep: a score for each token, and the highest are kept.

B: images, V: visual tokens of the largest image, D: width. Entries past an image's own tokens are ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from orchestrator.models.adapter import Adapter
from orchestrator.models.batching import Batch
from orchestrator.models.interventions import attention_to_vision, vision_states

LEVERAGE_RANK = 5
"""Dimensions of the top subspace in which leverage is measured."""

METHODS = {
    "random": "a uniform order of the tokens, drawn anew for each question and seed",
    "norm": "keeps the tokens of largest norm",
    "attention": "keeps the tokens the question's tokens attend to most (mean over layers and heads)",
    "similarity": "keeps the tokens least like the others (smallest mean cosine)",
    "leverage": f"keeps the tokens of largest leverage in the top-{LEVERAGE_RANK} singular subspace",
    "downsample": "keeps every token of an image shrunk to as many patches as would be kept",
}
"""Methods, each with what it does. `downsample` changes the image instead of the sequence: the honest rival."""


def n_kept(n_tokens: int, deleted_share: float) -> int:
    """Tokens left of `n_tokens` when `deleted_share` of them is deleted, rounded half up; 0 only when all are deleted.

    >>> n_kept(64, 0.99), n_kept(64, 0.5), n_kept(64, 1.0), n_kept(64, 0.0)
    (1, 32, 0, 64)
    """
    if deleted_share >= 1.0:
        return 0
    return max(1, int(np.floor((1.0 - deleted_share) * n_tokens + 0.5)))


def keep_mask(
    scores: Float[Tensor, "B V"], counts: Int[Tensor, " B"] | Sequence[int], deleted_share: float
) -> Bool[Tensor, "B V"]:
    """Keep the highest scores of each image; equal scores keep the earlier token."""
    keep = torch.zeros(scores.shape, dtype=torch.bool)
    for row, count in enumerate(torch.as_tensor(counts).tolist()):
        order = torch.argsort(scores[row, :count], descending=True, stable=True)
        keep[row, order[: n_kept(count, deleted_share)]] = True
    return keep


def score_tokens(
    adapter: Adapter, batch: Batch, method: str, *, layer: int = 0, seeds: Sequence[Sequence[int]] = ()
) -> Float[Tensor, "B V"]:
    """Scores of a batch's visual tokens by their states at the input of decoder layer `layer`; higher is kept longer.

    Args:
        method: any of `METHODS` but `downsample`.
        seeds: for `random`, the seed sequence of each row, so that a question's draw depends on nothing else.
    """
    counts = adapter.n_vision(batch)
    if method == "random":
        scores = torch.zeros(len(counts), int(counts.max()))
        for row, (count, seed) in enumerate(zip(counts.tolist(), seeds, strict=True)):
            scores[row, :count] = torch.from_numpy(np.random.default_rng(list(seed)).random(count, dtype=np.float32))
        return scores
    if method == "attention":
        return attention_to_vision(adapter, batch)
    states = vision_states(adapter, batch, layer).float().cpu()
    return torch.stack(
        [_pad(_by_states(method, row[:n]), len(row)) for row, n in zip(states, counts.tolist(), strict=True)]
    )


def _by_states(method: str, states: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
    if method == "norm":
        return states.norm(dim=1)
    if method == "similarity":
        unit = torch.nn.functional.normalize(states, dim=1)
        n = max(1, len(unit) - 1)
        return -((unit @ unit.sum(dim=0)) - 1.0) / n
    if method == "leverage":
        # Left singular vectors of the token matrix: eigenvectors of the N x N Gram matrix.
        values, vectors = torch.linalg.eigh((states @ states.T).double())
        kept = vectors[:, -LEVERAGE_RANK:] * (values[-LEVERAGE_RANK:] > values[-1] * 1e-12)
        return kept.square().sum(dim=1).float()
    raise ValueError(f"unknown method {method!r}; expected one of {list(METHODS)}")


def _pad(scores: Tensor, n: int) -> Tensor:
    return torch.nn.functional.pad(scores, (0, n - len(scores)))


def shrink(image: np.ndarray, deleted_share: float) -> np.ndarray:
    """The image with `1 - deleted_share` of its pixels, shrunk by area; a processor of fixed size enlarges it again.

    A model of native resolution then has that share of its visual tokens; one of fixed resolution has as many tokens
    as before, holding no more detail than that share of them could.
    """
    import cv2

    height, width = image.shape[:2]
    scale = float(np.sqrt(max(1e-6, 1.0 - deleted_share)))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def describe_methods() -> list[dict[str, Any]]:
    """Rows of method and meaning, for the report and the docs."""
    return [{"method": name, "keeps": text} for name, text in METHODS.items()]
