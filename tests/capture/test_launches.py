"""What a pass does on a GPU, seen without one: on fake `cuda` tensors (`benchmarks/fake_cuda.py`)."""

from __future__ import annotations

import pytest
import torch

from benchmarks import counted, gpu_model
from benchmarks.fake_cuda import fake_cuda
from orchestrator.compression.metrics import measure
from orchestrator.compression.registry import default_names

SHAPE = gpu_model.Shape(3, 96, 192, 4, 512, 6, 2, 32, 3)
SETS = {"default": default_names(), "estimate": ("effective_rank_estimate", "effective_rank_estimate_se")}


@pytest.mark.parametrize("kind", SETS)
def test_a_pass_asks_for_no_value_and_sends_all_it_has_in_one_copy(kind: str) -> None:
    """`.item()`, `int(tensor)`, a test of a tensor or a shape that depends on data raise on fake tensors."""
    work = counted.recorded(SHAPE, SETS[kind])
    assert work.to_host == 1
    assert work.n_launches > 0


def test_a_value_that_is_asked_for_does_raise_there() -> None:
    for ask in (lambda x: x.sum().item(), lambda x: bool((x > 0).any()), lambda x: x[x > 0], lambda x: x.nonzero()):
        with pytest.raises(RuntimeError), fake_cuda():
            ask(torch.zeros(3, 4, device="cuda"))


@pytest.mark.parametrize("kind", SETS)
def test_launches_of_metrics_do_not_grow_with_layers(kind: str) -> None:
    """Each layer costs the one gather that copies its tokens out."""
    few, many = (counted.recorded(SHAPE, SETS[kind], n_layers).n_launches for n_layers in (2, 5))
    assert many - few == 5 - 2


def test_bytes_of_the_default_set_are_a_few_readings_of_the_states() -> None:
    shape = gpu_model.Shape(layers=4, side=20, images=2)
    rows, n = 5 * shape.images, 400
    hidden = rows * n * shape.width * 2
    with counted.counting() as work, torch.no_grad():
        states = torch.empty(rows, n, shape.width, dtype=torch.bfloat16, device="cuda")
        measure(states, torch.empty(rows, dtype=torch.int64, device="cuda"), SETS["default"], full=True)
    assert work.n_bytes < 50 * hidden
