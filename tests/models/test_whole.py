"""A model or adapter that is not whole, or not the model's, is named before work: by the check, by plan, by a load."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import orchestrator.cli.app  # noqa: F401  (registers the commands)
from orchestrator.cli.common import app
from orchestrator.config import ModelConfig
from orchestrator.errors import ModelError, VtsweepError
from orchestrator.models import check
from orchestrator.models.adapter import Adapter
from orchestrator.models.catalogue import check_lora, entries, resolve
from orchestrator.models.check import check_model
from orchestrator.models.examine import examine
from orchestrator.models.loading import load_adapter
from orchestrator.models.processor_fields import check_processor
from orchestrator.models.size_limits import check_sizes
from orchestrator.study.plan import make_plan
from orchestrator.study.preflight import preflight
from tests.conftest import tiny_study
from tests.models.trained import trained_adapter

REFERENCE = entries()["reference-joint"].folder
Q_PROJ = "layers.0.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a shipped checkpoint, which is checked as any other folder is."""
    copy = tmp_path / "model"
    assert REFERENCE is not None
    shutil.copytree(REFERENCE, copy)
    for file in copy.iterdir():
        file.chmod(0o644)
    return copy


def edit_json(file: Path, edit: Callable[[dict], object]) -> None:
    fields = json.loads(file.read_text())
    edit(fields)
    file.write_text(json.dumps(fields))


def edit_weights(file: Path, edit: Callable[[dict], object]) -> None:
    weights = load_file(file)
    edit(weights)
    save_file(weights, file, metadata={"format": "pt"})


def refused_everywhere(config: ModelConfig, match: str, tmp_path: Path) -> None:
    """By doctor, plan, run's preflight and a load, with the same words."""
    with pytest.raises(ModelError, match=match):
        load_adapter(config)
    overrides = [f"model.name={config.name}"] + ([f"model.adapter={config.adapter}"] if config.adapter else [])
    sweep = tiny_study(tmp_path / "results", *overrides)
    with pytest.raises(ModelError, match=match):
        preflight(sweep, ("capture",))
    try:
        problems = make_plan(sweep).problems
    except VtsweepError as error:
        problems = [str(error)]
    assert any(re.search(match, problem) for problem in problems)
    found = CliRunner().invoke(app, ["doctor", *overrides, "--json"])
    assert found.exit_code == 1
    last = json.loads(found.stdout)[-1]
    assert last["status"] == "fail"
    assert re.search(match, last["found"])


def key_of(weights: dict, ending: str) -> str:
    return next(key for key in weights if key.endswith(ending) and "language" in key)


def drop_weight(folder: Path) -> None:
    edit_weights(folder / "model.safetensors", lambda w: w.pop(key_of(w, Q_PROJ)))


def add_weight(folder: Path) -> None:
    edit_weights(folder / "model.safetensors", lambda w: w.update({"head_of_another.weight": torch.zeros(2)}))


def cut_weight(folder: Path) -> None:
    edit_weights(folder / "model.safetensors", lambda w: w.update({(k := key_of(w, Q_PROJ)): w[k][:3].clone()}))


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def lose_shard(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {key: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, key in enumerate(weights)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def shard_outside(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "weights.safetensors")
    shards = dict.fromkeys(load_file(folder.parent / "weights.safetensors"), "../weights.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def variant(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def adapter_inside(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))


def adapter_alone(folder: Path) -> None:
    adapter_inside(folder)
    (folder / "config.json").unlink()


def config_of_a_list(folder: Path) -> None:
    (folder / "config.json").write_text("[1]")


def no_model_type(folder: Path) -> None:
    edit_json(folder / "config.json", lambda c: c.pop("model_type"))


def processor(field: str, value: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "processor_config.json", lambda c: c.update({field: value}))


def other_crop(folder: Path) -> None:
    side = {"height": 56, "width": 56}
    edit_json(
        folder / "processor_config.json", lambda c: c["image_processor"].update({"size": side, "crop_size": side})
    )


def short_context(folder: Path) -> None:
    edit_json(folder / "config.json", lambda c: c["text_config"].update(max_position_embeddings=40))


def few_embeddings(folder: Path) -> None:
    edit_json(folder / "config.json", lambda c: c["text_config"].update(vocab_size=20))
    edit_weights(
        folder / "model.safetensors",
        lambda w: w.update({k: v[:20].clone() for k, v in w.items() if "embed_tokens" in k or "lm_head" in k}),
    )


BROKEN = {
    drop_weight: r"1 weights of the model are missing: .*q_proj\.weight",
    add_weight: r"1 weights belong to nothing in the model: head_of_another\.weight",
    cut_weight: r"another shape: .*q_proj\.weight \(found \[3, ",
    truncate: r"model\.safetensors has .* bytes; its header says",
    lose_shard: r"1 of 2 weight files are missing: model-00002-of-00002",
    shard_outside: r"index\.json: weight_map: found '\.\./weights\.safetensors'; expected names of files beside it",
    variant: r"no model\.safetensors, but a variant of it: model\.fp16\.safetensors",
    pickle_only: r"only pickled weights \(pytorch_model\.bin\)",
    adapter_inside: r"adapter_config\.json beside the weights",
    adapter_alone: r"a LoRA adapter, not a model",
    config_of_a_list: r"config\.json holds a list",
    no_model_type: r"model_type None",
    processor("patch_size", 7): r"patch_size 7; the model's config has vision_config\.patch_size 14",
    processor("patch_size", None): r"patch_size None",
}


@pytest.mark.parametrize("harm", BROKEN, ids=lambda harm: getattr(harm, "__name__", "processor").strip("<>"))
def test_a_checkpoint_that_is_not_whole_is_refused_by_every_door(
    folder: Path, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    harm(folder)
    refused_everywhere(ModelConfig(name=str(folder)), BROKEN[harm], tmp_path)


UNFIT = {
    processor("num_additional_image_tokens", 9): r"writes 72 image tokens into the prompt, the model makes 64",
    other_crop: r"images of 56 x 56 px, the vision encoder takes 112",
    short_context: r"tokens; the model's context holds 40",
    few_embeddings: r"lies beyond the 20 rows",
}


@pytest.mark.parametrize("harm", UNFIT, ids=lambda harm: getattr(harm, "__name__", "processor").strip("<>"))
def test_a_model_that_does_not_take_an_example_is_refused(
    folder: Path, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    """Its weights are whole; what it will be asked does not fit."""
    harm(folder)
    sweep = tiny_study(tmp_path, f"model.name={folder}")
    for door in (lambda: preflight(sweep, ("capture",)), lambda: make_plan(sweep)):
        with pytest.raises(ModelError, match=UNFIT[harm]):
            door()
    assert any(finding.status == "fail" for finding in examine(ModelConfig(name=str(folder))))


def test_a_model_that_answers_no_text_alone_is_refused_where_some_will_be_asked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tried before work, and not after the hours of a trial's other examples."""
    whole = Adapter.prepare

    def prepare(self: Adapter, image: object, *texts: Any) -> Any:
        if image is None:
            raise AttributeError("'NoneType' object has no attribute 'size'")
        return whole(self, image, *texts)

    monkeypatch.setattr(Adapter, "prepare", prepare)
    for share, stage in ((0.5, "finetune"), (0.0, "finetune"), (0.5, "capture")):
        overrides = (f"model.name={folder}", f"finetune.task.text_only_share={share}")
        sweep = tiny_study(tmp_path / "results", *overrides, stages=[stage])
        if share and stage == "finetune":
            for door in (lambda: preflight(sweep, (stage,)), lambda: make_plan(sweep)):  # noqa: B023
                with pytest.raises(ModelError, match="takes no question without a picture: AttributeError"):
                    door()
        else:
            preflight(sweep, (stage,))


def test_a_word_without_a_token_is_refused_before_work(folder: Path, tmp_path: Path) -> None:
    for name in ("reference-joint", str(folder)):
        sweep = tiny_study(tmp_path, f"model.name={name}", "capture.prompt=describe the armadillo .")
        with pytest.raises(ModelError, match=r"no token for 'armadillo' in 'describe the armadillo \.'") as refused:
            preflight(sweep, ("capture",))
        assert ("A shipped model knows" in str(refused.value)) == (name == "reference-joint")


@pytest.mark.parametrize("part", ["image", "video"])
def test_a_published_number_of_pixels_is_no_edge(folder: Path, part: str) -> None:
    """Qwen's processors call the least and most pixels of a picture or video `shortest_edge` and `longest_edge`."""
    size = {"shortest_edge": 3136, "longest_edge": 12_845_056}
    for kind in ("Qwen2VL", "CLIP"):
        settings = {f"{part}_processor_type": f"{kind}{part.capitalize()}Processor", "size": size}
        edit_json(folder / "processor_config.json", lambda c: c.update({f"{part}_processor": settings}))  # noqa: B023
        with contextlib.nullcontext() if kind == "Qwen2VL" else pytest.raises(ModelError, match="longest_edge"):
            check_sizes(resolve(ModelConfig(name=str(folder))))


@pytest.mark.parametrize("field", ["merge_size", "min_pixels", "max_pixels", "temporal_patch_size", "patch_size"])
def test_a_processor_with_a_budget_of_pixels_is_known_by_its_fields(folder: Path, field: str) -> None:
    settings = {"image_processor_type": "BrandNewImageProcessor", "size": {"shortest_edge": 65_536}, field: 2}
    edit_json(folder / "processor_config.json", lambda c: c.update(image_processor=settings))
    refused = pytest.raises(ModelError, match=r"size\.shortest_edge is 65536; expected at most 16384")
    with refused if field == "patch_size" else contextlib.nullcontext():
        check_sizes(resolve(ModelConfig(name=str(folder))))


def test_a_prompt_with_the_mark_of_a_picture_is_refused_before_work(folder: Path, tmp_path: Path) -> None:
    for name in ("reference-joint", str(folder)):
        with pytest.raises(ModelError, match="'<image> what' holds the image placeholder '<image>'"):
            preflight(tiny_study(tmp_path, f"model.name={name}", "capture.prompt=<image> what"), ("capture",))


def test_the_mark_of_an_image_need_not_be_the_token_of_its_features() -> None:
    """Molmo2's processor calls `<|image|>` so, which it replaces by other tokens; LLaVA's writes the token itself."""
    processor = SimpleNamespace(image_token_id=119)
    for family in ("molmo2", "gemma3", "llava"):
        config = SimpleNamespace(model_type=family, image_token_id=120)
        with pytest.raises(ModelError, match="image_token_id 119") if family == "llava" else contextlib.nullcontext():
            check_processor(resolve(ModelConfig()), processor, config)


def test_a_whole_copy_passes_and_is_checked_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_model(ModelConfig(name=str(folder)), text_only=True)
    monkeypatch.setattr("orchestrator.models.loading.load_adapter", None)
    assert check_model(ModelConfig(name=str(folder)), text_only=True)


@pytest.mark.parametrize("name", ["reference-joint", "reference-cross"])
def test_shipped_models_are_whole(name: str) -> None:
    """So that `check_model` need not build them each time."""
    check._check(ModelConfig(name=name), ("describe the image .",), True, (112, 112), "", 1, name)


def test_allowed_keys_load_and_missing_ones_are_drawn_alike(folder: Path) -> None:
    drop_weight(folder)
    add_weight(folder)
    with pytest.raises(ModelError, match="head_of_another"):
        load_adapter(ModelConfig(name=str(folder), allow=("*q_proj.weight",)))
    config = ModelConfig(name=str(folder), allow=("*q_proj.weight", "head_of_*"))
    torch.manual_seed(3)
    first = load_adapter(config).model.state_dict()
    torch.manual_seed(4)
    second = load_adapter(config).model.state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_load_leaves_the_random_state_alone(folder: Path) -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load_adapter(ModelConfig(name=str(folder)))
    assert torch.equal(torch.rand(1), expected)


# ---------------------------------------------------------------- adapters


@pytest.fixture
def lora(folder: Path, tmp_path: Path) -> Path:
    """A trained adapter of `folder`."""
    return trained_adapter(tmp_path / "lora", str(folder))


def rename(old: str, new: str) -> Callable[[Path], None]:
    def harm(lora: Path) -> None:
        edit_weights(
            lora / "adapter_model.safetensors",
            lambda w: [w.update({key.replace(old, new): w.pop(key)}) for key in list(w)],
        )

    return harm


def half_of_the_keys(lora: Path) -> None:
    edit_weights(lora / "adapter_model.safetensors", lambda w: [w.pop(key) for key in list(w)[::2]])


def setting(field: str, value: object) -> Callable[[Path], None]:
    return lambda lora: edit_json(lora / "adapter_config.json", lambda c: c.update({field: value}))


def other_base(lora: Path) -> None:
    edit_weights(lora / "adapter_model.safetensors", lambda w: w)  # the digest of its base is gone
    setting("base_model_name_or_path", "reference-cross")(lora)


HARMED = {
    "text-only layout": (rename("model.model.language_model", "model.model"), "The model calls them"),
    "module prefix": (rename("base_model.", "module.base_model."), "belong to nothing in the model: module.base_model"),
    "half": (half_of_the_keys, "weights of the model are missing"),
    "rank": (setting("r", 8), "adapter_config.json says rank 8; the weights have rank 4"),
    "no target": (setting("target_modules", ["no_such_layer"]), "settings do not fit the model.*no_such_layer"),
    "unsaved": (setting("modules_to_save", ["multi_modal_projector"]), "whose weights were not saved"),
    "ia3": (setting("peft_type", "IA3"), "peft_type 'IA3'; only LORA"),
    "megatron": (setting("megatron_config", {}), "megatron_config is set; expected null"),
    "base": (other_base, "was trained on reference-cross"),
}


@pytest.mark.parametrize("kind", HARMED)
def test_an_adapter_that_does_not_fit_is_refused_by_every_door(
    folder: Path, lora: Path, tmp_path: Path, kind: str
) -> None:
    harm, match = HARMED[kind]
    harm(lora)
    refused_everywhere(ModelConfig(name=str(folder), adapter=str(lora)), match, tmp_path)


ODD_FIELDS = {
    "lora_alpha": (None, 0, "16", float("nan")),
    "r": (None, 0, 2.5, True),
    "target_modules": (None, [1]),
    "alpha_pattern": ({"q_proj": None}, []),
    "modules_to_save": ({},),
}


def test_an_odd_field_of_an_adapter_is_named_with_file_found_and_expected(lora: Path) -> None:
    """peft computes with a scale of its own where `lora_alpha` is absent."""
    check_lora(str(lora))
    file = lora / "adapter_config.json"
    whole = json.loads(file.read_text())
    for field, values in ODD_FIELDS.items():
        for value in values:
            file.write_text(json.dumps({**whole, field: value}))
            with pytest.raises(ModelError, match=rf"adapter_config\.json: {field}: found .*; expected "):
                check_lora(str(lora))
    file.write_text(json.dumps({key: value for key, value in whole.items() if key != "lora_alpha"}))
    with pytest.raises(ModelError, match="lora_alpha: found nothing; expected a number"):
        check_lora(str(lora))


def test_an_adapter_that_fits_changes_the_answers(folder: Path, lora: Path) -> None:
    config = ModelConfig(name=str(folder), adapter=str(lora))
    assert check_model(config)
    plain, tuned = load_adapter(ModelConfig(name=str(folder))), load_adapter(config)
    example = plain.prepare(torch.zeros(112, 112, 3, dtype=torch.uint8).numpy(), "describe the image .")
    with torch.no_grad():
        assert (plain.run(example).logits - tuned.run(example).logits).abs().max() > 0.01


def test_an_adapter_knows_the_weights_it_was_trained_on(folder: Path, lora: Path) -> None:
    edit_weights(folder / "model.safetensors", lambda w: w[key_of(w, Q_PROJ)].mul_(1.5))
    with pytest.raises(ModelError, match="was trained on"):
        check_model(ModelConfig(name=str(folder), adapter=str(lora)))
    assert check_model(ModelConfig(name=str(folder), adapter=str(lora), allow=(str(folder),)))
