"""The calibrated lens: an affine map a layer, from its states to what the last layer makes of the same tokens.

The map is fitted by least squares and shrunk towards changing nothing, `h + (h - mean) A + b`; how much is chosen by
generalised cross-validation (Golub, Heath and Wahba 1979). Linear maps between layers: Din et al. 2024; the tuned
lens of Belrose et al. 2023 has the same form and minimises the divergence of the outputs instead, by descent.

Maps are cross-fitted: a state is read by a map of other images. Shapes: M states, D width.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

N_FOLDS = 5
PENALTIES = tuple(10.0**k for k in range(-6, 3))
"""Ridge penalties tried, as shares of the mean eigenvalue of the states' Gram matrix."""


def folds_of(clusters: Sequence[str]) -> Int[Tensor, " M"]:
    """Return the fold of each state, by a hash of its image or group."""
    return torch.tensor([zlib.crc32(f"fold {one}".encode()) % N_FOLDS for one in clusters])


def fit_map(states: Float[Tensor, "M D"], targets: Float[Tensor, "M D"]) -> tuple[Tensor, Tensor, Tensor]:
    """Return (mean, A, b) of the affine map from states to targets."""
    mean, change = states.mean(0), targets - states
    offset = change.mean(0)
    x, y = (states - mean).double(), (change - offset).double()
    tall = x.shape[0] >= x.shape[1]
    values, vectors = torch.linalg.eigh(x.T @ x if tall else x @ x.T)
    real = values > values[-1].clamp(min=1e-30) * 1e-10
    values, vectors = values[real], vectors[:, real]
    # Left and right singular vectors of x
    left = (x @ vectors) / values.sqrt() if tall else vectors
    right = vectors if tall else (x.T @ vectors) / values.sqrt()
    inside = left.T @ y
    outside = (y.square().sum() - inside.square().sum()).clamp(min=0.0)
    best = min(_gcv(values, inside, outside, len(x), share * float(values.mean())) for share in PENALTIES)[1]
    matrix = right @ ((values.sqrt() / (values + best))[:, None] * inside)
    return mean, matrix.float(), offset


def _gcv(values: Tensor, inside: Tensor, outside: Tensor, n: int, penalty: float) -> tuple[float, float]:
    """(generalised cross-validation score, penalty)."""
    kept = penalty / (values + penalty)  # share of each direction left in the residual
    residual = float(outside + (kept[:, None] * inside).square().sum())
    free = float(n - 1 - (1.0 - kept).sum())  # one for the mean
    return residual / max(free, 1.0) ** 2, penalty


def calibrated(
    states: Float[Tensor, "M D"], targets: Float[Tensor, "M D"], folds: Int[Tensor, " M"]
) -> Float[Tensor, "M D"]:
    """Return each state as a map fitted on the other folds takes it; unchanged where there are none."""
    found = states.clone()
    for fold in folds.unique().tolist():
        own = folds == fold
        if bool(own.all()):
            return found
        mean, matrix, offset = fit_map(states[~own], targets[~own])
        found[own] = states[own] + (states[own] - mean) @ matrix + offset
    return found
