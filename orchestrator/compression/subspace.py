"""Leading eigenvectors of a batch of symmetric matrices, by products and small factorisations only.

Subspace iteration with Chebyshev-shifted steps: after `PLAIN` plain steps A X, every further step is (A - s I) X with s
a root of a Chebyshev polynomial on [0, c], c below the smallest Rayleigh quotient of the block. Over a round the
product of the steps is that polynomial, which damps all eigenvalues below c and grows fastest above it. Each step is
orthonormalised, so that no column is lost however fast the spectrum decays. There is no data-dependent control flow, so
that a GPU is never synchronized. The caller solves the small projected matrix X^T A X.

Shapes: R or M matrices, K their side, b vectors.
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

    Columns beyond the rank are zero, unless all K are returned. Rows and columns of zeros (padding) do not affect the
    others. Ritz values are within 1e-5 of the eigenvalues if these decay at least like i^-1/2, the largest within 2 %
    on the flattest spectra (tokens of independent noise).
    """
    return leading_rows(lambda x: x @ a, len(a), a.shape[1], a, n).mT


def leading_rows(
    apply: Callable[[Float[Tensor, "M b K"]], Float[Tensor, "M b K"]],
    count: int,
    side: int,
    like: Tensor,
    n: int = BLOCK,
) -> Float[Tensor, "M b K"]:
    """`leading_block` of M matrices given only by their products with vectors; vectors are rows.

    Products of a few long rows with a matrix take half the time of products of a matrix with as many columns.

    Args:
        apply: vectors of each matrix -> their images.
        count, side: M and K.
        like: a tensor of the device and dtype.
    """
    if side <= n:  # the whole space
        return torch.eye(side, dtype=like.dtype, device=like.device).expand(count, -1, -1)
    x = orthonormal(_start(side, n, like.device, like.dtype)).expand(count, -1, -1)
    for _ in range(PLAIN):
        x = orthonormal(apply(x))
    for steps in ROUNDS:
        y = apply(x)
        end = _SAFETY * (x * y).sum(2, keepdim=True).amin(1, keepdim=True)
        for step, share in enumerate(_shifts(steps)):
            x = orthonormal(torch.addcmul(y if step == 0 else apply(x), x, end, value=-share))
    x = orthonormal(x)  # restore unit length of vectors that came out short but are not dependent
    x = orthonormal(x * (x.square().sum(2, keepdim=True) > 0.5))
    return orthonormal(x, ridge=1e-7)  # as these vectors are nearly orthonormal


def orthonormal(x: Float[Tensor, "M b K"], ridge: float = _RIDGE) -> Float[Tensor, "M b K"]:
    """Rows orthonormalised by a Cholesky factorisation; rows that depend on earlier ones come out short."""
    gram = x @ x.mT
    scale = gram.diagonal(dim1=1, dim2=2).clamp(min=torch.finfo(x.dtype).tiny).rsqrt()  # rows of length 1
    gram = gram * (scale[:, :, None] * scale[:, None])
    gram.diagonal(dim1=1, dim2=2).add_(max(ridge, _RIDGE_A_COLUMN * x.shape[1]) if ridge >= _RIDGE else ridge)
    factor = torch.linalg.cholesky_ex(gram)[0]
    unit = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    # invert the small factor: triangular solves with many long right-hand sides are slow
    inverse = torch.linalg.solve_triangular(factor, unit, upper=False)
    return (inverse * scale[:, None]) @ x


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
    # Token by token, so that the start block of a larger matrix extends that of a smaller one.
    return np.ascontiguousarray(np.random.default_rng(0).standard_normal((k, n), dtype=np.float32).T)


def _start(k: int, n: int, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "1 b K"]:
    return torch.from_numpy(_start_block(k, n)).to(device, dtype, non_blocking=True)[None]
