"""One factorisation per feature matrix, shared by every attribute, penalty, fold, control and linear solver.

Shapes: B feature matrices (positions), n training images, m held-out images, d width, k = min(n, d) rotated width, T
targets. Vectors are rows, (B, T, ...): multiplying a few rows by a large matrix is several times faster than
multiplying it by a few columns.

Features are standardised with the training images' mean and standard deviation, so an unpenalised intercept
separates from the weights. One symmetric eigendecomposition of the smaller of Z'Z (d x d) and ZZ' (n x n) gives
Z = Q V' with Q'Q = diag(s). An L2 penalty is rotation-invariant, so that ridge and logistic regression in Q
are equivalent to those in Z; ridge then needs no further factorisation, and 1/s preconditions logistic regression.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from scipy.linalg import blas
from torch import Tensor

_SQUARED_AT_ONCE = 64
"""Rows per block of a product, so that a block stays in a core's cache."""


@dataclass
class Factor:
    """A rotated, standardised batch of feature matrices; shapes as in the module docstring."""

    Z: Float[Tensor, "B n d"]
    Z_test: Float[Tensor, "B m d"]
    s: Float[Tensor, "B k"]
    basis: Tensor
    """Eigenvectors V of Z'Z (B, d, k) if n >= d, else U of ZZ' (B, n, k)."""

    @property
    def is_dual(self) -> bool:
        return self.Z.shape[1] < self.Z.shape[2]

    @cached_property
    def Q(self) -> Float[Tensor, "B n k"]:  # noqa: N802
        """Rotated features."""
        return self.basis * self.s.sqrt()[:, None] if self.is_dual else self.Z @ self.basis

    def weights(self, rotated: Float[Tensor, "B T k"]) -> Float[Tensor, "B T d"]:
        """Weights on standardised features from weights on rotated ones."""
        if not self.is_dual:
            return rotated @ self.basis.mT
        inverse = torch.where(self.s > 0, self.s.clamp_min(1e-30).rsqrt(), torch.zeros_like(self.s))
        return (inverse[:, None] * rotated) @ self.basis.mT @ self.Z

    def predict(self, rotated: Float[Tensor, "B T k"]) -> Float[Tensor, "B T m"]:
        """Products of the held-out images with weights on rotated features."""
        return self.weights(rotated) @ self.Z_test.mT


def standardise(
    train: Float[Tensor, "B n d"], test: Float[Tensor, "B m d"], enabled: bool = True
) -> tuple[Float[Tensor, "B n d"], Float[Tensor, "B m d"], Float[Tensor, "B 1 d"], Float[Tensor, "B 1 d"]]:
    """Centre and scale both by the training rows' mean and population standard deviation; constant columns become zero.

    If not `enabled`, columns are centred only.
    """
    mean = train.mean(1, keepdim=True)
    train = train - mean
    scale = torch.ones_like(mean)
    if enabled:
        parts = [part.square().sum(1, keepdim=True) for part in train.split(_SQUARED_AT_ONCE, 1)]
        scale = (torch.cat(parts, 1).sum(1, keepdim=True) / train.shape[1]).sqrt_()
        # a column that is constant up to rounding is no signal; dividing by its rounding error would create one
        floor = 8 * torch.finfo(train.dtype).eps * mean.abs()
        scale = torch.where(scale <= floor, torch.ones_like(scale), scale)
    return train.div_(scale), (test - mean).div_(scale), mean, scale


def factorise(train: Float[Tensor, "B n d"], test: Float[Tensor, "B m d"], enabled: bool = True) -> Factor:
    """Standardise (see `standardise`) and rotate a batch of feature matrices, primal (n >= d) or dual (n < d)."""
    Z, Z_test, _, _ = standardise(train, test, enabled)
    _, n, d = Z.shape
    s, basis = torch.linalg.eigh(gram(Z if n < d else Z.mT), UPLO="U")
    if n < d:
        # directions below rounding are noise in U; there is always one, because Z is centred
        s = torch.where(s > 4 * torch.finfo(Z.dtype).eps * s[:, -1:], s, torch.zeros_like(s))
    return Factor(Z, Z_test, s.clamp_min(0.0), basis)


def gram(X: Float[Tensor, "B p q"]) -> Float[Tensor, "B p p"]:
    """X X'; on a CPU only the upper triangle is computed, for half the work."""
    if X.is_cuda:
        return X @ X.mT
    syrk = blas.ssyrk if X.dtype == torch.float32 else blas.dsyrk
    # BLAS is column-major: its matrix is the transpose of ours
    by_rows = X.stride(2) == 1
    return torch.stack(
        [torch.from_numpy(syrk(1.0, (x if by_rows else x.mT).numpy().T, trans=int(by_rows), lower=1)).mT for x in X]
    )
