"""Leading eigenvectors of a batch of symmetric matrices, by products and small factorisations only.

Subspace iteration with Chebyshev-shifted steps: after `PLAIN` plain steps A X, every further step is (A - s I) X with s
a root of a Chebyshev polynomial on [0, c], c below the smallest Rayleigh quotient of the block. Over a round the
product of the steps is that polynomial, which damps all eigenvalues below c and grows fastest above it. Each step is
orthonormalised, so that no column is lost however fast the spectrum decays. There is no data-dependent control flow, so
that a GPU is never synchronized. The caller solves the small projected matrix X^T A X.

Shapes: R rows, V matrices of a row, K their side, b columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 8
"""Columns iterated for five directions; the extra columns speed up convergence of the fifth."""
PLAIN, ROUNDS = 2, (4, 4)
"""Number of plain steps, and of shifted steps in each round."""
_RIDGE = 3e-6
"""Added to the Gram matrix of unit columns before its Cholesky factorisation (float32)."""
_RIDGE_A_COLUMN = 4e-7
"""The same per column, as rounding errors grow with their number."""
_SAFETY = 0.95
"""Upper end of the damped interval, as a share of the smallest Rayleigh quotient."""


def leading_block(a: Float[Tensor, "R K K"], n: int = BLOCK) -> Float[Tensor, "R K b"]:
    """Orthonormal columns that span nearly the space of the `n` largest eigenvalues of positive semidefinite matrices.

    Columns beyond the rank are zero. Rows and columns of zeros (padding) do not affect the others. Ritz values
    are within 1e-5 of the eigenvalues if these decay at least like i^-1/2, the largest within 2 % on the flattest
    spectra (tokens of independent noise).
    """
    return leading_blocks(lambda x: (a @ x.flatten(2)).view_as(x), len(a), a.shape[1], 1, a, n)[:, :, 0]


def leading_blocks(
    apply: Callable[[Float[Tensor, "R K V b"]], Float[Tensor, "R K V b"]],
    rows: int,
    side: int,
    variants: int,
    like: Tensor,
    n: int = BLOCK,
) -> Float[Tensor, "R K V b"]:
    """`leading_block` of V matrices per row at once, given only by their products with columns.

    Args:
        apply: columns of each matrix -> their images.
        rows, side, variants: R, K and V.
        like: a tensor of the device and dtype.
    """
    start = _start(side, min(n, side), like.device, like.dtype)[:, :, None]
    x = orthonormal(start.expand(rows, -1, variants, -1))
    for _ in range(PLAIN):
        x = orthonormal(apply(x))
    for steps in ROUNDS:
        y = apply(x)
        end = _SAFETY * (x * y).sum(1, keepdim=True).amin(3, keepdim=True)  # R 1 V 1
        for step, share in enumerate(_shifts(steps)):
            x = orthonormal(torch.addcmul(y if step == 0 else apply(x), x, end, value=-share))
    x = orthonormal(x)  # restore unit length of columns that came out short but are not dependent
    x = x * (x.square().sum(1, keepdim=True) > 0.5)
    x = orthonormal(x)
    return orthonormal(x, ridge=1e-7)  # as these columns are nearly orthonormal


def orthonormal(x: Float[Tensor, "R K V b"], ridge: float = _RIDGE) -> Float[Tensor, "R K V b"]:
    """Columns orthonormalised by a Cholesky factorisation; columns that depend on earlier ones come out short."""
    gram = products(x, x)
    scale = gram.diagonal(dim1=2, dim2=3).clamp(min=torch.finfo(x.dtype).tiny).rsqrt()  # columns of length 1
    gram = gram * (scale[..., :, None] * scale[..., None, :])
    gram.diagonal(dim1=2, dim2=3).add_(max(ridge, _RIDGE_A_COLUMN * x.shape[3]) if ridge >= _RIDGE else ridge)
    factor = torch.linalg.cholesky_ex(gram)[0]
    unit = torch.eye(x.shape[3], dtype=x.dtype, device=x.device)
    # invert the small factor: triangular solves with many long right-hand sides are slow on a GPU
    inverse = torch.linalg.solve_triangular(factor, unit, upper=False)
    return mixed(x, scale[..., None] * inverse.mT)


def products(x: Float[Tensor, "R K V b"], y: Float[Tensor, "R K V b"]) -> Float[Tensor, "R V b b"]:
    """x^T y of each variant: the diagonal blocks of one product."""
    n_variants, b = x.shape[2:]
    product = x.flatten(2).mT @ y.flatten(2)
    if n_variants == 1:
        return product[:, None]
    return product.view(-1, n_variants, b, n_variants, b).diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)


def mixed(x: Float[Tensor, "R K V b"], by: Float[Tensor, "R V b b"]) -> Float[Tensor, "R K V b"]:
    """x by of each variant, in one product with a block-diagonal matrix."""
    n_variants, b = x.shape[2:]
    if n_variants == 1:
        return (x[:, :, 0] @ by[:, 0])[:, :, None]
    block_diagonal = by.new_zeros(len(by), n_variants, b, n_variants, b)
    block_diagonal.diagonal(dim1=1, dim2=3).copy_(by.permute(0, 2, 3, 1))
    return (x.flatten(2) @ block_diagonal.view(len(by), n_variants * b, -1)).view_as(x)


@cache
def _shifts(n: int) -> tuple[float, ...]:
    """Roots of the Chebyshev polynomial of degree `n` on [0, 1], in Leja order."""
    roots = [(1 - math.cos(math.pi * (2 * k + 1) / (2 * n))) / 2 for k in range(n)]
    order = [min(roots)]
    while len(order) < n:
        left = [root for root in roots if root not in order]
        order.append(max(left, key=lambda root: math.prod(abs(root - chosen) for chosen in order)))
    return tuple(order)


@cache
def _start_block(k: int, n: int) -> np.ndarray:
    # Row by row, so that the start block of a larger matrix extends that of a smaller one.
    return np.random.default_rng(0).standard_normal((k, n), dtype=np.float32)


def _start(k: int, n: int, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "1 K b"]:
    return torch.from_numpy(_start_block(k, n)).to(device, dtype, non_blocking=True)[None]
