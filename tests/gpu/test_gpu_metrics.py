"""Metrics on a GPU are those of a float64 singular value decomposition, in float32 and from bfloat16 states."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from orchestrator.compression.alignment import linear_cka, relative_drift, top5_alignment
from orchestrator.compression.metrics import compute
from orchestrator.compression.registry import ALIGNMENTS, METRICS, default_names
from tests.compression.oracle import metric

pytestmark = pytest.mark.cuda

NAMES = tuple(name for name in default_names("exact") if name not in ALIGNMENTS)
TOLERANCES = {"norms": 2e-5, "gram": 2e-3, "spectrum": 1e-2}
"""Relative, by class of cost; the same for states given in bfloat16, whose values are taken as exact."""
COUNTS = (64, 64, 37, 1)


def states(kind: str, width: int, dtype: torch.dtype) -> torch.Tensor:
    """(4, 64, width) of a kind of spectrum."""
    random = torch.Generator().manual_seed(0)
    tokens = torch.randn(4, 64, width, generator=random)
    if kind != "flat":
        tokens = tokens * torch.arange(1, width + 1).float().rsqrt() + 3 * torch.randn(4, 1, width, generator=random)
    if kind == "low rank":
        tokens = torch.randn(4, 64, 6, generator=random) @ torch.randn(4, 6, width, generator=random)
    if kind == "massive":
        tokens[:, 3] = 0.0
        tokens[:, 3, 5] = 3000.0
    return tokens.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["flat", "power law", "low rank", "massive"])
@pytest.mark.parametrize("width", [40, 160])
def test_every_metric_equals_its_definition(kind: str, width: int, dtype: torch.dtype, gpu: str) -> None:
    if kind == "low rank" and dtype == torch.bfloat16:
        pytest.skip("rounding to bfloat16 makes it full rank with a flat tail")
    hidden = states(kind, width, dtype)
    mask = torch.arange(hidden.shape[1]) < torch.tensor(COUNTS)[:, None]
    found = {name: values.cpu().numpy() for name, values in compute(hidden.to(gpu), mask.to(gpu), NAMES).items()}
    wrong = []
    for name in NAMES:
        expected = [metric(name, hidden[row, :n].double().numpy()) for row, n in enumerate(COUNTS)]
        tolerance = TOLERANCES[METRICS[name].needs]
        close = np.isclose(found[name], expected, rtol=tolerance, atol=tolerance / 10, equal_nan=True)
        if name.startswith(("rank_90", "tokens_90")):  # a count may fall either side of 90 %
            close |= np.abs(found[name] - expected) <= (1.01 if name.startswith("rank") else 1.01 / np.array(COUNTS))
        if not close.all():
            wrong.append((name, found[name].tolist(), expected))
    assert not wrong, wrong


@pytest.mark.parametrize("kind", ["flat", "power law", "massive"])
def test_the_estimate_is_within_its_error_of_the_exact_spectrum(kind: str, gpu: str) -> None:
    hidden = states(kind, 160, torch.bfloat16)[:3].to(gpu)
    mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=gpu)
    names = [n for n in default_names("estimate") if n.startswith("effective_rank")]
    exact = compute(hidden, mask, [n for n in default_names("exact") if n.startswith("effective_rank")])
    found = compute(hidden, mask, names)
    for name, value in exact.items():
        stem = name.removeprefix("effective_rank")
        estimate, error = found["effective_rank_estimate" + stem], found["effective_rank_estimate" + stem + "_se"]
        assert ((estimate - value).abs() <= 4 * error + 1e-3 * value).all(), (name, estimate, value, error)


def test_states_that_are_not_finite_spoil_no_other_image(gpu: str) -> None:
    hidden = states("power law", 160, torch.float32)
    mask = torch.ones(hidden.shape[:2], dtype=torch.bool)
    whole = compute(hidden.to(gpu), mask.to(gpu), NAMES)
    hidden[1, 7, 3] = torch.nan
    spoilt = compute(hidden.to(gpu), mask.to(gpu), NAMES)
    for name, values in spoilt.items():
        assert values[1].isnan(), name
        torch.testing.assert_close(values[[0, 2, 3]], whole[name][[0, 2, 3]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_comparisons_of_two_models_equal_those_on_the_cpu(dtype: torch.dtype, gpu: str) -> None:
    a = states("power law", 160, dtype)[:3]
    random = torch.Generator().manual_seed(1)
    b = (a.float() + 0.3 * torch.randn(a.shape, generator=random)).to(dtype)
    mask = torch.arange(a.shape[1]) < torch.tensor([64, 50, 31])[:, None]
    there = [tensor.to(gpu) for tensor in (a, b, mask)]
    pairs = [
        (relative_drift(a, b, mask), relative_drift(*there), 1e-5),
        (linear_cka(a, b, mask), linear_cka(*there), 1e-4),
        (top5_alignment(a, mask, b, mask), top5_alignment(there[0], there[2], there[1], there[2]), 2e-3),
    ]
    for expected, found, tolerance in pairs:
        torch.testing.assert_close(found.cpu().double(), expected.double(), rtol=tolerance, atol=tolerance)
