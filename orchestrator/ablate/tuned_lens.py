"""The tuned lens: an affine map per layer from its states to the last layer's states of the same tokens.

`h + (h - mean) A + b` is fitted by ridge regression of the change, with the penalty chosen by generalised
cross-validation (Golub, Heath and Wahba 1979). Linear maps between layers: Din et al. 2024. The tuned lens of Belrose
et al. 2023 has the same form and minimises the divergence of the outputs by gradient descent instead.

Maps are cross-fitted: the map of a state was fitted on other images. Shapes: M states, D width.
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
    return torch.tensor([zlib.crc32(f"fold {cluster}".encode()) % N_FOLDS for cluster in clusters])


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
    """Return each state mapped by the map of the other folds; unchanged if there is only one fold."""
    predicted = states.clone()
    for fold in folds.unique().tolist():
        in_fold = folds == fold
        if bool(in_fold.all()):
            return predicted
        mean, matrix, offset = fit_map(states[~in_fold], targets[~in_fold])
        predicted[in_fold] = states[in_fold] + (states[in_fold] - mean) @ matrix + offset
    return predicted
