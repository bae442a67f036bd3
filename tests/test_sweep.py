"""Expansion of sweep files, overrides, and errors that name place, finding, expectation and nearest name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.config import CocoConfig, ScenesConfig
from orchestrator.errors import ConfigError
from orchestrator.sweep import load_sweep, make_sweep

BASE = {"name": "t", "base": {"data": {"source": "scenes", "n_images": 4}}}


def test_axes_make_the_product_and_zip_goes_in_lockstep() -> None:
    sweep = make_sweep(
        {**BASE, "axes": {"finetune.complexity_ratio": [0, 0.5]}, "zip": {"data.n_images": [1, 2], "data.seed": [5, 6]}}
    )
    found = [(p.run.finetune.complexity_ratio, p.run.data.n_images, p.run.data.seed) for p in sweep.points]
    assert found == [(0.0, 1, 5), (0.0, 2, 6), (0.5, 1, 5), (0.5, 2, 6)]
    assert sweep.points[0].label == "ratio=0 n_images=1 seed=5"


def test_equal_points_are_kept_once() -> None:
    assert len(make_sweep({**BASE, "axes": {"finetune.seed": [3, 3, 4]}}).points) == 2


def test_an_override_beats_the_file_and_its_axes() -> None:
    sweep = make_sweep({**BASE, "axes": {"finetune.seed": [0, 1]}}, ["finetune.seed=7", "storage=elsewhere"])
    assert [p.run.finetune.seed for p in sweep.points] == [7]
    assert sweep.points[0].label == "base"
    assert sweep.study.storage == "elsewhere"


def test_a_float_written_as_yaml_reads_it_is_repaired() -> None:
    sweep = make_sweep(BASE, ["finetune.language.learning_rate=3e-4", "capture.layers=[0,4]"])
    assert sweep.points[0].run.finetune.language.learning_rate == pytest.approx(3e-4)
    assert sweep.points[0].run.capture.layers == (0, 4)


def test_a_whole_section_can_be_an_axis() -> None:
    sweep = make_sweep({"name": "t", "axes": {"data": [{"source": "scenes"}, {"source": "coco", "root": "x"}]}})
    assert [type(p.run.data) for p in sweep.points] == [ScenesConfig, CocoConfig]
    assert [p.label for p in sweep.points] == ["data=scenes", "data=coco"]


@pytest.mark.parametrize(
    ("overrides", "pieces"),
    [
        (["data.n_imags=3"], ["base.data.n_imags", "unknown key", "'n_images'"]),
        (["modl.name=x"], ["modl.name", "Did you mean", "model"]),
        (["data.n_images=0"], ["base.data.n_images", "greater than or equal to 1", "0"]),
        (["data.n_images=1.5"], ["base.data.n_images", "valid integer", "1.5"]),
        (["data.source=coc"], ["data.source", "'coc'", "'coco'"]),
        (["how.backend=ry"], ["how.backend", "'ry'", "'ray'"]),
        (["data.n_objects=[9,2]"], ["base.data", "smaller value comes first"]),
        (["data.n_objects=[0,2]"], ["base.data", "expected 1 to 1000"]),
        (["nonsense"], ["expected KEY=VALUE"]),
        (["finetune.eval_seed=0"], ["held-out scenes would be training scenes"]),
        (["stages=[captur]"], ["stages", "'captur'", "'capture'"]),
        (["name=a/b"], ["name", "a/b"]),
        (["capture.layers=[1"], ["not valid YAML"]),
    ],
)
def test_bad_input_is_named(overrides: list[str], pieces: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        make_sweep(BASE, overrides, file="my.yaml")
    for piece in pieces:
        assert piece in str(caught.value)


def test_every_mistake_of_a_file_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        make_sweep({"name": "t", "base": {"modle": {}, "data": {"source": "scenes", "sed": 1}}})
    assert "modle" in str(caught.value)
    assert "data.sed" in str(caught.value)


def test_an_empty_axis_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"axes\.finetune\.seed: expected at least one value"):
        make_sweep({**BASE, "axes": {"finetune.seed": []}})


def test_unequal_zip_lists_are_refused() -> None:
    with pytest.raises(ConfigError, match="equally long"):
        make_sweep({**BASE, "zip": {"data.seed": [1, 2], "finetune.seed": [1]}})


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text("name: q")
    with pytest.raises(ConfigError, match=r"quickstart\.yaml"):
        load_sweep(tmp_path / "quickstrat.yaml")


@pytest.mark.parametrize("text", ["a: [1", "- 1", "", "!!python/object/apply:os.system ['true']"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"x\.yaml"):
        load_sweep(file)


def test_every_shipped_sweep_expands() -> None:
    files = sorted((Path(__file__).parents[1] / "sweeps").glob("*.yaml"))
    assert files
    for file in files:
        assert load_sweep(file).points


def test_expansion_imports_neither_torch_nor_ray() -> None:
    heavy = ("torch", "ray", "mlflow", "transformers", "matplotlib")
    code = f"import sys, orchestrator.sweep, orchestrator.cli; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
