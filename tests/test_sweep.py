"""Expansion of sweep files, overrides, and errors that name place, finding, expectation and nearest name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from orchestrator.config import CocoConfig, ScenesConfig
from orchestrator.config.search_space import check_search
from orchestrator.config.study import LONGEST_NAME
from orchestrator.config.sweep import load_sweep, make_sweep
from orchestrator.errors import ConfigError
from orchestrator.store.filesystem import Storage
from orchestrator.store.record_format import Name
from tests.points import stage_of

BASE = {"name": "t", "base": {"data": {"source": "scenes", "n_images": 4}}}


def test_axes_make_the_product_and_zip_goes_in_lockstep() -> None:
    sweep = make_sweep(
        {**BASE, "axes": {"finetune.complexity_ratio": [0, 0.5]}, "zip": {"data.n_images": [1, 2], "data.seed": [5, 6]}}
    )
    found = [(p.run.finetune.complexity_ratio, p.run.data.n_images, p.run.data.seed) for p in sweep.points]
    assert found == [(0.0, 1, 5), (0.0, 2, 6), (0.5, 1, 5), (0.5, 2, 6)]
    assert sweep.points[0].label == "ratio=0 n_images=1 seed=5"


def test_labels_tell_axes_of_the_same_last_name_apart() -> None:
    sweep = make_sweep({**BASE, "axes": {"data.seed": [1], "finetune.seed": [2]}})
    assert sweep.points[0].label == "data.seed=1 finetune.seed=2"


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


def test_a_section_as_an_axis_keeps_the_axes_of_its_own_keys() -> None:
    sweep = make_sweep({"name": "t", "axes": {"data.seed": [0, 1], "data": [{"source": "scenes", "n_images": 4}]}})
    assert [p.run.data.seed for p in sweep.points] == [0, 1]


def test_a_label_leaves_out_an_axis_whose_section_was_overridden() -> None:
    axes = {"axes": {"finetune.language.rank": [4, 8]}}
    sweep = make_sweep({**BASE, **axes}, ["finetune.language={rank: 2, learning_rate: 1e-3}"])
    assert [p.label for p in sweep.points] == ["base"]


def test_the_same_layers_in_another_order_are_the_same_setting() -> None:
    assert make_sweep(BASE, ["capture.layers=[4,0,4]"]).points[0].run.capture.layers == (0, 4)


def test_a_point_that_alone_is_invalid_is_named() -> None:
    with pytest.raises(ConfigError, match=r"(?s)complexity_ratio.*found '2'.*at the point ratio=2"):
        make_sweep({**BASE, "axes": {"finetune.complexity_ratio": [0.5, 2]}})


def test_points_that_differ_only_in_how_are_refused_and_how_may_follow_another_axis() -> None:
    with pytest.raises(ConfigError, match=r"batch_size=1.*batch_size=2.*changes no result"):
        make_sweep({**BASE, "axes": {"how.batch_size": [1, 2]}})
    both = {"model.name": ["reference-joint", "reference-cross"], "how.batch_size": [1, 2]}
    assert [p.run.how.batch_size for p in make_sweep({**BASE, "zip": both}).points] == [1, 2]


def test_a_key_in_both_axes_and_zip_is_refused() -> None:
    with pytest.raises(ConfigError, match="both `axes` and `zip`"):
        make_sweep({**BASE, "axes": {"data.seed": [1]}, "zip": {"data.seed": [2]}})


@pytest.mark.parametrize(
    ("search", "piece"),
    [
        ({"finetune.learning_rat": {"kind": "uniform", "low": 0, "high": 1}}, "learning_rat"),
        ({"finetune.dropout": {"kind": "uniform", "low": 0, "high": 7}}, "less than 1"),
        ({"finetune.n_steps": {"kind": "uniform", "low": 1, "high": 7}}, "valid integer"),
        ({"finetune.method": {"kind": "choice", "values": ["lora", "ful"]}}, "'full'"),
        ({"probe.widht": {"kind": "choice", "values": [8]}}, "'width'"),
        ({"capture.seed": {"kind": "randint", "low": 0, "high": 4}}, "finetune and probe"),
    ],
)
def test_a_search_that_could_not_run_is_refused_before_anything_starts(search: dict, piece: str) -> None:
    with pytest.raises(ConfigError, match="search") as caught:
        check_search(make_sweep({**BASE, "search": search}))
    assert piece in str(caught.value)


def test_another_space_of_the_probes_is_another_stage() -> None:
    def digest(high: float, trials: int = 3) -> str:
        search = {"probe.penalty": {"kind": "loguniform", "low": 1e-3, "high": high}}
        run = make_sweep({**BASE, "search": search}, [f"probe.search_trials={trials}"]).points[0].run
        return stage_of(run, Storage("nowhere"), "probe").digest

    assert digest(1.0) != digest(2.0)
    assert digest(1.0, trials=0) == digest(2.0, trials=0)
    with pytest.raises(ConfigError, match="beside `base`"):
        make_sweep({"name": "t", "base": {"search": {}}})


@pytest.mark.parametrize(
    ("text", "piece"),
    [
        ("name: a\nname: b", "duplicate key 'name'"),
        ("name: a\nbase: {capture: {seed: 1, seed: 2}}", "duplicate key 'seed'"),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path: Path, text: str, piece: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=piece):
        load_sweep(tmp_path / "x.yaml")


def test_a_merged_key_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(
        "name: a\nzip: {capture: [&c {seed: 1, n_text_positions: 2}, &d {<<: *c, seed: 3}, {<<: *d, seed: 4}]}"
    )
    found = [(p.run.capture.seed, p.run.capture.n_text_positions) for p in load_sweep(tmp_path / "x.yaml").points]
    assert found == [(1, 2), (3, 2), (4, 2)]


def test_numbers_with_an_exponent_are_numbers_wherever_they_stand(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("name: a\naxes: {finetune.language.learning_rate: [3e-4, 1E-3, .5e-2, 1.e-1]}")
    axes = [p.axes["finetune.language.learning_rate"] for p in load_sweep(tmp_path / "x.yaml").points]
    assert axes == [3e-4, 1e-3, 5e-3, 0.1]


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
        (["name=a/b"], ["name", "found 'a/b'", "Use 'a-b'"]),
        (["name=" + 300 * "n"], ["name", "of 300 characters", "expected 1 to 120 letters"]),
        (["storage=s3:/bucket/x"], ["storage", "expected s3://bucket/x", "./s3:/bucket/x"]),
        (["capture.layers=[1"], ["not valid YAML"]),
        (["capture.layers=[-1]"], ["capture.layers", "greater than or equal to 0"]),
        (["capture.layers=[]"], ["capture.layers", "at least 1"]),
        (["capture.metrics=[]"], ["capture.metrics", "at least 1"]),
        (["capture.prompt="], ["capture.prompt", "at least 1"]),
        (['capture.prompt=" "'], ["capture.prompt", "found ' '", "expected a question"]),
        (["capture.prompt=what # is it"], ["capture.prompt", "comment"]),
        (["stages=[]"], ["stages", "at least 1"]),
        (["finetune.complexity_ratio=true"], ["finetune.complexity_ratio", "valid number", "True"]),
    ],
)
def test_bad_input_is_named(overrides: list[str], pieces: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        make_sweep(BASE, overrides, file="my.yaml")
    for piece in pieces:
        assert piece in str(caught.value)


def test_a_record_takes_the_longest_name_with_a_number_of_its_version() -> None:
    longest = make_sweep({**BASE, "name": LONGEST_NAME * "n"}).study.name
    TypeAdapter(Name).validate_python(f"{longest}.v99999")


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
    code = (
        f"import sys, orchestrator.config.sweep, orchestrator.cli.app; print([m for m in {heavy} if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
