"""Replaced states: moments against numpy, one state for all is no image at all, and noise depends on its seed alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from orchestrator.ablate.replacing import Moments, moments, replaced
from orchestrator.config import RunConfig
from orchestrator.models.interventions import vision_states
from orchestrator.store.filesystem import Storage
from tests.points import run_ablate


@pytest.mark.parametrize("family", ["llava", "llava_next", "mllama"])
def test_moments_are_those_of_all_tokens_of_all_images(make_bench, family: str) -> None:
    bench = make_bench(family, 2)
    found = moments(bench, 1)
    every = np.concatenate([vision_states(bench.adapter, x, 1)[0].double().numpy() for x in bench.inputs])
    np.testing.assert_allclose(found.mean.numpy(), every.mean(0), atol=1e-5)
    np.testing.assert_allclose(found.deviation.numpy(), every.std(0), atol=1e-5)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "mllama"])
def test_with_one_state_for_all_images_the_image_is_of_no_consequence(make_bench, family: str) -> None:
    one, other = make_bench(family, size=(1, 1), order=(0, 0)), make_bench(family, size=(1, 1), order=(0, 0))
    other.inputs = [dict(x, pixel_values=-3.0 * x["pixel_values"]) for x in other.inputs]
    of = moments(one, 0)
    for kind in ("zero", "mean", "noise"):
        found = replaced(one, kind, 0, 5, of)
        assert found.predicted == replaced(other, kind, 0, 5, of).predicted
        assert found.predicted == replaced(one, kind, 0, 5, of).predicted
    still = Moments(of.mean, torch.zeros_like(of.deviation))
    assert replaced(one, "noise", 0, 1, still).predicted == replaced(one, "mean", 0, 0, of).predicted


@pytest.mark.parametrize("model", ["reference-joint", "reference-cross"])
def test_the_stage_replaces_by_kind_and_layer(model: str, tmp_path: Path) -> None:
    ablate = {"checks": ["replacing"], "low_families": ["colour"], "high_families": [], "n_per_family": 6, "seeds": [0]}
    how = {"backend": "local", "batch_size": 6, "torch_threads": 1}
    run = RunConfig.model_validate({"model": {"name": model}, "ablate": ablate, "how": how})
    table = run_ablate(run, Storage(str(tmp_path)), quiet=True).scan("replacing").collect()
    layers = [1, 3, 5] if model == "reference-cross" else list(range(6))
    assert table.sort("layer")["layer"].unique(maintain_order=True).to_list() == layers
    assert table.height == 3 * len(layers)
    first = table.filter(pl.col("layer") == layers[0])
    assert first["accuracy"].max() < 0.9, "at the first layer nothing of the image is left"
