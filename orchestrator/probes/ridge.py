"""Ridge regression in closed form: every position, attribute, penalty and control from one factorisation.

Objective, as scikit-learn's `Ridge`: |y - Zw - b|^2 + alpha |w|^2, b unpenalised. The penalty is chosen by the
exact leave-one-out error of the training images, e_i / (1 - h_i) with residual e and leverage h (Allen's PRESS;
`RidgeCV`'s own criterion), which the factorisation gives for all penalties without a further fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from orchestrator.probes.factor import Factor

REFINEMENTS = 2


@dataclass
class RidgeFit:
    """Chosen penalties and predictions of T targets on B feature matrices (m held-out images, d width)."""

    penalty: Int[Tensor, "B T"]
    """Index into the penalties."""
    prediction: Float[Tensor, "B m T"]
    weights: Float[Tensor, "B d T"]
    """Weights on standardised features."""
    intercept: Float[Tensor, " T"]
    loo_error: Float[Tensor, "B A T"]
    """Mean squared leave-one-out error of each penalty."""


def fit_ridge(factor: Factor, Y: Float[Tensor, "n T"], alphas: Float[Tensor, " A"]) -> RidgeFit:
    """Fit T targets on each of B feature matrices, each with its own best of A penalties (absolute, as sklearn's)."""
    Z, Q, s = factor.Z, factor.Q, factor.s
    B, n, k = Q.shape
    A, T = len(alphas), Y.shape[1]
    intercept = Y.mean(0)
    Yc = Y - intercept
    shrink = 1.0 / (s[:, None] + alphas[None, :, None])  # B A k
    QY = Q.mT @ Yc  # B k T
    if factor.is_dual:  # nearly interpolating fits: summed from what they leave, as differences would lose all digits
        U, left = factor.basis, shrink * alphas[:, None]
        residual = U @ (left.mT[..., None] * (U.mT @ Yc)[:, :, None]).flatten(2)
        unfitted = (U * U) @ left.mT - 1.0 / n  # B n A
    else:
        residual = Yc.repeat(1, A) - Q @ (shrink.mT[..., None] * QY[:, :, None]).flatten(2)
        unfitted = 1.0 - 1.0 / n - (Q * Q) @ shrink.mT
    loo_error = residual.view(B, n, A, T).div_(unfitted.clamp_min(1e-6)[..., None]).square_().mean(1)  # B A T
    best = loo_error.argmin(1)  # B T
    shrink_best = torch.gather(shrink, 1, best[:, :, None].expand(-1, -1, k)).mT  # B k T
    alpha_best = alphas[best][:, None]
    weights = factor.weights(shrink_best * QY)
    # the rotation is exact up to rounding, which small penalties amplify; residual steps on the data remove that
    for _ in range(REFINEMENTS):
        gradient = Z.mT @ (Yc - Z @ weights) - alpha_best * weights
        weights = weights + factor.weights(shrink_best * factor.rotate(gradient))
    return RidgeFit(best, factor.Z_test @ weights + intercept, weights, intercept, loo_error)
