"""Overrides of the command line: lists, axes, and the keys that a shell completes."""

from __future__ import annotations

import pytest

from orchestrator.cli.common import complete_models, complete_overrides, complete_sweep_files
from orchestrator.config.overrides import split_overrides
from orchestrator.config.sweep import make_sweep
from orchestrator.errors import ConfigError

STUDY = {"name": "s", "axes": {"finetune.seed": [0, 1]}}


def test_several_values_of_a_single_valued_key_are_an_axis() -> None:
    found = split_overrides(["finetune.complexity_ratio=0,0.5,1", "model.name=reference-joint,reference-cross"])
    assert found.axes == {
        "finetune.complexity_ratio": [0, 0.5, 1],
        "model.name": ["reference-joint", "reference-cross"],
    }
    assert found.run == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("capture.metrics=gini,hoyer", ["gini", "hoyer"]),
        ("capture.metrics=gini", ["gini"]),
        ("capture.layers=null", None),
        ("capture.layers=[0,4]", [0, 4]),
        ("data.n_objects=1,200", [1, 200]),
        ("finetune.instruction='yes,no'", "yes,no"),
        ("finetune.instruction=In one word, please.", "In one word, please."),
        ("data={source: coco, root: /a}", {"source": "coco", "root": "/a"}),
    ],
)
def test_lists_and_texts_stay_one_value(text: str, value: object) -> None:
    found = split_overrides([text])
    assert (list(found.run.values()), found.axes) == ([value], {})


def test_several_lists_are_an_axis_of_lists() -> None:
    assert split_overrides(["data.n_objects=[1,10],[1,200]"]).axes == {"data.n_objects": [[1, 10], [1, 200]]}


def test_stages_take_a_list_from_the_command_line() -> None:
    assert make_sweep(STUDY, ["stages=capture,probe"]).study.stages == ("capture", "probe")


def test_an_axis_from_the_command_line_replaces_the_files_and_multiplies_with_the_others() -> None:
    sweep = make_sweep(STUDY, ["finetune.seed=3,4,5", "finetune.complexity_ratio=0,1"])
    assert [(p.axes["finetune.seed"], p.run.finetune.complexity_ratio) for p in sweep.points] == [
        (seed, ratio) for seed in (3, 4, 5) for ratio in (0, 1)
    ]


def test_an_axis_from_the_command_line_leaves_no_second_home_in_zip() -> None:
    sweep = make_sweep({"name": "s", "zip": {"finetune.seed": [0, 1]}}, ["finetune.seed=5,6,7"])
    assert [point.run.finetune.seed for point in sweep.points] == [5, 6, 7]


def test_axes_and_searches_are_named_by_their_dotted_keys() -> None:
    sweep = make_sweep(STUDY, ["axes.finetune.seed=[7]"])
    assert [point.run.finetune.seed for point in sweep.points] == [7]


def test_a_wrong_value_of_an_axis_is_named() -> None:
    with pytest.raises(ConfigError, match=r"finetune\.seed.*'x'"):
        make_sweep(STUDY, ["finetune.seed=0,x"])


def test_the_shell_completes_keys_words_models_and_files() -> None:
    assert complete_overrides("finetune.compl") == ["finetune.complexity_ratio="]
    assert "data.n_objects=" in complete_overrides("data.")
    assert complete_overrides("how.backend=") == ["how.backend=ray", "how.backend=local"]
    assert complete_overrides("model.name=reference-") == ["model.name=reference-joint", "model.name=reference-cross"]
    assert complete_models("reference-c") == ["reference-cross"]
    assert "sweeps/quickstart.yaml" in complete_sweep_files("")
    assert "sweeps/" in complete_sweep_files("sw")
