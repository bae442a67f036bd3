"""Small runs on the shipped reference model, loaded once."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from orchestrator.capture.loading import Loaded, load_shard
from orchestrator.capture.shard_worker import CaptureWorker
from orchestrator.config import RunConfig
from orchestrator.config.sweep import set_key, validate
from orchestrator.data.source import make_source
from orchestrator.models.adapter import Adapter
from orchestrator.models.loading import load_adapter

SCENES = {"source": "scenes", "n_images": 12, "n_objects": [1, 30], "width": 112, "height": 112}


def make_run(model: str = "reference-joint", **keys: object) -> RunConfig:
    """A run on a dozen scenes; `keys` are dotted, with `__` for the dot."""
    tree: dict = {
        "model": {"name": model},
        "data": dict(SCENES),
        "how": {"backend": "local", "batch_size": 4, "shard_size": 5, "torch_threads": 1, "object_store_gb": 0.3},
    }
    for key, value in keys.items():
        tree = set_key(tree, key.replace("__", "."), value, where="test")
    return validate(RunConfig, tree, "test")


@functools.cache
def _adapter(model: str) -> Adapter:
    return load_adapter(make_run(model).model, "cpu")


@pytest.fixture
def make_worker() -> Callable[[RunConfig], CaptureWorker]:
    def make(run: RunConfig) -> CaptureWorker:
        kinds = dict(make_source(run.data).attribute_kinds)
        return CaptureWorker(run, kinds, device="cpu", threads=1, adapter=_adapter(run.model.name))

    return make


def load(run: RunConfig, n: int | None = None) -> list[Loaded]:
    source = make_source(run.data)
    return load_shard(source, range(n or len(source)))
