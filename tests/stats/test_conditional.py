"""Conditional association: covariates alone make no finding, a direct effect does."""

import numpy as np
import pytest
import scipy.optimize
from scipy.stats import rankdata
from scipy.stats import t as student

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


def test_the_interval_is_that_of_the_images_influence_on_a_correlation() -> None:
    """Delta method: the influence on r = Sab / sqrt(Saa Sbb) is ab / sqrt(Saa Sbb) - r / 2 (aa / Saa + bb / Sbb)."""
    rng = np.random.default_rng(8)
    n = 90
    x = rng.standard_normal((n, 1))
    mixed = np.stack(
        [w * x[:, 0] + np.sqrt(1 - w**2) * rng.standard_normal(n) for w in (-0.95, -0.5, 0, 0.3, 0.8)], axis=1
    )
    found = conditional_association(x, mixed, np.ones((n, 1)))
    factors = []
    for k in range(mixed.shape[1]):
        a, b = (rankdata(column) - (n + 1) / 2 for column in (x[:, 0], mixed[:, k]))
        aa, bb = float(a @ a), float(b @ b)
        r = float(a @ b) / np.sqrt(aa * bb)
        influence = a * b / np.sqrt(aa * bb) - r / 2 * (a**2 / aa + b**2 / bb)
        half = (np.arctanh(found.high[0, k]) - np.arctanh(found.low[0, k])) / 2
        assert np.arctanh(found.high[0, k]) - half == pytest.approx(np.arctanh(r))
        factors.append(half * (1 - r**2) / np.sqrt((influence**2).sum()))
    assert factors == pytest.approx([factors[0]] * 5, rel=1e-6)
    least = student.ppf(0.975, n - 2) * np.sqrt(1.12 * n / (n - 2))  # with the allowance for the curves
    assert 1 <= factors[0] / least < 1.1
    wide = conditional_association(x, mixed, np.ones((n, 1)), confidence=0.998)
    ratio = np.arctanh(wide.high)[0, 2] - np.arctanh(wide.rho)[0, 2]
    ratio /= np.arctanh(found.high)[0, 2] - np.arctanh(found.rho)[0, 2]
    assert ratio == pytest.approx(student.ppf(0.999, n - 2) / student.ppf(0.975, n - 2))


def test_too_few_images_and_values_that_are_not_finite() -> None:
    few = conditional_association(np.ones((19, 1)), np.ones((19, 2)), np.ones((19, 1)))
    assert few.rho.shape == (1, 2)
    assert np.isnan(few.rho).all()
    assert few.n == 19
    rng = np.random.default_rng(0)
    assert np.isfinite(conditional_association(*rng.standard_normal((2, 20, 1)), np.ones((20, 1))).rho).all()
    with pytest.raises(ValueError, match="covariates"):
        conditional_association(np.ones((30, 1)), np.ones((30, 1)), np.full((30, 1), np.nan))


@pytest.mark.parametrize(("t_squared", "taken_off"), [(11.7, False), (12.3, True)])
def test_a_jump_is_taken_off_where_the_t_of_least_squares_exceeds_its_limit(t_squared: float, taken_off: bool) -> None:
    n = 40
    curves = Curves.of(np.arange(n, dtype=float)[:, None])
    basis = curves.smoothers[5][0]
    assert np.linalg.matrix_rank(basis) == basis.shape[1] - 1
    noise = np.random.default_rng(4).standard_normal(n)

    def largest_t_squared(column: np.ndarray) -> float:
        values = []
        for jump in curves.jumps.T:
            design = np.column_stack([basis, jump])
            coefficients, _, rank, _ = np.linalg.lstsq(design, column, rcond=None)
            residual, covariance = column - design @ coefficients, np.linalg.pinv(design.T @ design)
            if covariance[-1, -1] < 2:  # not explained by the curve already
                variance = residual @ residual / (n - rank)
                values.append(coefficients[-1] ** 2 / variance / covariance[-1, -1])
        return max(values)

    step = curves.jumps[:, curves.jumps.shape[1] // 2]
    size = scipy.optimize.brentq(lambda a: largest_t_squared(noise + a * step) - t_squared, 0.0, 50.0)
    column = (noise + size * step)[:, None]
    assert (not np.array_equal(curves._without_jumps(column), column)) is taken_off
