"""Estimates of metrics of the full spectrum: deflated stochastic Lanczos quadrature, with standard errors.

The leading directions are found by subspace iteration and counted exactly (deflation). The rest of the spectrum is
sampled by random probes orthogonal to them, each with a Lanczos recurrence whose quadrature estimates the spectral
density (Ubaru, Chen and Saad 2017). Trace and dimension of the rest are known and serve as control variates: each
probe's error in a linear function of the eigenvalues is subtracted. Standard errors come from the variance over probes
(`_with_error`).

Shapes: R matrices, K their side, P probes, S steps, k deflated directions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from orchestrator.compression.gram import Grams, Variant
from orchestrator.compression.spectrum import solvable
from orchestrator.compression.subspace import leading_block

DEFLATED, PROBES, STEPS = 64, 16, 24
"""Number of deflated directions, of probes, and of Lanczos steps per probe."""
FLOOR = 2.0**-25
"""Eigenvalues below this share of the largest are rounding noise of float32 products, set to zero."""
WIDER = 1.4
"""Variance inflation: the control variates are fitted to the same probes."""
ROUNDING = 2.0**-22
"""Error of an eigenvalue, and of the sum of the deflated ones, as a share of the largest and of that sum."""


@dataclass(frozen=True)
class Estimate:
    """Estimates and standard errors, (R,) float64 each."""

    effective_rank: Float64[Tensor, " R"]
    effective_rank_se: Float64[Tensor, " R"]
    rank_90: Float64[Tensor, " R"]
    rank_90_se: Float64[Tensor, " R"]


def estimate(grams: Grams, variant: Variant) -> Estimate:
    """Effective rank and rank_90 of a variant's matrices."""
    matrix = grams.matrix(variant)
    variant = grams.plain(variant)
    if grams.by_tokens:
        present = (grams.kept if variant.trimmed else grams.mask).to(matrix.dtype)
    else:
        present = torch.ones(matrix.shape[:2], dtype=matrix.dtype, device=matrix.device)
    constant = variant.centred and grams.by_tokens  # centred tokens sum to zero: one direction less
    return quadrature(matrix, present, constant, lambda block: grams.turned(block.mT, variant).mT)


def quadrature(
    matrix: Float[Tensor, "R K K"],
    present: Float[Tensor, "R K"],
    constant: bool = False,
    turn: Callable[[Tensor], Tensor] = lambda block: block,
) -> Estimate:
    """Estimates for positive semidefinite matrices.

    Args:
        present: 1 for valid rows and columns, 0 for padding.
        constant: whether the vector of ones is an eigenvector of eigenvalue 0.
        turn: maps columns from the coordinates of `present` to those of the matrix.
    """
    matrix = solvable(matrix)
    scale = matrix.diagonal(dim1=1, dim2=2).sum(1).clamp(min=torch.finfo(matrix.dtype).tiny)
    matrix = matrix / scale[:, None, None]
    k = min(DEFLATED, matrix.shape[1])
    block = leading_block(matrix, k)
    inside = (block.mT @ (matrix @ block)).double()  # float32 may fail to converge on a very steep spectrum
    values, vectors = torch.linalg.eigh((inside + inside.mT) / 2)
    top = values.flip(1).clamp(min=0)
    block = block @ vectors.to(block.dtype)
    fixed = torch.cat([block, _unit(present)[..., None]], 2) if constant else block
    size = present.sum(1).double() - block.square().sum((1, 2)).round().double() - int(constant)
    size = size.clamp(min=0)
    nodes, weights = _lanczos(matrix, _probes(matrix, present, fixed, turn), fixed)
    floor = FLOOR * top[:, :1]
    nodes = nodes.double().where(nodes > floor[:, :, None], 0.0)
    top = top.where(top > floor, 0.0)
    return _combine(top, nodes, weights.double() * size[:, None, None], floor[:, 0])


def _unit(x: Float[Tensor, "R K"]) -> Float[Tensor, "R K"]:
    return torch.nn.functional.normalize(x, dim=1)


def _probes(matrix: Tensor, present: Tensor, fixed: Tensor, turn: Callable[[Tensor], Tensor]) -> Float[Tensor, "R K P"]:
    """Random unit vectors over the valid tokens, orthogonal to the deflated directions."""
    start = np.random.default_rng(1).standard_normal((matrix.shape[1], PROBES), dtype=np.float32)
    probes = torch.from_numpy(start).to(matrix.device, matrix.dtype) * present[..., None]
    probes = turn(probes)
    for _ in range(2):
        probes = probes - fixed @ (fixed.mT @ probes)
    return torch.nn.functional.normalize(probes, dim=1)


def _lanczos(matrix: Tensor, start: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights (R, P, S) of each probe's quadrature; each probe's weights sum to 1."""
    steps = min(STEPS, matrix.shape[1])
    basis = start.new_zeros(len(start), start.shape[2], steps, start.shape[1])  # R, P, S, K
    current = start.mT.contiguous()
    alphas, betas = [], []
    for step in range(steps):
        basis[:, :, step] = current
        image = current @ matrix  # symmetric
        alphas.append((current * image).sum(2))
        if step == steps - 1:
            break
        image = image - (image @ fixed) @ fixed.mT
        known = basis[:, :, : step + 1]
        for _ in range(2):
            shares = known @ image[..., None]  # R, P, step, 1
            image = image - (shares.mT @ known)[:, :, 0]
        beta = torch.linalg.vector_norm(image, dim=2)
        # A recurrence that has terminated (few distinct eigenvalues) continues with zeros, which have no weight.
        ended = beta <= 1e-6 * alphas[0].clamp(min=torch.finfo(beta.dtype).tiny)
        beta = beta.masked_fill(ended, 0.0)
        current = torch.where(ended[..., None], 0.0, image / beta.clamp(min=1e-30)[..., None])
        betas.append(beta)
    side = torch.diag_embed(torch.stack(alphas, 2))
    if betas:
        off = torch.diag_embed(torch.stack(betas, 2), offset=1)
        side = side + off + off.mT
    nodes, vectors = torch.linalg.eigh(side.double())
    return nodes, vectors[:, :, 0].square()


def _combine(top: Tensor, nodes: Tensor, weights: Tensor, floor: Tensor) -> Estimate:
    """Estimates of both metrics from the deflated eigenvalues and each probe's quadrature of the rest.

    `weights` (R, P, S) of a probe sum to `size`, the number of remaining eigenvalues.
    """
    roots, logs = nodes.sqrt(), nodes.sqrt() * nodes.clamp(min=1e-300).log() / 2
    rest = (1 - top.sum(1)).clamp(min=0)  # matrices have trace 1
    sums = [_controlled(values, nodes, weights, rest) for values in (roots, logs)]
    total = top.sqrt().sum(1)[:, None] + sums[0]  # R, P
    turned = (top.sqrt() * top.clamp(min=1e-300).log() / 2).sum(1)[:, None] + sums[1]
    mean, mean_turned = total.mean(1), turned.mean(1)
    entropy = mean.log() - mean_turned / mean
    influence = total * (1 / mean + mean_turned / mean.square())[:, None] - turned / mean[:, None]
    rank = entropy.exp()
    rounding = _rounding(nodes, weights, mean, entropy, floor)
    rank_se = _with_error(rank[:, None] * influence, rank * (1e-4 + rounding))
    components = _components(top, nodes, weights)
    return Estimate(rank, rank_se, *components)


def _controlled(values: Tensor, nodes: Tensor, weights: Tensor, rest: Tensor) -> Tensor:
    """Each probe's sum of `values` over the rest, (R, P), corrected by control variates (the part linear in the
    nodes)."""
    flat = weights.sum((1, 2))
    centre = (weights * nodes).sum((1, 2)) / flat.clamp(min=1e-300)
    moved = nodes - centre[:, None, None]
    slope = (weights * moved * values).sum((1, 2)) / (weights * moved.square()).sum((1, 2)).clamp(min=1e-300)
    sums, traces = (weights * values).sum(2), (weights * nodes).sum(2)
    sampled = traces.var(1) / traces.shape[1]
    trust = sampled / (sampled + ROUNDING**2).clamp(min=1e-300)
    return sums - (slope * trust)[:, None] * (traces - rest[:, None])


def _rounding(nodes: Tensor, weights: Tensor, total: Tensor, entropy: Tensor, floor: Tensor) -> Float64[Tensor, " R"]:
    """Half the bound of the effective rank's relative error from rounding of small eigenvalues; see `rank_error`."""
    roots = nodes.sqrt()
    lost = floor.sqrt()[:, None, None]
    moved = torch.minimum(ROUNDING / FLOOR * floor[:, None, None] / (2 * roots), lost) / total[:, None, None]
    log_p = (roots / total[:, None, None]).clamp(min=1e-12).log()
    return 0.5 * (weights * moved * (log_p + entropy[:, None, None]).abs()).sum((1, 2)) / nodes.shape[1]


def _with_error(influence: Float64[Tensor, "R P"], systematic: Float64[Tensor, " R"]) -> Float64[Tensor, " R"]:
    """Standard error of a mean over probes, widened for few probes so that two errors cover as often as with many.

    A t distribution of P - 1 degrees has the standard deviation sqrt((P - 1) / (P - 3)). `systematic` is the error that
    does not average out: rounding and quadrature.
    """
    n = influence.shape[1]
    sampled = WIDER * influence.var(1) / n * (n - 1) / (n - 3)
    return (sampled + systematic.square()).sqrt()


def _components(top: Tensor, nodes: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """rank_90 and its standard error: from the deflated eigenvalues alone if these hold 90 %."""
    shares = top.cumsum(1)
    short = shares < 0.9 - 1e-6
    exact = (short.sum(1) + 1).double()
    inside = shares[:, -1] >= 0.9 - 1e-6
    every = torch.full((nodes.shape[1],), 1 / nodes.shape[1], dtype=torch.float64, device=nodes.device)
    without = (1 - torch.eye(nodes.shape[1], dtype=torch.float64, device=nodes.device)) / (nodes.shape[1] - 1)
    crossings = _crossing(top, nodes, weights, every[None])[:, 0]
    jackknife = _crossing(top, nodes, weights, without)
    n = nodes.shape[1]
    sampled = (jackknife - jackknife.mean(1, keepdim=True)).square().sum(1) * (n - 1) / n * (n - 1) / (n - 3)
    # Within a step of the quadrature the spectrum is assumed uniform; a count is an integer.
    steps = weights.sum(2).mean(1) / nodes.shape[2]
    sampled = (sampled + (0.1 * steps).square() + 0.25).sqrt()
    return exact.where(inside, crossings), torch.where(inside, 0.5, sampled)


def _crossing(top: Tensor, nodes: Tensor, weights: Tensor, mixes: Float64[Tensor, "M P"]) -> Float64[Tensor, "R M"]:
    """Number of components that hold 90 % of the energy under each mixture of probes."""
    order = nodes.flatten(1).argsort(1, descending=True)
    values = nodes.flatten(1).gather(1, order)
    mixed = (weights[:, None] * mixes[None, :, :, None]).flatten(2)  # R, M, P S
    counts = mixed.gather(2, order[:, None].expand_as(mixed))
    energy = counts * values[:, None]
    # the remaining energy is known: each mixture is rescaled to it
    rest = (1 - top.sum(1)).clamp(min=0)[:, None]
    energy = energy * (rest / energy.sum(2).clamp(min=1e-300))[..., None]
    target = (0.9 - top.sum(1))[:, None, None].expand(-1, len(mixes), 1)
    reached = energy.cumsum(2)
    place = torch.searchsorted(reached.contiguous(), target.contiguous()).clamp(max=values.shape[1] - 1)
    before = (reached - energy).gather(2, place)
    share = ((target - before) / energy.gather(2, place).clamp(min=1e-300)).clamp(0, 1)
    passed = (counts.cumsum(2) - counts).gather(2, place) + share * counts.gather(2, place)
    return (top > 0).sum(1)[:, None] + passed[..., 0]
