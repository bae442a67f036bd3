"""Exact spectra: all eigenvalues of Gram matrices by a batched solver.

Precision: float32 moves squared singular values by about `NOISE` times the largest, which only the effective rank can
feel: the others weigh by energy. Where a first-order bound of its error exceeds `LIMIT`, the row is done again in
float64, which is the one place where a GPU's host waits. The bound adds up absolute errors: it is over ten times the
error of real states, and twice that of rank-deficient ones, where noise has one sign. Against a float64 SVD the
effective rank is then within 1 %, the other metrics within 0.1 % (tests hold both).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from orchestrator.compression.gram import Grams, Variant
from orchestrator.compression.halves import LEAN

NOISE = 0.25 * 2.0**-23
"""Error of a squared singular value, as a share of the largest; measured from 0.02 to 0.15 of 2^-23 on average."""
LIMIT = 0.004
"""Bound of the effective rank's relative error above which a row is done again in float64."""


def squared_singular_values(grams: Grams, variant: Variant) -> Float64[Tensor, "R K"]:
    """Squared singular values of each row's tokens, from large to small, K = min(N, D)."""
    found = torch.linalg.eigvalsh(solvable(grams.matrix(variant))).double().flip(1).clamp(min=0)
    again = (rank_error(found, NOISE * found[:, :1]) > LIMIT).nonzero()[:, 0]
    if len(again):
        redone = torch.linalg.eigvalsh(solvable(grams.rows(again, torch.float64).matrix(variant))).flip(1).clamp(min=0)
        found = found.index_copy(0, again, redone)
    # n tokens span at most n directions, n - 1 once centred: what lies beyond is rounding noise
    place = torch.arange(found.shape[1], device=found.device)
    return found.where(place < grams.counts(grams.plain(variant))[:, None] - int(variant.centred), 0.0)


def solvable(matrix: Float[Tensor, "R K K"]) -> Float[Tensor, "R K K"]:
    """The matrices, with zeros for what is not finite: a solver would stop there. Elsewhere there is none."""
    return torch.nan_to_num(matrix, 0.0, 0.0, 0.0) if matrix.device.type in LEAN else matrix


def rank_error(eigs: Float64[Tensor, "R K"], noise: Float64[Tensor, "R 1"]) -> Float64[Tensor, " R"]:
    """Bound of the effective rank's relative error when each squared singular value is off by up to `noise`.

    With p = sigma / sum sigma the entropy H changes by sum (-ln p_i - H) d sigma_i / sum sigma, and sigma by
    noise / (2 sigma) or, from zero, by sqrt(noise).
    """
    sigma = eigs.sqrt()
    total = sigma.sum(1, keepdim=True)
    p = sigma / total
    entropy = torch.special.entr(p).sum(1, keepdim=True)
    moved = torch.minimum(noise / (2 * sigma), noise.sqrt()) / total
    return (moved * (p.clamp(min=1e-12).log() + entropy).abs()).sum(1).nan_to_num()
