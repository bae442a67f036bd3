"""Ridge regression in closed form: all positions, attributes, penalties and controls from one factorisation.

Objective, as scikit-learn's `Ridge`: |y - Zw - b|^2 + alpha |w|^2, b unpenalised. The penalty is chosen by the
exact leave-one-out error of the training images, e_i / (1 - h_i) with residual e and leverage h (Allen's PRESS;
`RidgeCV`'s own criterion), which the factorisation gives for all penalties without refitting.

The unknown x is the smaller of two: weights w (n >= d) with (Z'Z + alpha) w = Z'y, or one coefficient per image (n < d)
with (ZZ' + alpha) x = y and w = Z'x. Shapes are those of `factor.py`, with A penalties and p = min(n, d).
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
    prediction: Float[Tensor, "B T m"]
    weights: Float[Tensor, "B T d"]
    """Weights on standardised features."""
    intercept: Float[Tensor, " T"]
    loo_error: Float[Tensor, "B A T"]
    """Mean squared leave-one-out error of each penalty."""


def fit_ridge(factor: Factor, Y: Float[Tensor, "T n"], alphas: Float[Tensor, " A"]) -> RidgeFit:
    """Fit T targets on each of B feature matrices, each with the best of A penalties (absolute, as in scikit-learn)."""
    Z, basis = factor.Z, factor.basis
    intercept = Y.mean(1)
    Yc = Y - intercept[:, None]
    shrink = 1.0 / (factor.s[:, None] + alphas[:, None])  # B A p
    loo_error = _leave_one_out(factor, Yc, shrink, alphas)
    best = loo_error.argmin(1)  # B T
    chosen = torch.gather(shrink, 1, best[:, :, None].expand(-1, -1, shrink.shape[2]))  # B T p
    alpha = alphas[best][:, :, None]

    def solve(side: Tensor) -> Tensor:
        return ((side @ basis) * chosen) @ basis.mT

    x = solve((Yc if factor.is_dual else Yc @ Z).expand(len(Z), -1, -1))
    # small penalties amplify rounding errors of the rotation; iterative refinement on the data removes them
    for _ in range(REFINEMENTS):
        residual = Yc - (x @ Z if factor.is_dual else x) @ Z.mT
        x = x + solve((residual if factor.is_dual else residual @ Z) - alpha * x)
    weights = x @ Z if factor.is_dual else x
    return RidgeFit(best, weights @ factor.Z_test.mT + intercept[:, None], weights, intercept, loo_error)


def _leave_one_out(
    factor: Factor, Yc: Float[Tensor, "T n"], shrink: Float[Tensor, "B A p"], alphas: Float[Tensor, " A"]
) -> Float[Tensor, "B A T"]:
    """Mean squared leave-one-out error of every penalty and target."""
    n = Yc.shape[1]
    if factor.is_dual:  # nearly interpolating fits: computed from the remainder, as a difference would cancel
        U, left = factor.basis, shrink * alphas[:, None]
        residual = (left[:, :, None] * (Yc @ U)[:, None]).flatten(1, 2) @ U.mT  # B (A T) n
        unfitted = left @ (U * U).mT - 1.0 / n  # B A n
    else:
        Q = factor.Q
        fitted = (shrink[:, :, None] * (Yc @ Q)[:, None]).flatten(1, 2) @ Q.mT
        residual = fitted.sub_(Yc.repeat(len(alphas), 1))
        unfitted = 1.0 - 1.0 / n - shrink @ (Q * Q).mT
    residual = residual.unflatten(1, (len(alphas), -1)).div_(unfitted.clamp_min(1e-6)[:, :, None])
    return torch.linalg.vector_norm(residual, dim=3).square() / n
