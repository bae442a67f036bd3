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

    Q: Float[Tensor, "B n k"]
    Q_test: Float[Tensor, "B m k"]
    s: Float[Tensor, "B k"]
    mean: Float[Tensor, "B 1 d"]
    scale: Float[Tensor, "B 1 d"]
    V: Float[Tensor, "B d k"]

    def weights(self, rotated: Float[Tensor, "B k T"]) -> Float[Tensor, "B d T"]:
        """Weights on standardised features from weights on rotated ones."""
        return self.V @ rotated


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
    Z, Z_test, mean, scale = standardise(train, test, enabled)
    _, n, d = Z.shape
    if n >= d:
        s, V = torch.linalg.eigh(Z.mT @ Z)
        s = s.clamp_min(0.0)
    else:
        s, U = torch.linalg.eigh(Z @ Z.mT)
        # directions below rounding are noise in U; one is always there, because Z is centred
        keep = s > 4 * torch.finfo(Z.dtype).eps * s[:, -1:]
        V = Z.mT @ (U * torch.where(keep, s.clamp_min(1e-30).rsqrt(), torch.zeros_like(s))[:, None])
        s = torch.where(keep, s, torch.zeros_like(s))
    return Factor(Z @ V, Z_test @ V, s, mean, scale, V)
