"""Estimates of the full spectrum: what their standard errors promise, and what leaves them unchanged."""

import numpy as np
import pytest
import torch

from orchestrator.compression import finish
from orchestrator.compression.estimate import quadrature
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
