"""Estimates of the full spectrum: what their standard errors promise, and what leaves them unchanged."""

import numpy as np
import pytest
import torch

from orchestrator.compression import finish
from orchestrator.compression.estimate import (
    FLOOR,
    ROUNDING,
    WIDER,
    _combine,
    _components,
    _controlled,
    _rounding,
    quadrature,
)
from orchestrator.compression.gram import Variant
from orchestrator.compression.shared import Shared
from orchestrator.compression.subspace import leading_block
from tests.compression import oracle

N, D = 96, 128


def singular_values(kind: str) -> np.ndarray:
    i = np.arange(1.0, N + 1)
    return {
        "flat": np.ones(N),
        "power law": i**-0.5,
        "steep": i**-1.0,
        "low rank": (i <= N // 3) * 1.0,
        "massive token": np.r_[50.0, i[:-1] ** -0.5],
    }[kind]


def draw(kind: str, rng: np.random.Generator) -> np.ndarray:
    if kind == "noise":
        return rng.normal(size=(N, D))
    left, right = (np.linalg.qr(rng.normal(size=(size, N)))[0] for size in (N, D))
    if kind == "massive token":
        left[:, 0], left[0] = 0, 0
        left[0, 0] = 1
    return left * singular_values(kind) @ right.T


@pytest.mark.parametrize("kind", ["flat", "noise", "power law", "steep", "low rank", "massive token"])
def test_95_of_100_estimates_lie_within_two_standard_errors(kind: str) -> None:
    rng = np.random.default_rng(0)
    tokens = np.stack([draw(kind, rng) for _ in range(100)]).astype(np.float32)
    states = torch.from_numpy(tokens)
    found = quadrature(states @ states.mT, torch.ones(100, N))
    exact = np.linalg.svd(tokens.astype(np.float64), compute_uv=False)
    exact[exact < 1e-6 * exact[:, :1]] = 0
    ranks = np.array([oracle.entropy_number(sigma) for sigma in exact])
    components = np.array([oracle.needed(sigma**2) for sigma in exact])
    for value, error, want in (
        (found.effective_rank, found.effective_rank_se, ranks),
        (found.rank_90, found.rank_90_se, components),
    ):
        inside = np.abs(value.numpy() - want) <= 2 * error.numpy()
        assert inside.sum() >= 95, (inside.sum(), value[:3], error[:3], want[:3])
    # an error so wide that it always covers would promise nothing
    assert float((found.effective_rank_se / found.effective_rank).median()) < 0.02
    assert float(found.rank_90_se.median()) < 0.02 * N


@pytest.mark.parametrize("variant", [Variant(c, t) for c in (False, True) for t in (False, True)])
@pytest.mark.parametrize(("n", "d"), [(90, 150), (150, 90)])
def test_every_variant_is_estimated_at_its_own_tokens(variant: Variant, n: int, d: int) -> None:
    rng = np.random.default_rng(1)
    tokens = rng.normal(size=(3, n, d)) * np.arange(1, d + 1) ** -0.3 + 2.0 * rng.normal(size=d)
    tokens[1, 5] *= 60
    tokens[2, -10:] = 0
    counts = torch.tensor([n, n, n - 10])
    found = Shared(torch.from_numpy(tokens).float(), counts).estimate(variant)
    for row in range(3):
        want = oracle.metric("effective_rank" + variant.suffix, tokens[row, : counts[row]].astype(np.float32))
        error = float(found.effective_rank_se[row])
        assert float(found.effective_rank[row]) == pytest.approx(want, abs=3 * error)
        assert error < 0.03 * want


@pytest.mark.parametrize("rank", [1, 2, 5, 7, 8, 20])
def test_the_leading_block_holds_the_leading_eigenvectors_and_nothing_beyond_the_rank(rank: int) -> None:
    rng = np.random.default_rng(rank)
    left = np.linalg.qr(rng.normal(size=(40, rank)))[0] * 0.8 ** np.arange(rank)
    matrix = torch.from_numpy(left @ left.T).float()[None]
    block = leading_block(matrix)
    ritz = torch.linalg.eigvalsh(block.mT @ matrix @ block)[0].flip(0)
    want = np.r_[0.64 ** np.arange(rank), np.zeros(8)][:8]
    assert ritz[:5].numpy() == pytest.approx(want[:5], abs=1e-5)
    found = finish.solve((block.mT @ matrix @ block).numpy(), (block.mT @ block).numpy())
    assert found.present.tolist() == [min(rank, 5)]


def test_the_largest_eigenvalue_of_noise_is_within_two_percent() -> None:
    """The flattest spectrum there is: the edge of the Marchenko-Pastur law."""
    tokens = torch.from_numpy(np.random.default_rng(0).normal(size=(6, 300, 900))).float()
    matrix = tokens @ tokens.mT
    block = leading_block(matrix)
    found = torch.linalg.eigvalsh(block.mT @ matrix @ block)[:, -1]
    assert found.numpy() == pytest.approx(torch.linalg.eigvalsh(matrix)[:, -1].numpy(), rel=0.02)


def quadratures(rng: np.random.Generator, n_matrices: int = 3, n_probes: int = 16) -> tuple[torch.Tensor, ...]:
    """Four deflated eigenvalues, and a rest of 24 that each probe sees with its own weights (which sum to 24)."""
    spectrum = np.sort(rng.uniform(0.5, 1.5, (n_matrices, 28)) * np.arange(1, 29) ** -0.7, axis=1)[:, ::-1].copy()
    spectrum /= spectrum.sum(1, keepdims=True)
    top, rest = torch.from_numpy(spectrum[:, :4].copy()), torch.from_numpy(spectrum[:, 4:].copy())
    weights = torch.from_numpy(rng.uniform(0.9, 1.1, (n_matrices, n_probes, 24)))
    return top, rest[:, None].expand(-1, n_probes, -1).contiguous(), weights * 24 / weights.sum(2, keepdim=True)


def exact_effective_rank(eigenvalues: torch.Tensor) -> torch.Tensor:
    p = eigenvalues.sqrt() / eigenvalues.sqrt().sum()
    return (-(p * p.log()).sum()).exp()


def test_a_quadrature_of_the_eigenvalues_themselves_is_exact() -> None:
    top, nodes, weights = quadratures(np.random.default_rng(2))
    found = _combine(top, nodes, torch.ones_like(weights), FLOOR * top[:, 0])
    for row in range(len(top)):
        spectrum = torch.cat([top[row], nodes[row, 0]])
        assert float(found.effective_rank[row]) == pytest.approx(float(exact_effective_rank(spectrum)), rel=1e-9)
        # 90 % falls within a component: its part counts
        shares = np.r_[0.0, np.cumsum(spectrum.numpy())]
        assert float(found.rank_90[row]) == pytest.approx(np.interp(0.9, shares, np.arange(29.0)), rel=1e-9)
        # probes that agree leave the rounding and the width of a step
        assert float(found.rank_90_se[row]) == pytest.approx(np.sqrt(0.1**2 + 0.25))
        assert float(found.effective_rank_se[row]) < 2e-4 * float(found.effective_rank[row])


def test_what_is_linear_in_the_eigenvalues_is_known_to_every_probe() -> None:
    top, nodes, weights = quadratures(np.random.default_rng(3))
    rest = 1 - top.sum(1)
    found = _controlled(3 * nodes + 2, nodes, weights, rest)
    assert found.numpy() == pytest.approx((3 * rest[:, None] + 48).expand_as(found).numpy(), rel=1e-6)


def test_the_error_of_the_effective_rank_is_that_of_leaving_out_a_probe_at_a_time() -> None:
    top, nodes, weights = quadratures(np.random.default_rng(4))
    floor = FLOOR * top[:, 0]
    found = _combine(top, nodes, weights, floor)
    rest = (1 - top.sum(1)).clamp(min=0)
    roots, logs = nodes.sqrt(), nodes.sqrt() * nodes.log() / 2
    total = top.sqrt().sum(1)[:, None] + _controlled(roots, nodes, weights, rest)
    turned = (top.sqrt() * top.log() / 2).sum(1)[:, None] + _controlled(logs, nodes, weights, rest)
    for row in range(len(top)):
        left_out = []
        for probe in range(16):
            kept = [p for p in range(16) if p != probe]
            mean, mean_turned = total[row, kept].mean(), turned[row, kept].mean()
            left_out.append(float((mean.log() - mean_turned / mean).exp()))
        variance = 15 / 16 * np.square(left_out - np.mean(left_out)).sum()
        systematic = 1e-4 * float(found.effective_rank[row])
        want = np.sqrt(WIDER * variance * 15 / 13 + systematic**2)
        assert float(found.effective_rank_se[row]) == pytest.approx(want, rel=0.02)


def test_rounding_moves_the_effective_rank_by_its_slope() -> None:
    top, nodes, weights = quadratures(np.random.default_rng(5))
    ones = torch.ones_like(weights)
    for row in range(len(top)):
        spectrum = torch.cat([top[row], nodes[row, 0]]).requires_grad_()
        rank = exact_effective_rank(spectrum)
        (slope,) = torch.autograd.grad(rank.log(), spectrum)
        want = 0.5 * ROUNDING * float(top[row, 0]) * float(slope[4:].abs().sum())
        total, entropy = spectrum.detach().sqrt().sum()[None], rank.detach().log()[None]
        chosen = slice(row, row + 1)
        found = _rounding(nodes[chosen], ones[chosen], total, entropy, FLOOR * top[chosen, 0])
        assert float(found[0]) == pytest.approx(want, rel=1e-6)


def test_components_of_a_mixture_of_probes_and_their_jackknife() -> None:
    top, nodes, weights = quadratures(np.random.default_rng(6), n_matrices=1)
    nodes = nodes * torch.linspace(0.8, 1.2, 16)[None, :, None]  # each probe has nodes of its own

    def crossing(probes: list[int]) -> float:
        values = nodes[0, probes].flatten().numpy()
        counts = weights[0, probes].flatten().numpy() / len(probes)
        order = np.argsort(-values)
        energy = (values * counts)[order]
        energy *= float(1 - top.sum()) / energy.sum()
        shares = np.r_[0.0, np.cumsum(energy)] + float(top.sum())
        return 4 + float(np.interp(0.9, shares, np.r_[0.0, np.cumsum(counts[order])]))

    value, error = _components(top, nodes, weights)
    assert float(value[0]) == pytest.approx(crossing(list(range(16))), rel=1e-9)
    left_out = np.array([crossing([p for p in range(16) if p != probe]) for probe in range(16)])
    variance = 15 / 16 * np.square(left_out - left_out.mean()).sum() * 15 / 13
    assert float(error[0]) == pytest.approx(np.sqrt(variance + 0.1**2 + 0.25), rel=1e-9)


@pytest.mark.parametrize(
    ("shares", "want"),
    [
        ([0.45, 0.45, 0.08], 2.0),
        ([0.45, 0.45 - 5e-7, 0.08], 2.0),  # rounding of float32
        ([0.45, 0.45 - 5e-6, 0.08], 3.0),
        ([0.45, 0.45 - 5e-7], 2.0),
    ],
)
def test_deflated_directions_that_hold_90_percent_are_counted(shares: list[float], want: float) -> None:
    top = torch.tensor([shares], dtype=torch.float64)
    nodes, weights = torch.full((1, 16, 5), 0.004, dtype=torch.float64), torch.ones(1, 16, 5, dtype=torch.float64)
    value, error = _components(top, nodes, weights)
    assert (float(value[0]), float(error[0])) == (want, 0.5)
