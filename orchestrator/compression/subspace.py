"""Leading eigenvectors of many symmetric matrices at once, by products and small factorisations alone.

Subspace iteration whose steps are shifted: after `PLAIN` plain steps A X, every further step is (A - s I) X with s a
root of a Chebyshev polynomial on [0, c], c below the smallest Rayleigh quotient of the block. Over a round the product
of the steps is that polynomial, which damps all eigenvalues below c and grows fastest above it; as each step is
orthonormalised, no column is lost however fast the spectrum falls. Nothing is decided by a value, so that a GPU's host
never waits. The block's own matrix X^T A X is left to the caller, who may solve it wherever it is convenient.

Shapes: R matrices, K their side, b columns.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 8
"""Columns iterated for five directions: the further ones speed up the fifth."""
PLAIN, ROUNDS = 2, (4, 4)
"""Plain steps, and shifted steps of each round."""
_RIDGE = 3e-6
"""Added to the Gram matrix of unit columns before its Cholesky factorisation (float32)."""
_RIDGE_A_COLUMN = 4e-7
"""The same for each column, which rounding grows with."""
_SAFETY = 0.95
"""The damped interval ends at this share of the smallest Rayleigh quotient."""


def leading_block(a: Float[Tensor, "R K K"], n: int = BLOCK) -> Float[Tensor, "R K b"]:
    """Orthonormal columns that span nearly the space of the `n` largest eigenvalues of positive semidefinite matrices.

    Columns beyond the rank are zero. Rows and columns of zeros (padding) change nothing of the others. Ritz values
    are within 1e-5 of the eigenvalues where these fall at least like i^-1/2, the largest within 2 % on the flattest
    spectra (tokens of independent noise).
    """
    x = orthonormal(_start(a.shape[1], min(n, a.shape[1]), a.device, a.dtype).expand(len(a), -1, -1))
    for _ in range(PLAIN):
        x = orthonormal(a @ x)
    for steps in ROUNDS:
        y = a @ x
        end = _SAFETY * (x * y).sum(1).amin(1)[:, None, None]
        for step, share in enumerate(_shifts(steps)):
            x = orthonormal(torch.addcmul(y if step == 0 else a @ x, x, end, value=-share))
    x = orthonormal(x)  # columns that came out short, though not dependent, get their length
    x = x * (x.square().sum(1, keepdim=True) > 0.5)
    x = orthonormal(x)
    return orthonormal(x, ridge=1e-7)  # as these columns are nearly orthonormal


def orthonormal(x: Float[Tensor, "R K b"], ridge: float = _RIDGE) -> Float[Tensor, "R K b"]:
    """The columns made orthonormal by a Cholesky factorisation; those that depend on earlier ones come out short."""
    gram = x.mT @ x
    scale = gram.diagonal(dim1=1, dim2=2).clamp(min=torch.finfo(x.dtype).tiny).rsqrt()  # columns of length 1
    gram = gram * (scale[:, :, None] * scale[:, None, :])
    gram.diagonal(dim1=1, dim2=2).add_(max(ridge, _RIDGE_A_COLUMN * x.shape[2]) if ridge >= _RIDGE else ridge)
    factor = torch.linalg.cholesky_ex(gram)[0]
    return torch.linalg.solve_triangular(factor.mT, x * scale[:, None], upper=True, left=False)


@cache
def _shifts(n: int) -> tuple[float, ...]:
    """Roots of the Chebyshev polynomial of degree `n` on [0, 1], each next one far from those before (Leja)."""
    roots = [(1 - math.cos(math.pi * (2 * k + 1) / (2 * n))) / 2 for k in range(n)]
    order = [min(roots)]
    while len(order) < n:
        left = [root for root in roots if root not in order]
        order.append(max(left, key=lambda root: math.prod(abs(root - taken) for taken in order)))
    return tuple(order)


@cache
def _start_block(k: int, n: int) -> np.ndarray:
    # Row by row, so that the start of a larger matrix begins with that of a smaller one.
    return np.random.default_rng(0).standard_normal((k, n), dtype=np.float32)


def _start(k: int, n: int, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "1 K b"]:
    return torch.from_numpy(_start_block(k, n)).to(device, dtype, non_blocking=True)[None]
