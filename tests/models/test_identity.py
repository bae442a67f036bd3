"""Model, adapter and prompt are part of a point's digest and are named wherever its results are."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import orchestrator.cli.app  # noqa: F401  (registers the commands)
from orchestrator.capture.capture_stage import run_capture
from orchestrator.cli.common import app
from orchestrator.config import ModelConfig
from orchestrator.errors import ModelError
from orchestrator.models import identity
from orchestrator.models.catalogue import entries, resolve
from orchestrator.models.examine import examine
from orchestrator.models.identity import ANSWER, QUESTION, UNKNOWN, fingerprint, prompt_texts
from orchestrator.models.loading import load_adapter, load_processor
from orchestrator.models.prompts import render
from orchestrator.report.collect import gather_results
from orchestrator.report.page import render_page
from orchestrator.study.plan import make_plan
from orchestrator.study.resolve import resolve as resolve_points
from orchestrator.study.run import open_study
from tests.conftest import tiny_study
from tests.models.trained import trained_adapter


def copy_of(name: str, folder: Path) -> Path:
    shipped = entries()[name].folder
    assert shipped is not None
    shutil.copytree(shipped, folder)
    for file in folder.iterdir():
        file.chmod(0o644)
    return folder


@pytest.mark.parametrize("name", ["reference-joint", "reference-cross"])
def test_the_text_of_a_shipped_model_is_what_its_processor_writes(name: str) -> None:
    entry = resolve(ModelConfig(name=name))
    found, processor = prompt_texts(ModelConfig(name=name), entry), load_processor(entry)
    for key, image in (("prompt", True), ("prompt_without_image", False)):
        assert found[key] == render(processor, str(entry.family), QUESTION, image=image)[0]
    assert found["answer"] == render(processor, str(entry.family), QUESTION, image=True, answer=ANSWER)[1]


def test_pictures_resized_by_another_library_are_another_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers takes torchvision wherever it is installed, for any model: other pixels of the same picture."""
    found = {}
    for there in (None, object()):
        monkeypatch.setattr(identity.importlib.util, "find_spec", lambda _, there=there: there)
        found[there is not None] = fingerprint(ModelConfig())
    assert found[True].pop("pictures_by") == "torchvision"
    assert found[True] == found[False]


def test_a_torchvision_of_another_torch_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Else any model, those that need none of it too, ends in "Could not import module 'AutoProcessor'"."""
    (tmp_path / "torchvision").mkdir()
    words = "operator torchvision::nms does not exist"
    (tmp_path / "torchvision" / "__init__.py").write_text(f"raise RuntimeError({words!r})")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    for door in (lambda: load_adapter(ModelConfig()), lambda: load_processor(resolve(ModelConfig()))):
        with pytest.raises(ModelError, match=f"does not fit torch .*{words}.*pip uninstall torchvision"):
            door()
    assert any("does not fit torch" in finding.found for finding in examine(ModelConfig()) if finding.status == "fail")


def test_another_template_is_another_prompt_and_another_stage(tmp_path: Path) -> None:
    folder = copy_of("reference-joint", tmp_path / "model")
    before = fingerprint(ModelConfig(name=str(folder)))
    assert before["prompt"] == "USER: <image>\n{question} ASSISTANT:"
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("USER: ", "Q: "))
    after = fingerprint(ModelConfig(name=str(folder)))
    assert after["prompt"] == "Q: <image>\n{question} ASSISTANT:"
    assert after["content"] != before["content"]


def test_a_prompt_that_cannot_be_known_here_is_said_by_plan(tmp_path: Path) -> None:
    assert fingerprint(ModelConfig(name="llava-1.5-7b"))["prompt"] == UNKNOWN
    problems = make_plan(tiny_study(tmp_path, "model.name=llava-1.5-7b")).problems
    assert any("prompt of its template" in problem for problem in problems)


def test_the_code_of_a_folder_runs_only_when_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "molmo"}))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(ModelError, match="runs Python code"):
        resolve(ModelConfig(name=str(tmp_path)))
    assert resolve(ModelConfig(name=str(tmp_path), trust_remote_code=True)).remote_code


@pytest.mark.parametrize(
    ("adapter", "label"),
    [
        (None, "my-llava"),
        ("results/finetune/0123456789abcdef/adapter", "my-llava + 0123456789abcdef"),
        ("/data/loras/spatial/", "my-llava + spatial"),
        ("adapter", "my-llava + adapter"),
    ],
)
def test_a_model_is_called_by_its_name_and_its_adapter_s(adapter: str | None, label: str) -> None:
    assert ModelConfig(name="/models/my-llava", adapter=adapter).label == label


def test_an_adapter_is_in_label_digest_table_and_page(tmp_path: Path) -> None:
    adapter = trained_adapter(tmp_path / "0123456789abcdef" / "adapter")
    few = ("data.n_images=6", "capture.layers=[0]", "capture.metrics=[gini]", "correlate.n_bootstrap=0")
    plain = tiny_study(tmp_path / "results", *few)
    sweep = tiny_study(tmp_path / "results", *few, f"model.adapter={adapter}")
    label = "reference-joint + 0123456789abcdef"
    (before,), points = resolve_points(plain, ["capture"]), resolve_points(sweep, ["capture"])
    assert points[0].stages["capture"].digest != before.stages["capture"].digest
    run_capture(points[0], quiet=True)
    study = open_study(sweep, points, ["capture"])
    assert [view.label for view in study.views("capture")] == [f"{label} on scenes"]
    assert study.table("layer_metrics").collect()["model"].unique().to_list() == [label]
    planned = make_plan(sweep)
    assert {stage.label for stage in planned.stages} == {f"{label} on scenes"}
    assert [model.model for model in planned.models] == [label]
    page = render_page(gather_results(study))
    assert label in page
    assert "USER: &lt;image&gt;\ndescribe the image . ASSISTANT:" in page
    assert points[0].stages["capture"].what["model"]["prompt"] == "USER: <image>\n{question} ASSISTANT:"


def test_doctor_takes_any_setting_of_the_model(tmp_path: Path) -> None:
    run = CliRunner().invoke
    for arguments in (["reference-joint", "--adapter", str(tmp_path)], [f"model.adapter={tmp_path}"]):
        found = run(app, ["doctor", *arguments, "--json"])
        assert found.exit_code == 1
        assert "no adapter_config.json" in json.loads(found.stdout)[-1]["found"]
    refused = run(app, ["doctor", "reference-joint", "data.seed=1"])
    assert refused.exit_code != 0
    assert "expected a setting of the model" in str(refused.exception)
