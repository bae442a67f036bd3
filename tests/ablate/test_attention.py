"""Attention of the reference models: shares of shares, more on objects than their number has it, maps that add up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from orchestrator.ablate.attention import MEASURES, _measure
from orchestrator.ablate.cells import list_cells
from orchestrator.ablate.selectors.check import check_model_gives
from orchestrator.config import AblateConfig, RunConfig
from orchestrator.errors import ConfigError
from orchestrator.store.filesystem import Storage
from tests.points import run_ablate


@pytest.mark.parametrize("model", ["reference-joint", "reference-cross"])
def test_the_stage_tells_what_each_layer_looks_at(model: str, tmp_path: Path) -> None:
    ablate = {
        "checks": ["attention"],
        "low_families": ["colour", "count"],
        "high_families": [],
        "n_per_family": 8,
        "attention_maps": 2,
    }
    how = {"backend": "local", "batch_size": 16, "torch_threads": 1}
    run = RunConfig.model_validate({"model": {"name": model}, "ablate": ablate, "how": how})
    stage = run_ablate(run, Storage(str(tmp_path)), quiet=True)
    table, maps = (stage.scan(name).collect() for name in ("attention", "attention_maps"))
    assert table.select((pl.col("to_image") <= 1 + 1e-6).all() & (pl.col("entropy") <= 1 + 1e-6).all()).item()
    gap = table["on_objects"] - table["object_share"] - table["over_share"]
    assert float(gap.abs().max()) < 1e-6
    if model == "reference-cross":
        assert table["to_image"].to_list() == pytest.approx([1.0] * table.height, abs=1e-5)
    best = table.filter(pl.col("family") == "colour").sort("over_share")[-1].row(0, named=True)
    assert best["over_share_low"] > 0, "some layer looks at objects more than their size alone would have it"
    assert maps["question_id"].n_unique() == 2
    sums = maps.group_by("question_id", "layer", "target").agg(pl.col("weight").sum())["weight"]
    assert (sums <= 1 + 1e-6).all()
    assert (sums > 0.2).all()


def test_measures_are_those_of_a_hand_computed_case() -> None:
    values = {name: np.full(1, np.nan) for name in MEASURES}
    _measure(values, 0, np.array([0.1, 0.1, 0.2, 0.0]), np.array([False, True, True, False]))
    assert values["to_image"][0] == pytest.approx(0.4)
    assert values["on_objects"][0] == pytest.approx(0.75)
    assert values["entropy"][0] == pytest.approx((0.5 * np.log(4) + 0.5 * np.log(2)) / np.log(4))
    _measure(values, 0, np.zeros(4), None)
    assert values["to_image"][0] == 0.0


def test_fused_blocks_and_empty_layers_are_refused_before_work() -> None:
    config = AblateConfig(checks=("attention",))
    with pytest.raises(ConfigError, match="attention cannot be read"):
        check_model_gives(config, "molmo")
    assert [cell.check for cell in list_cells(config, 4)] == ["attention"]
