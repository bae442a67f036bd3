"""Metrics of how energy is spread over tokens. `R` rows (one image, group and layer each), `N` tokens.

All take token energies sorted from large to small with zeros at padding, so that padding changes nothing. They work in
float64: the arrays are tiny, and the only error left is the float32 rounding of the energies (about 1e-7 relative).
A row without energy gives NaN.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from orchestrator.compression.entries import MASSIVE_RATIO

_TIE = 1e-6
"""Slack of the 90 % rules: ten equal tokens need nine, though 9 x 0.1 may round to less than 0.9."""


def share_needed(energies: Float64[Tensor, "R K"], share: float = 0.9) -> Float64[Tensor, " R"]:
    """Fewest leading entries of each row (sorted, large to small) whose sum reaches `share` of the row's sum."""
    total = energies.sum(1, keepdim=True)
    short = energies.cumsum(1) < (share - _TIE) * total
    return (short.sum(1) + 1).where(total[:, 0] > 0, torch.nan)


def entropy_number(weights: Float64[Tensor, "R K"]) -> Float64[Tensor, " R"]:
    """exp(-sum p log p) of each row's weights (>= 0) after normalisation to p; zero weights count nothing."""
    p = weights / weights.sum(1, keepdim=True)
    return torch.special.entr(p).sum(1).exp()


def participation(weights: Float64[Tensor, "R K"]) -> Float64[Tensor, " R"]:
    """(sum w)^2 / sum w^2 of each row's weights (>= 0)."""
    p = weights / weights.sum(1, keepdim=True)
    return p.square().sum(1).reciprocal()


def gini(norms: Float64[Tensor, "R N"], counts: Int64[Tensor, " R"]) -> Float64[Tensor, " R"]:
    """Gini coefficient of norms sorted from large to small."""
    rank = torch.arange(norms.shape[1], device=norms.device)
    weight = counts[:, None] - 1 - 2 * rank
    return (weight * norms).sum(1) / (counts * norms.sum(1))


def hoyer(norms: Float64[Tensor, "R N"], counts: Int64[Tensor, " R"]) -> Float64[Tensor, " R"]:
    """Hoyer sparsity; NaN for one token, where most and least sparse coincide."""
    root = counts.double().sqrt()
    return ((root - norms.sum(1) / norms.square().sum(1).sqrt()) / (root - 1)).clamp(0, 1).where(counts > 1, torch.nan)


def massive_tokens(norms: Float64[Tensor, "R N"], threshold_of: Float64[Tensor, "R N"]) -> Bool[Tensor, "R N"]:
    """Which tokens have a norm above `MASSIVE_RATIO` times the row's median norm.

    Args:
        norms: token norms in any order.
        threshold_of: the same norms sorted from large to small. The (lower) median is that of the tokens with a norm,
            so that zero tokens and padding do not make every other token massive.
    """
    present = (threshold_of > 0).sum(1, keepdim=True)
    median = threshold_of.gather(1, (present - 1 - (present - 1) // 2).clamp(min=0))
    return norms > MASSIVE_RATIO * median
