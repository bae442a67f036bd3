"""Families as published: their own configs, processors, tokenisers and templates, with small random weights.

The files lie beside the checkout (`shared/real`); without them the tests of published files are skipped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from orchestrator.capture.taps import Taps
from orchestrator.config import FinetuneConfig, ModelConfig, RunConfig
from orchestrator.finetune.lora import tunable
from orchestrator.finetune.train import schedule, train
from orchestrator.models import extras, loading
from orchestrator.models.adapter import Adapter
from orchestrator.models.catalogue import resolve
from orchestrator.models.check import check_model
from orchestrator.models.examine import examine
from orchestrator.models.fitting import fit_picture, unseen_share
from orchestrator.models.identity import QUESTION, prompt_texts
from orchestrator.models.loading import load_adapter
from orchestrator.models.prompts import render
from orchestrator.models.random_configs import Size
from orchestrator.store.filesystem import Storage
from orchestrator.study.plan import make_plan
from tests import points
from tests.conftest import tiny_study
from tests.models.processors import FAMILIES, processed_adapter
from tests.models.published import (
    build,
    has_torchvision,
    save_family,
    sharpen,
    stand_in_for_resizing,
    stand_in_for_videos,
    stand_in_tensorflow,
)

PUBLISHED = ("llava15", "granite", "qwen25vl", "molmo", "molmo_o")
NATIVE = PUBLISHED[:3]
ASKED = (("What colour is it?", "red"), ("How many are there?", "3"), ("Is there a dog?", "yes"), ("Where?", "left"))
DISTINCT = tuple(
    (f"{words} {words} {words}?", answer)
    for words, answer in (
        ("colour shade tint hue paint dye tone stain", "red"),
        ("count number total sum amount figure tally many", "3"),
        ("dog puppy hound terrier collie beagle spaniel poodle", "yes"),
        ("where place side corner edge border spot position", "left"),
    )
)
"""Questions with so many words of their own that a small random model's states tell them apart from the first step."""
LETTERS = tuple(
    (20 * letters + "?", answer) for letters, answer in (("ab", "r"), ("cd", "3"), ("ef", "y"), ("gh", "l"))
)
"""The same for the tests' tokeniser, which has letters for tokens."""
ALL_FAMILIES = (
    *FAMILIES,
    pytest.param("molmo2", marks=pytest.mark.skipif(not has_torchvision(), reason="its processor needs torchvision")),
)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory):
    """`published("llava15")`: a small random checkpoint of published files."""
    root = tmp_path_factory.mktemp("published")

    @cache
    def make(family: str) -> ModelConfig:
        if family.startswith("molmo") and not has_torchvision():
            pytest.skip("Molmo's own image code needs torchvision (pip install 'vtsweep[molmo]')")
        return ModelConfig(name=str(build(family, root / family)), trust_remote_code=family.startswith("molmo"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(root / "modules"))
        patch.syspath_prepend(str(root / "modules"))
        patch.setitem(sys.modules, "tensorflow", stand_in_tensorflow())  # of which Molmo's image code takes a resize
        if not has_torchvision():
            stand_in_for_videos(patch)
        patch.setattr(loading, "load_processor", cache(loading.load_processor))
        yield make


@pytest.fixture(scope="module")
def loaded(published) -> Callable[[str], Adapter]:
    """`loaded("llava15")`: the same as an adapter, loaded once."""
    return cache(lambda family: load_adapter(published(family)))


def picture(i: int, height: int = 60, width: int = 60) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)


def learns_its_answers(
    adapter: Adapter, n_steps: int = 60, asked: Sequence[tuple[str, str]] = ASKED, **settings: float
) -> bool:
    """Whether a model that was trained on a few questions without a picture then generates their answers and stops."""
    examples = [adapter.prepare(None, *one) for one in asked]
    part = {"rank": settings.pop("rank", 16), "learning_rate": settings.pop("learning_rate", 1e-2)}
    parts = {"language": part, "projector": {**part, "rank": 0}}
    config = FinetuneConfig.model_validate({"n_steps": n_steps, "batch_size": 4, **parts, **settings})
    with tunable(adapter, config) as tuned:
        train(adapter, tuned, lambda _: [adapter.collate(examples)], config)
        prompts = [adapter.prepare(None, question) for question, _ in asked]
        return [adapter.generate(prompt, 8)[0] for prompt in prompts] == [answer for _, answer in asked]


@pytest.mark.parametrize("family", PUBLISHED)
def test_four_steps_teach_published_models_their_answers(loaded, family: str) -> None:
    """LLaVA-1.5's template ends a turn with a space and no end token, and its tokeniser puts a space in front."""
    assert learns_its_answers(loaded(family), 4, DISTINCT, rank=64, learning_rate=3e-3, alpha_over_rank=8.0)


def learns_in_four_steps(family: str) -> bool:
    """Whether a random model of a family, four times as wide as the other tests' ones, learns answers of one letter."""
    adapter = sharpen(processed_adapter(family, Size(width=128)))
    return learns_its_answers(adapter, 4, LETTERS, rank=64, learning_rate=3.5e-4, alpha_over_rank=8.0)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_four_steps_teach_every_family_its_answers(family: str) -> None:
    assert learns_in_four_steps(family)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_every_family_answers_what_it_was_trained_on(family: str) -> None:
    """The tests' tokeniser has letters for tokens, so that an answer is several of them."""
    assert learns_its_answers(processed_adapter(family))


def test_training_is_that_of_a_plain_peft_loop(published, loaded) -> None:
    """Of Qwen2.5-VL, with pictures: positions in three axes, labels, loss and update, step by step."""
    import peft
    from transformers import AutoModelForImageTextToText

    adapter = loaded("qwen25vl")
    batch = adapter.collate([adapter.prepare(picture(i), *asked) for i, asked in enumerate(ASKED)])
    part = {"rank": 4, "learning_rate": 1e-2}
    config = FinetuneConfig.model_validate(
        {"n_steps": 3, "batch_size": 4, "warmup_share": 0.0, "language": part, "projector": {**part, "rank": 0}}
    )
    with tunable(adapter, config) as tuned:
        ours = [step.loss for step in train(adapter, tuned, lambda _: [batch], config).steps]
    plain = AutoModelForImageTextToText.from_pretrained(published("qwen25vl").name, dtype=torch.float32)
    linear = [name for name in adapter.linear_modules(["language"]) if adapter.group_of(name) == "language"]
    torch.manual_seed(config.seed)
    model = peft.get_peft_model(plain, peft.LoraConfig(r=4, lora_alpha=8, target_modules=linear))
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=0.0)
    expected = []
    for step in range(3):
        optimiser.param_groups[0]["lr"] = 1e-2 * schedule(step, config)
        loss = model(**{**adapter.model_inputs(batch), "labels": batch["labels"]}).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimiser.step()
        expected.append(loss.item())
    assert ours == pytest.approx(expected, rel=1e-4)
    assert ours[2] < ours[0]


def test_llava_1_5_learns_words_as_it_would_write_them(loaded) -> None:
    adapter = loaded("llava15")
    labels = adapter.prepare(picture(0), *ASKED[0])["labels"][0]
    assert adapter.tokenizer.convert_ids_to_tokens(labels[labels >= 0].tolist()) == ["▁red", "</s>"]


@pytest.mark.parametrize("family", PUBLISHED)
def test_labels_are_the_tokens_of_the_whole_conversation(loaded, family: str) -> None:
    adapter = loaded(family)
    for question, answer in (*ASKED, ("What?", "a red circle, and 2 more")):
        prompt, example = adapter.prepare(None, question), adapter.prepare(None, question, answer)
        labels = example["labels"][0]
        answered = labels[labels >= 0].tolist()
        assert answered[-1] in adapter.eos_token_ids
        assert not set(answered[:-1]) & adapter.eos_token_ids
        text = adapter.tokenizer.decode(example["input_ids"][0], skip_special_tokens=True)
        before = adapter.tokenizer.decode(prompt["input_ids"][0], skip_special_tokens=True)
        assert text.removeprefix(before).strip() == answer
        if family.startswith("molmo"):
            continue
        spoken, continuation = render(adapter.processor, adapter.family, question, image=False, answer=answer)
        together = spoken + continuation[: continuation.index(answer) + len(answer)]
        assert adapter.call_processor(None, together)["input_ids"][0].tolist() == example["input_ids"][0].tolist()[:-1]


@pytest.mark.parametrize("family", PUBLISHED)
@torch.no_grad()
def test_doctor_plan_states_deletion_and_text_alone(published, loaded, family: str, tmp_path: Path) -> None:
    config = published(family)
    assert check_model(config, text_only=True)
    findings = examine(config)
    assert [finding for finding in findings if finding.status == "fail"] == []
    overrides = (f"model.name={config.name}", f"model.trust_remote_code={config.trust_remote_code}")
    planned = make_plan(tiny_study(tmp_path, *overrides)).models[0].vision_tokens
    adapter = loaded(family)
    if family != "granite":  # made for one tile instead of four
        assert int(adapter.n_vision(adapter.prepare(picture(0, 112, 112), "What?"))[0]) == planned
    check_states_deletion_and_text(adapter, picture(0))


def check_states_deletion_and_text(adapter: Adapter, image: np.ndarray) -> None:
    """The tapped states are the library's own, half of the tokens can be deleted, and text alone is answered."""
    example = adapter.prepare(image, "What is it?")
    with Taps(adapter, ["decoder"]) as taps:
        output = adapter.run(example, output_hidden_states=True)
    states = [state.hidden for state in taps.states(example)]
    assert all(torch.equal(a, b) for a, b in zip(states[:-1], output.hidden_states[:-1], strict=True))
    text = adapter.prepare(None, "What is it?")
    assert adapter.generate(text, 2)
    n = adapter.n_vision(example)
    keep = torch.zeros(1, int(n[0]), dtype=torch.bool)
    keep[:, ::2] = True
    with Taps(adapter, ["decoder"]) as taps:
        dropped = adapter.drop(example, keep)
        assert adapter.run(dropped).logits.isfinite().all()
    assert int(taps.states(dropped)[0].vision[0].sum()) == int(keep.sum())


@pytest.mark.parametrize("family", NATIVE)
@torch.no_grad()
def test_a_pass_is_that_of_plain_transformers(published, loaded, family: str) -> None:
    """Chat template, processor and model as their card shows them, against what a study's adapter makes."""
    from PIL import Image
    from transformers import AutoModelForImageTextToText

    config, image = published(family), picture(0)
    processor = loading.load_processor(resolve(config))
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    inputs = processor(text=[text], images=[Image.fromarray(image)], return_tensors="pt")
    expected = AutoModelForImageTextToText.from_pretrained(config.name, dtype=torch.float32)(**inputs).logits
    adapter = loaded(family)
    assert torch.equal(adapter.run(adapter.prepare(image, "What is it?")).logits, expected)
    known = prompt_texts(config, resolve(config))
    assert known["prompt"].replace(QUESTION, "What is it?") == text


def test_molmo_s_pass_is_that_of_its_own_code(loaded) -> None:
    """Its publishers' `process`, its class and their `forward`, without our adapter."""
    from PIL import Image

    adapter, image = loaded("molmo"), picture(0)
    inputs = adapter.processor.process(images=[Image.fromarray(image)], text="What is it?")
    with torch.no_grad():
        expected = adapter.model(**{key: value[None] for key, value in inputs.items()}, use_cache=False).logits
        assert torch.equal(adapter.run(adapter.prepare(image, "What is it?")).logits, expected)


@pytest.mark.parametrize("family", PUBLISHED)
def test_published_families_run_every_stage(published, family: str, tmp_path: Path) -> None:
    run_every_stage(published(family), tmp_path)


def test_molmo2_runs_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_torchvision():
        stand_in_for_resizing(monkeypatch)
    config = ModelConfig(name=str(save_family("molmo2", tmp_path / "model", videos=has_torchvision())))
    assert [finding for finding in examine(config) if finding.status == "fail"] == []
    adapter, image = load_adapter(config), picture(0)
    planned = make_plan(tiny_study(tmp_path, f"model.name={config.name}")).models[0].vision_tokens
    assert int(adapter.n_vision(adapter.prepare(picture(0, 112, 112), "What?"))[0]) == planned
    check_states_deletion_and_text(adapter, image)
    assert learns_in_four_steps("molmo2")
    run_every_stage(config, tmp_path)


def run_every_stage(config: ModelConfig, tmp_path: Path) -> None:
    part = {"rank": 2, "learning_rate": 1e-3}
    run = RunConfig.model_validate(
        {
            "model": config.model_dump(),
            "data": {"source": "scenes", "n_images": 16, "n_objects": [1, 4], "width": 60, "height": 60},
            "capture": {"layers": [0, 2], "metrics": ["gini"], "n_vision_positions": 2},
            "probe": {"attributes": ["n_objects"], "controls": []},
            "finetune": {
                "n_examples": 4, "n_steps": 4, "batch_size": 2, "n_eval_per_family": 1, "n_capture_images": 2,
                "n_capture_questions": 0, "language": part, "projector": part,
                "task": {"families": ["colour"], "text_only_share": 0.5, "size": [0.1, 0.2]},
            },
            "ablate": {
                "checks": ["deletion", "knockout"], "low_families": ["colour"], "high_families": ["colour"],
                "n_per_family": 1, "deleted_shares": [0.5], "methods": ["norm"], "seeds": [0], "window": 3,
            },
            "how": {"backend": "local", "batch_size": 4, "torch_threads": 1},
        }
    )  # fmt: skip
    storage = Storage(str(tmp_path / "results"))
    capture = points.run_capture(run, storage, quiet=True)
    assert capture.scan("layer_metrics").collect()["gini"].is_finite().all()
    assert capture.scan("images").collect().height == 16
    assert points.run_probes(run, storage, capture, quiet=True).scan("probes").collect().height > 0
    trial = points.run_trial(run, storage).scan("trials").collect()
    assert trial["final_loss"].is_finite().all()
    assert points.run_ablate(run, storage, quiet=True).scan("deletion").collect()["accuracy"].is_finite().all()


@pytest.mark.parametrize("family", ALL_FAMILIES)
@torch.no_grad()
def test_every_family_is_loaded_from_a_folder_of_its_files(family: str, tmp_path: Path) -> None:
    """Doctor, plan, a pass equal to plain transformers', deletion and text alone, for each with its own processor."""
    from transformers import AutoModelForImageTextToText

    if extras.FAMILY_EXTRAS.get(family) and not has_torchvision():
        pytest.skip("the video part of its processor needs torchvision (pip install 'vtsweep[vision]')")
    if family == "paligemma":
        pytest.skip("the tests' tokeniser of characters reads <image> as characters once it is loaded from a file")
    config = ModelConfig(name=str(save_family(family, tmp_path / "model")))
    assert check_model(config, text_only=True, size=(36, 20))
    assert [finding for finding in examine(config) if finding.status == "fail"] == []
    assert make_plan(tiny_study(tmp_path, f"model.name={config.name}")).models[0].vision_tokens > 0
    adapter, image = load_adapter(config), picture(0, 36, 36)
    example = adapter.prepare(image, "What is it?")
    plain = AutoModelForImageTextToText.from_pretrained(config.name, dtype=torch.float32)
    expected = plain(**adapter.model_inputs(example), use_cache=False).logits
    assert torch.equal(adapter.run(example).logits, expected)
    if adapter.vision_kind == "residual" and family not in ("qwen3_vl", "gemma3"):
        check_states_deletion_and_text(adapter, image)


def test_the_sides_of_a_picture_are_seen(published) -> None:
    """LLaVA-1.5's processor cuts the centre out of a picture: 99 columns on each side of a 640 x 426 photograph."""
    sides = np.full((426, 640, 3), 128, dtype=np.uint8)
    marked = sides.copy()
    marked[:, :80] = 255
    pixels = {}
    for fit in ("pad", "stretch", "crop"):
        adapter = load_adapter(published("llava15").model_copy(update={"fit": fit}), "meta")
        plain, other = (adapter.prepare(image, "What?")["pixel_values"] for image in (sides, marked))
        pixels[fit] = (plain, other)
    assert torch.equal(*pixels["crop"])
    assert not torch.equal(*pixels["pad"])
    assert not torch.equal(*pixels["stretch"])
    assert unseen_share(adapter.processor, 426, 640) == pytest.approx(1 - 426 / 640)
    padded = fit_picture(sides, "pad", adapter.processor)
    assert padded.shape == (640, 640, 3)
    assert (padded[107 : 107 + 426] == 128).all()
    square = picture(0)
    assert fit_picture(square, "pad", adapter.processor) is square


def test_a_fit_is_another_stage_and_a_date_too() -> None:
    from orchestrator.models.identity import fingerprint

    found = [fingerprint(ModelConfig(**settings)) for settings in ({}, {"fit": "crop"}, {"date": "2025-05-05"})]
    assert len({json.dumps(one, sort_keys=True) for one in found}) == 3


def test_todays_date_is_a_constant_of_the_study(published, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = load_adapter(published("llava15"), "meta")
    dated = "Today is {{ strftime_now('%d %b %Y') }}. " + adapter.processor.chat_template
    monkeypatch.setattr(adapter.processor, "chat_template", dated)
    text = adapter.tokenizer.decode(adapter.prepare(None, "What?")["input_ids"][0])
    assert "Today is 01 Jan 2026. USER" in text
    adapter.date = "2024-02-03"
    assert "Today is 03 Feb 2024. USER" in adapter.tokenizer.decode(adapter.prepare(None, "What?")["input_ids"][0])
