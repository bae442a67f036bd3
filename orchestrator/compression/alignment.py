"""Comparisons of two sets of states: subspace alignment, linear CKA, relative drift.

`B` images, `N` tokens, `D` width, `k` directions. The top-k subspace of a token matrix is spanned by the right singular
vectors of its k largest singular values (raw, not centred); `Shared.top_directions` reads them off the same reduction
that gives the spectrum, so that alignment adds little to the other metrics.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Float32, Float64
from torch import Tensor

from orchestrator.compression.shared import gather_tokens
from orchestrator.errors import DataError

TOP = 5
"""Directions compared: the studied paper's top-5 singular subspaces."""


def subspace_overlap(a: Float[Tensor, "B D k"], b: Float[Tensor, "B D k"]) -> Float32[Tensor, " B"]:
    """|V_a^T V_b|_F^2 / m: mean squared cosine of the principal angles, in [0, 1]; 1 for the same subspace.

    Args:
        a, b: orthonormal columns; a zero column stands for a direction the tokens do not have (fewer tokens than k).

    Returns:
        m is the smaller number of directions present (k as a rule); NaN where one side has none. Two random subspaces
        of D dimensions have k / D on average.
    """
    present = torch.minimum(*(v.square().sum(1).round().sum(1) for v in (a, b)))
    overlap = (a.mT @ b).square().sum((1, 2))
    return (overlap / present).clamp(max=1.0).where(present > 0, torch.nan).float()


@torch.no_grad()
def top5_alignment(
    a: Float[Tensor, "B N D"], mask_a: Bool[Tensor, "B N"], b: Float[Tensor, "B M D"], mask_b: Bool[Tensor, "B M"]
) -> Float32[Tensor, " B"]:
    """Alignment of the top-5 right singular subspaces of two token sets of each image.

    Vision with text in a layer: same states, two masks. A layer with the next, or a model with its fine-tuned self:
    two states, one mask. Raises `DataError` where widths differ: directions of different spaces do not compare.
    """
    if a.shape[2] != b.shape[2]:
        raise DataError(f"alignment compares directions of one space; widths are {a.shape[2]} and {b.shape[2]}")
    return subspace_overlap(gather_tokens(a, mask_a).top_directions(TOP), gather_tokens(b, mask_b).top_directions(TOP))


def align_layers(
    directions: Mapping[tuple[str, int, str], Float[Tensor, "B D k"]],
) -> dict[tuple[str, int, str], dict[str, Float32[Tensor, " B"]]]:
    """Columns `top5_alignment_text` and `top5_alignment_next` of `layer_metrics`.

    Args:
        directions: (tap, layer, group) -> leading directions, as `metrics.measure_layers` gives them.

    Returns:
        By the same keys: vision with text of the same tap and layer (in the rows of both groups), and with the next
        layer of the same tap and group. NaN where there is no partner: one group only, or the last layer.
    """
    layers: dict[tuple[str, str], list[int]] = {}
    for tap, layer, group in sorted(directions):
        layers.setdefault((tap, group), []).append(layer)
    found = {}
    for (tap, layer, group), own in directions.items():
        other_group = directions.get((tap, layer, "text" if group == "vision" else "vision"))
        later = [at for at in layers[tap, group] if at > layer]
        follower = directions[tap, later[0], group] if later else None
        found[tap, layer, group] = {
            name: own.new_full((len(own),), torch.nan) if partner is None else subspace_overlap(own, partner.to(own))
            for name, partner in (("top5_alignment_text", other_group), ("top5_alignment_next", follower))
        }
    return found


@torch.no_grad()
def relative_drift(
    base: Float[Tensor, "B N D"], other: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"]
) -> Float32[Tensor, " B"]:
    """|H_other - H_base|_F / |H_base|_F over the masked tokens of each image: 0 for the same states; NaN for none."""
    start = base.float() * mask[..., None]
    change = torch.linalg.vector_norm((other.float() * mask[..., None] - start).flatten(1), dim=1)
    return change / torch.linalg.vector_norm(start.flatten(1), dim=1)


@torch.no_grad()
def linear_cka(
    a: Float[Tensor, "B N P"], b: Float[Tensor, "B N Q"], mask: Bool[Tensor, "B N"] | None = None, debiased: bool = True
) -> Float64[Tensor, " B"]:
    """Linear centred kernel alignment of paired samples: tokens of one image, or one vector an image with B = 1.

    Args:
        a, b: states of the same samples in two models or layers; widths may differ.
        mask: samples that count; all when None.
        debiased: the unbiased HSIC estimator (Song et al. 2012, as used by Nguyen et al. 2021), which does not grow
            towards 1 as N falls below the width, may be slightly negative, and needs at least 4 samples. False gives
            Kornblith et al. 2019, in [0, 1].

    Returns:
        (B,) float64; NaN where either side is constant, or samples are too few.
    """
    present = torch.ones(a.shape[:2], dtype=torch.bool, device=a.device) if mask is None else mask
    n = present.sum(1).double()
    k, m = (_linear_kernel(x, present, centred=not debiased) for x in (a, b))
    if debiased:
        enough = n > 3
        joint, self_a, self_b = (_unbiased_hsic(p, q, n) for p, q in ((k, m), (k, k), (m, m)))
        valid = enough & (self_a > 0) & (self_b > 0)
    else:
        joint, self_a, self_b = ((p * q).sum((1, 2)) for p, q in ((k, m), (k, k), (m, m)))
        valid = (self_a > 0) & (self_b > 0)
    return (joint / (self_a * self_b).clamp(min=torch.finfo(torch.float64).tiny).sqrt()).where(valid, torch.nan)


def _linear_kernel(x: Tensor, present: Tensor, centred: bool) -> Tensor:
    """(B, N, N) float64 Gram matrix of centred samples, scaled to mean energy 1; without its diagonal if not `centred`.

    Subtracting the mean first changes neither estimator and keeps a large common offset from costing precision.
    """
    x = x.float() * present[..., None]
    x = (x - x.sum(1, keepdim=True) / present.sum(1).clamp(min=1)[:, None, None]) * present[..., None]
    kernel = (x @ x.mT).double()
    trace = kernel.diagonal(dim1=1, dim2=2).sum(1).clamp(min=torch.finfo(torch.float64).tiny)
    kernel = kernel / trace[:, None, None]
    return kernel if centred else kernel - torch.diag_embed(kernel.diagonal(dim1=1, dim2=2))


def _unbiased_hsic(k: Tensor, m: Tensor, n: Tensor) -> Tensor:
    """Song et al. 2012, equation 5, for kernels with zero diagonals."""
    rows_k, rows_m = k.sum(2), m.sum(2)
    cross = (k * m).sum((1, 2))
    sums = rows_k.sum(1) * rows_m.sum(1) / ((n - 1) * (n - 2))
    mixed = 2 * (rows_k * rows_m).sum(1) / (n - 2)
    return (cross + sums - mixed) / (n * (n - 3))
