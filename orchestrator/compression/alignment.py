"""Comparisons of two sets of states: subspace alignment, linear CKA, relative drift.

`B` images, `N` tokens, `D` width. The top-5 subspace of a token matrix is spanned by the right singular vectors of its
five largest singular values, computed from the leading block that the rank metrics use (`gram.py`).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Float32, Float64
from torch import Tensor

from orchestrator.compression import finish
from orchestrator.compression.gram import Variant
from orchestrator.compression.metrics import measure
from orchestrator.compression.shared import gather_tokens
from orchestrator.errors import DataError


@torch.no_grad()
def top5_alignment(
    a: Float[Tensor, "B N D"],
    mask_a: Bool[Tensor, "B N"],
    b: Float[Tensor, "B M D"],
    mask_b: Bool[Tensor, "B M"],
    *,
    centred: bool = False,
) -> Float32[Tensor, " B"]:
    """Alignment of the top-5 right singular subspaces of two token sets of each image, on the device of the states.

    Vision with text in a layer: same states, two masks. A layer with the next, or a model with its fine-tuned
    version: two states, one mask. Two independent random subspaces have 5 / D. Raises `DataError` if widths differ:
    directions of different spaces are not comparable.

    Returns:
        (B,) float32 on the CPU; NaN if one side has no direction.
    """
    if a.shape[2] != b.shape[2]:
        raise DataError(f"alignment needs states of equal width; found widths {a.shape[2]} and {b.shape[2]}")
    sides, max_directions = [], []
    for hidden, mask in ((a, mask_a), (b, mask_b)):
        tokens, counts, full = gather_tokens(hidden, mask)
        name = "top5_alignment_text" + "_centred" * centred
        sides.append(measure(tokens, counts, (name,), full=full).leading[Variant(centred)])
        max_directions.append(mask.sum(1).cpu().numpy() - int(centred))
    cross = (sides[0].basis.mT @ sides[1].basis).cpu().numpy()
    first, second = (
        finish.solve(side.ritz.cpu().numpy(), side.metric.cpu().numpy(), n)
        for side, n in zip(sides, max_directions, strict=True)
    )
    return torch.from_numpy(finish.overlap(first, second, cross)).float()


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
    """Linear centred kernel alignment of paired samples: tokens of one image, or one vector per image with B = 1.

    Args:
        a, b: states of the same samples in two models or layers; widths may differ.
        mask: samples to use; all when None.
        debiased: the unbiased HSIC estimator (Song et al. 2012, as used by Nguyen et al. 2021), which is not
            biased towards 1 for N below the width, may be slightly negative, and needs at least 4 samples. False gives
            Kornblith et al. 2019, in [0, 1].

    Returns:
        (B,) float64; NaN if either side is constant, or samples are too few.
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

    Subtracting the mean first changes neither estimator and avoids loss of precision from a large common offset.
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
