"""Conditional association: covariates alone make no finding, a direct effect does."""

import numpy as np
import pytest

from orchestrator.stats.blocks import neighbours
from orchestrator.stats.conditional import conditional_association
from orchestrator.stats.curves import _PENALTIES, Curves, _penalty


def curves_of(count: np.ndarray) -> dict[str, np.ndarray]:
    u = (np.log(count) - np.log(count.min())) / np.ptp(np.log(count))
    return {"hump": 4 * u * (1 - u), "saturating": count / (count + 10), "step": (u > 0.5) * 1.0}


@pytest.mark.parametrize("shape", ["hump", "saturating", "step"])
@pytest.mark.parametrize("n", [60, 400])
def test_dependence_on_the_count_alone_is_no_association(shape: str, n: int) -> None:
    rng = np.random.default_rng(3)
    p = []
    for _ in range(3):
        count = np.floor(np.exp(rng.uniform(0, np.log(201), n)))
        curve = curves_of(count)[shape][:, None]
        deviation = (0.05 + 0.3 * rng.random((n, 1))) * curve.clip(0.1)  # heteroscedastic, and shared beyond the count
        x, y = (curve + deviation * rng.standard_normal((n, 60)) for _ in range(2))
        p.append(np.diag(conditional_association(x, y, count[:, None]).p))
    assert np.mean(np.concatenate(p) < 0.05) < 0.10  # 180 tests at 5 %


def test_a_direct_effect_is_found_with_its_interval() -> None:
    rng = np.random.default_rng(4)
    n = 200
    count = rng.integers(1, 21, n).astype(float)
    own = rng.standard_normal((n, 80))
    x = -0.1 * (count[:, None] - 10) ** 2 + own
    y = np.sqrt(count)[:, None] + 0.5 * own + np.sqrt(0.75) * rng.standard_normal((n, 80))
    found = conditional_association(x, y, count[:, None])
    rho, low, high = (np.diag(part) for part in (found.rho, found.low, found.high))
    assert np.mean(np.diag(found.p) < 0.05) > 0.95
    # ranks taken over all counts shrink it below 0.5 of the noise; intervals hold their own mean
    assert 0.3 < rho.mean() < 0.6
    assert np.mean((low < rho.mean()) & (rho.mean() < high)) > 0.85


def test_what_the_covariates_determine_has_no_value() -> None:
    rng = np.random.default_rng(0)
    count = rng.integers(1, 21, 100).astype(float)
    x = np.stack([np.sin(count), rng.standard_normal(100), np.ones(100)], axis=1)
    found = conditional_association(x, rng.standard_normal((100, 1)), count[:, None])
    assert np.isnan(found.rho[[0, 2], 0]).all()
    assert np.isfinite(found.rho[1, 0])
    assert found.explained_x[0] > 0.99


def test_several_covariates_are_held_at_once() -> None:
    rng = np.random.default_rng(5)
    rates = []
    for _ in range(3):
        z = rng.uniform(size=(300, 2))
        curve = (np.sin(3 * z[:, :1]) * z[:, 1:] + (z[:, :1] - 0.5) ** 2) * 2
        x, y = (curve + 0.2 * rng.standard_normal((300, 60)) for _ in range(2))
        rates.append(np.mean(np.diag(conditional_association(x, y, z).p) < 0.05))
        assert np.mean(np.diag(conditional_association(x, y, z[:, :1]).p) < 0.05) > 0.9
    assert np.mean(rates) < 0.12


def test_constant_covariates_leave_the_plain_rank_correlation() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(6)
    x = rng.standard_normal((80, 1))
    y = x + rng.standard_normal((80, 1))
    found = conditional_association(x, y, np.ones((80, 1)))
    assert found.rho[0, 0] == pytest.approx(spearmanr(x, y).statistic, abs=1e-9)
    assert found.low[0, 0] < found.rho[0, 0] < found.high[0, 0]


def test_blocks_keep_equal_covariates_together() -> None:
    values = np.repeat([1.0, 2.0, 3.0], [2, 30, 9])[:, None]
    blocks = neighbours(values, 4)
    assert all(len(set(blocks[values[:, 0] == v])) == 1 for v in (1.0, 2.0, 3.0))
    assert len(set(blocks)) == 2  # the two images of value 1 cannot stand alone


def test_residuals_are_leave_one_out() -> None:
    rng = np.random.default_rng(7)
    count = rng.uniform(size=(50, 1))
    curves = Curves.of(count)
    k = len(curves.smoothers) - 1
    basis, _ = curves.smoothers[k]
    column = rng.standard_normal((50, 1))
    others = np.arange(50) != 17
    part = basis[others]
    weights = np.linalg.solve(part.T @ part + _PENALTIES[-1] * _penalty(basis), part.T @ column[others])
    assert curves._residuals(k, column)[17, 0] == pytest.approx(float((column[17] - basis[17] @ weights)[0]), abs=1e-8)
