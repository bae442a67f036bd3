"""One factorisation per feature matrix, shared by every attribute, penalty, fold, control and linear solver.

Shapes: B feature matrices (positions), n training images, m held-out images, d width, k = min(n, d) rotated width.

Features are standardised with the training images' mean and standard deviation, so an unpenalised intercept
separates from the weights. One symmetric eigendecomposition of the smaller of Z'Z (d x d) and ZZ' (n x n) gives
Z = Q V' with Q'Q = diag(s). An L2 penalty does not see a rotation, so ridge and logistic regression are solved in Q
exactly as in Z; ridge then needs no further factorisation at all, and 1/s preconditions logistic regression.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass
class Factor:
    """A rotated, standardised batch of feature matrices; see the module's legend for shapes."""

    Z: Float[Tensor, "B n d"]
    Z_test: Float[Tensor, "B m d"]
    Q: Float[Tensor, "B n k"]
    s: Float[Tensor, "B k"]
    basis: Tensor
    """Eigenvectors: of Z'Z (B, d, k) where n >= d, else of ZZ' (B, n, k)."""

    @property
    def is_dual(self) -> bool:
        return self.Z.shape[1] < self.Z.shape[2]

    def weights(self, rotated: Float[Tensor, "B k T"]) -> Float[Tensor, "B d T"]:
        """Weights on standardised features from weights on rotated ones."""
        if not self.is_dual:
            return self.basis @ rotated
        inverse = torch.where(self.s > 0, self.s.clamp_min(1e-30).rsqrt(), torch.zeros_like(self.s))
        return self.Z.mT @ (self.basis @ (inverse[..., None] * rotated))

    def rotate(self, weights: Float[Tensor, "B d T"]) -> Float[Tensor, "B k T"]:
        """Weights on rotated features from weights on standardised ones that lie in the rows' span."""
        if not self.is_dual:
            return self.basis.mT @ weights
        inverse = torch.where(self.s > 0, self.s.clamp_min(1e-30).rsqrt(), torch.zeros_like(self.s))
        return inverse[..., None] * (self.basis.mT @ (self.Z @ weights))

    def predict(self, rotated: Float[Tensor, "B k T"]) -> Float[Tensor, "B m T"]:
        """Products of the held-out images with weights on rotated features."""
        return self.Z_test @ self.weights(rotated)


def standardise(
    train: Float[Tensor, "B n d"], test: Float[Tensor, "B m d"], enabled: bool = True
) -> tuple[Float[Tensor, "B n d"], Float[Tensor, "B m d"], Float[Tensor, "B 1 d"], Float[Tensor, "B 1 d"]]:
    """Centre and scale both by the training rows' mean and (population) deviation; constant columns become zero.

    With `enabled` false columns are only centred.
    """
    mean = train.mean(1, keepdim=True)
    train = train - mean
    scale = torch.ones_like(mean)
    if enabled:
        scale = train.square().mean(1, keepdim=True).sqrt_()
        # a column that is constant up to rounding carries nothing; dividing by its rounding error would invent signal
        floor = 8 * torch.finfo(train.dtype).eps * mean.abs()
        scale = torch.where(scale <= floor, torch.ones_like(scale), scale)
    return train.div_(scale), (test - mean).div_(scale), mean, scale


def factorise(train: Float[Tensor, "B n d"], test: Float[Tensor, "B m d"], enabled: bool = True) -> Factor:
    """Standardise (see `standardise`) and rotate a batch of feature matrices, primal (n >= d) or dual (n < d)."""
    Z, Z_test, _, _ = standardise(train, test, enabled)
    _, n, d = Z.shape
    if n >= d:
        s, V = torch.linalg.eigh(Z.mT @ Z)
        return Factor(Z, Z_test, Z @ V, s.clamp_min(0.0), V)
    s, U = torch.linalg.eigh(Z @ Z.mT)
    # directions below rounding are noise in U; one is always there, because Z is centred
    s = torch.where(s > 4 * torch.finfo(Z.dtype).eps * s[:, -1:], s, torch.zeros_like(s))
    return Factor(Z, Z_test, U * s.sqrt()[:, None], s, U)
