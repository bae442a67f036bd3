"""Tests of the GPU against the CPU: skipped without a GPU.

`VTSWEEP_GPU_TESTS_ON=cpu` runs them with the CPU in the GPU's place, which checks the tests and not a GPU. They need
neither Ray nor MLflow.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache

import pytest
import torch

from orchestrator.compression.halves import LEAN
from orchestrator.config import ModelConfig, RunConfig
from orchestrator.config.sweep import set_key, validate
from orchestrator.models.adapter import Adapter
from orchestrator.models.loading import load_adapter

STAND_IN = os.environ.get("VTSWEEP_GPU_TESTS_ON")


@pytest.fixture(autouse=True)
def gpu() -> Iterator[str]:
    """The device under test; float32 products and convolutions are float32 there."""
    if STAND_IN is None and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    if STAND_IN is not None:
        LEAN.add(STAND_IN)
    yield STAND_IN or "cuda"
    LEAN.intersection_update({"cuda"})
    torch.backends.cudnn.allow_tf32 = before


@cache
def loaded(model: str, device: str, dtype: str = "float32") -> Adapter:
    """A shipped model on a device, loaded once."""
    return load_adapter(ModelConfig(name=model, dtype=dtype), device)  # type: ignore[arg-type]


def make_run(model: str = "reference-joint", **keys: object) -> RunConfig:
    """A small run in this process; `keys` are dotted, with `__` for the dot."""
    tree: dict = {
        "model": {"name": model},
        "data": {"source": "scenes", "n_images": 8, "n_objects": [1, 30], "width": 112, "height": 112},
        "how": {"backend": "local", "batch_size": 4},
    }
    for key, value in keys.items():
        tree = set_key(tree, key.replace("__", "."), value, where="test")
    return validate(RunConfig, tree, "test")
