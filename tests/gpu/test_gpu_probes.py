"""Probes fitted on a GPU are those fitted on the CPU."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.config import ProbeConfig
from orchestrator.probes.grid import fit_grid
from orchestrator.probes.split import make_split
from orchestrator.probes.targets import make_target

pytestmark = pytest.mark.cuda

N, POSITIONS = 240, 4


def problem(width: int) -> tuple[np.ndarray, list]:
    random = np.random.default_rng(0)
    latent = random.normal(size=(N, 6))
    signal = np.einsum("nl,pld->npd", latent, random.normal(size=(POSITIONS, 6, width)))
    features = signal + random.normal(size=signal.shape) * np.logspace(0.5, -1, width)
    targets = [make_target(f"number{i}", "continuous", latent[:, i] + 0.3 * random.normal(size=N)) for i in range(3)]
    targets += [make_target(f"class{c}", "categorical", latent[:, :c].argmax(1)) for c in (2, 3, 5)]
    return features.astype(np.float16), targets


@pytest.mark.parametrize("width", [32, 400])
@pytest.mark.parametrize(
    ("solvers", "tolerance"), [(("ridge",), 1e-3), (("logistic",), 0.02), (("mlp",), 0.05)], ids=lambda v: str(v)
)
def test_scores_equal_those_of_the_cpu(solvers: tuple[str, ...], tolerance: float, width: int, gpu: str) -> None:
    features, targets = problem(width)
    config = ProbeConfig(solvers=solvers, mlp_steps=60, n_bootstrap=50)  # type: ignore[arg-type]
    split = make_split(range(N), 0.3, 5, 0)
    names = [f"vision_{p:02d}" for p in range(POSITIONS)]
    tables = [
        fit_grid(features, targets, config, split, tap="decoder", layer=1, positions=names, device=device)
        for device in ("cpu", gpu)
    ]
    keys = ["position", "attribute", "solver", "n_train", "n_test"]
    assert tables[0].select(keys).equals(tables[1].select(keys))
    scores = [table["score"].to_numpy() for table in tables]
    assert np.isfinite(scores[0]).all()
    np.testing.assert_allclose(scores[1], scores[0], atol=tolerance)
    assert np.median(np.abs(scores[1] - scores[0])) <= tolerance / 4
    same = tables[0]["penalty"].to_numpy() == tables[1]["penalty"].to_numpy()
    assert same.mean() >= 0.9
