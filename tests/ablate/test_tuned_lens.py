"""The calibrated lens is ridge regression on other images, and recovers a planted affine map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from orchestrator.ablate.tuned_lens import PENALTIES, calibrated, fit_map, folds_of


def planted(n: int, d: int, noise: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, d)) @ draw.normal(size=(d, d)) + draw.normal(size=d)
    y = x @ (np.eye(d) + draw.normal(size=(d, d)) / d) + draw.normal(size=d) + noise * draw.normal(size=(n, d))
    return torch.from_numpy(x).float(), torch.from_numpy(y).float()


@pytest.mark.parametrize(("n", "d"), [(60, 8), (12, 30)])
def test_the_map_is_ridge_on_the_change_with_the_penalty_of_least_gcv(n: int, d: int) -> None:
    x, y = planted(n, d, 1.0)
    mean, matrix, offset = fit_map(x, y)
    centred = (x - x.mean(0)).double().numpy()
    change = (y - x).double().numpy()
    values = np.linalg.eigvalsh(centred.T @ centred)
    values = values[values > values[-1] * 1e-10]
    scores = []
    for share in PENALTIES:
        alpha = share * values.mean()
        model = Ridge(alpha=alpha).fit(centred, change)
        hat = centred @ np.linalg.solve(centred.T @ centred + alpha * np.eye(d), centred.T)
        free = max(n - 1 - np.trace(hat), 1.0)
        scores.append((np.square(change - model.predict(centred)).sum() / free**2, alpha, model))
    best = min(scores, key=lambda s: s[0])[2]
    predicted = ((x - mean) @ matrix + offset).numpy()
    np.testing.assert_allclose(predicted, best.predict(centred), atol=1e-3 * np.abs(change).max())


def test_a_planted_map_is_recovered_on_images_that_it_was_not_fitted_on() -> None:
    x, y = planted(400, 12, 0.05)
    folds = folds_of([f"image {i // 4}" for i in range(400)])
    assert len(folds.unique()) == 5
    found = calibrated(x, y, folds)
    assert float((found - y).square().mean()) < 0.02 * float((x - y).square().mean())


def test_no_state_is_read_by_a_map_of_its_own_image() -> None:
    x, y = planted(60, 5, 1.0)
    folds = folds_of([f"image {i // 3}" for i in range(60)])
    own = folds == folds[0]
    other = y.clone()
    other[own] += 100.0
    torch.testing.assert_close(calibrated(x, other, folds)[own], calibrated(x, y, folds)[own])
    one = torch.zeros(60, dtype=torch.long)
    assert torch.equal(calibrated(x, y, one), x), "one image alone has no others to fit on"
