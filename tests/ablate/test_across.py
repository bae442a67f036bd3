"""What does not apply to a model with cross-attention is said by the plan and before a run, and of no other model."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import orchestrator.cli.app  # noqa: F401  (registers the commands)
from orchestrator.ablate.cells import list_cells
from orchestrator.cli.common import app
from orchestrator.config import AblateConfig, RunConfig
from orchestrator.errors import ConfigError
from orchestrator.study.across import _words, across_words

CHECKS = ["deletion", "inside", "knockout", "routes", "replacing", "lens", "attention", "patching"]


def run(model: str, checks: list[str]) -> RunConfig:
    return RunConfig.model_validate({"model": {"name": model}, "ablate": {"checks": checks}})


def test_each_check_that_does_less_across_says_so_and_of_that_model_alone() -> None:
    runs = [run("reference-joint", CHECKS), run("reference-cross", CHECKS), run("reference-cross", CHECKS)]
    found = across_words(runs, ["ablate"])
    assert [words.split(":")[0] for words in found] == [
        f"reference-cross, ablate.checks {check}"
        for check in ("lens", "attention", "routes", "knockout", "inside", "replacing and patching")
    ]
    assert "only the question and the last token are read" in found[0]
    assert "layers 1, 3, 5 alone" in found[2]
    assert "windows" not in found[2], "every window of two layers holds one of them"
    assert across_words(runs, ["capture"]) == []
    assert across_words([run("reference-cross", ["deletion"]), run("no/such-model", CHECKS)], ["ablate"]) == []


def test_windows_that_read_no_image_are_counted() -> None:
    config = AblateConfig(checks=("routes", "inside"), window=2, inside_layers=(2, 3, 4, 9))
    words = dict(_words(config, 10, [3, 8]))
    assert "; 5 of 10 windows hold none of them" in words["routes"]  # 0-1, 1-2, 4-5, 5-6, 6-7; nine windows and all
    assert "here after [2, 4] layers" in words["inside"]
    assert {c.layer for c in list_cells(config, 10, [3, 8]) if c.layer and c.check == "deletion"} == {2, 4}
    text = AblateConfig(checks=("routes",), routes=("question->last",))
    assert dict(_words(text, 10, [3, 8])) == {}


def test_the_plan_and_the_command_say_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(
        f"name: s\nstorage: {tmp_path / 'r'}\nstages: [ablate]\nbase:\n  model: {{name: reference-cross}}\n"
        "  ablate: {checks: [lens], n_per_family: 2, low_families: [colour], high_families: []}\n"
        "  how: {backend: local, torch_threads: 1}\n"
    )
    (line,) = across_words([run("reference-cross", ["lens"])], ["ablate"])
    shown = CliRunner().invoke(app, ["plan", str(file)])
    assert shown.exit_code == 0
    assert line in " ".join(shown.stdout.split())

    def stop(*_: object, **__: object) -> None:
        raise ConfigError("here work would start")

    monkeypatch.setattr("orchestrator.study.run.run_study", stop)
    assert line in CliRunner().invoke(app, ["run", str(file)]).output
