"""Skill beyond covariates: nothing for a probe that knows the count alone, something for one that knows more."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from orchestrator.config import ProbeConfig
from orchestrator.errors import ConfigError
from orchestrator.probes.beyond import Covariates, covariates_of, skill_beyond
from orchestrator.probes.grid import fit_grid
from orchestrator.probes.split import make_split
from orchestrator.probes.targets import make_target


def planted(knows_size: bool, seed: int, n: int = 400) -> pl.DataFrame:
    """Probes of two attributes that follow the count, from features that hold the count and maybe the size."""
    rng = np.random.default_rng(seed)
    count = rng.integers(1, 60, n).astype(float)
    size = 1 / np.sqrt(count) + 0.05 * rng.standard_normal(n)
    hump = np.exp(-(((np.log(count) - 2) / 1.2) ** 2)) + 0.05 * rng.standard_normal(n)
    known = [count, np.log(count), count**2, np.sqrt(count), 1 / count] + [size] * knows_size
    signal = np.stack([(k - k.mean()) / k.std() for k in known], 1)
    features = np.concatenate([signal, 0.1 * rng.standard_normal((n, 10))], 1).astype(np.float32)[:, None]
    targets = [make_target("size_mean", "continuous", size), make_target("hump", "continuous", hump),
               make_target("n_objects", "count", count)]  # fmt: skip
    config = ProbeConfig(solvers=("ridge",), n_bootstrap=20, controls=())
    split = make_split(list(range(n)), 0.3, 5, seed)
    held = Covariates(("n_objects",), count[:, None])
    return fit_grid(features, targets, config, split, tap="decoder", layer=1, positions=["text_mean"], covariates=held)


def test_a_probe_that_knows_the_count_alone_has_no_skill_beyond_it() -> None:
    above = 0
    for seed in range(12):
        table = planted(False, seed).filter(pl.col("attribute") != "n_objects")
        assert table["score"].min() > 0.2  # yet it scores
        above += int((table["beyond_low"] > 0).sum() + (table["beyond_high"] < 0).sum())
    assert above <= 4  # of 24 intervals at 95 %


def test_a_probe_that_knows_the_attribute_itself_has_skill_beyond_the_count() -> None:
    row = planted(True, 0).row(by_predicate=pl.col("attribute") == "size_mean", named=True)
    assert row["beyond_low"] > 0.5
    assert row["beyond_low"] <= row["skill_beyond"] <= row["beyond_high"]
    assert row["beyond"] == "n_objects"


def test_what_is_held_fixed_has_no_skill_beyond_itself() -> None:
    row = planted(True, 0).row(by_predicate=pl.col("attribute") == "n_objects", named=True)
    assert row["skill_beyond"] is None
    assert row["beyond"] is None


def test_few_images_and_absent_covariates_give_none() -> None:
    rng = np.random.default_rng(0)
    few = skill_beyond(rng.random((15, 2)), rng.random(15), np.ones(15, bool), rng.random((15, 1)))
    assert np.isnan(np.concatenate(few)).all()
    images = pl.DataFrame({"n_objects": [1, None, 3], "colour": ["a", "b", "c"]})
    kinds = {"n_objects": "count", "colour": "categorical"}
    found = covariates_of(images, kinds, ("n_objects", "absent"))
    assert found is not None
    assert found.names == ("n_objects",)
    assert np.isnan(found.values[1, 0])
    assert covariates_of(images, kinds, ("absent",)) is None
    with pytest.raises(ConfigError, match="'colour' is categorical"):
        covariates_of(images, kinds, ("colour",))
