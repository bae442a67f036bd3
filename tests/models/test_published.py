"""Families as published: their own configs, processors, tokenisers and templates, with small random weights.

The files lie beside the checkout (`shared/real`); without them the tests of published files are skipped.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from orchestrator.capture.taps import Taps
from orchestrator.config import FinetuneConfig, ModelConfig
from orchestrator.finetune.lora import tunable
from orchestrator.finetune.train import train
from orchestrator.models import loading
from orchestrator.models.adapter import Adapter
from orchestrator.models.catalogue import resolve
from orchestrator.models.check import check_model
from orchestrator.models.examine import examine
from orchestrator.models.fitting import fit_picture, unseen_share
from orchestrator.models.identity import QUESTION, prompt_texts
from orchestrator.models.loading import load_adapter
from orchestrator.models.prompts import render
from orchestrator.study.plan import make_plan
from tests.conftest import tiny_study
from tests.models.processors import FAMILIES, processed_adapter
from tests.models.published import build, has_torchvision, stand_in_tensorflow

NATIVE = ("llava15", "granite", "qwen25vl")
ASKED = (("What colour is it?", "red"), ("How many are there?", "3"), ("Is there a dog?", "yes"), ("Where?", "left"))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory):
    """`published("llava15")`: a small random checkpoint of published files."""
    root = tmp_path_factory.mktemp("published")

    @cache
    def make(family: str) -> ModelConfig:
        if family not in ("llava15", "granite") and not has_torchvision():
            pytest.skip("its processor needs torchvision (pip install 'vtsweep[vision]')")
        return ModelConfig(name=str(build(family, root / family)), trust_remote_code=family.startswith("molmo"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(root / "modules"))
        patch.syspath_prepend(str(root / "modules"))
        patch.setitem(sys.modules, "tensorflow", stand_in_tensorflow())  # of which Molmo's image code takes a resize
        yield make


def picture(i: int, height: int = 60, width: int = 60) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)


def learns_its_answers(adapter: Adapter) -> bool:
    """Whether a model that was trained on a few questions without a picture then generates their answers and stops."""
    examples = [adapter.prepare(None, *asked) for asked in ASKED]
    part = {"rank": 16, "learning_rate": 1e-2}
    config = FinetuneConfig.model_validate(
        {"n_steps": 60, "batch_size": 4, "language": part, "projector": {**part, "rank": 0}}
    )
    with tunable(adapter, config) as tuned:
        train(adapter, tuned, lambda _: [adapter.collate(examples)], config)
        prompts = [adapter.prepare(None, question) for question, _ in ASKED]
        return [adapter.generate(prompt, 8)[0] for prompt in prompts] == [answer for _, answer in ASKED]


@pytest.mark.parametrize("family", ["llava15", "granite"])
def test_published_models_answer_what_they_were_trained_on(published, family: str) -> None:
    """LLaVA-1.5's template ends a turn with a space and no end token, and its tokeniser puts a space in front."""
    assert learns_its_answers(load_adapter(published(family)))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_what_it_was_trained_on(family: str) -> None:
    """The tests' tokeniser has letters for tokens, so that an answer is several of them."""
    assert learns_its_answers(processed_adapter(family))


def test_llava_1_5_learns_words_as_it_would_write_them(published) -> None:
    adapter = load_adapter(published("llava15"), "meta")
    labels = adapter.prepare(picture(0), *ASKED[0])["labels"][0]
    assert adapter.tokenizer.convert_ids_to_tokens(labels[labels >= 0].tolist()) == ["▁red", "</s>"]


@pytest.mark.parametrize("family", ["llava15", "granite"])
def test_labels_are_the_tokens_of_the_whole_conversation(published, family: str) -> None:
    adapter = load_adapter(published(family), "meta")
    for question, answer in (*ASKED, ("What?", "a red circle, and 2 more")):
        prompt, example = adapter.prepare(None, question), adapter.prepare(None, question, answer)
        labels = example["labels"][0]
        answered = labels[labels >= 0].tolist()
        assert answered[-1] in adapter.eos_token_ids
        assert not set(answered[:-1]) & adapter.eos_token_ids
        text = adapter.tokenizer.decode(example["input_ids"][0], skip_special_tokens=True)
        before = adapter.tokenizer.decode(prompt["input_ids"][0], skip_special_tokens=True)
        assert text.removeprefix(before).strip() == answer
        spoken, continuation = render(adapter.processor, adapter.family, question, image=False, answer=answer)
        together = spoken + continuation[: continuation.index(answer) + len(answer)]
        assert adapter.call_processor(None, together)["input_ids"][0].tolist() == example["input_ids"][0].tolist()[:-1]


@pytest.mark.parametrize("family", NATIVE)
@torch.no_grad()
def test_doctor_plan_states_deletion_and_text_alone(published, family: str, tmp_path: Path) -> None:
    config = published(family)
    assert check_model(config, text_only=True)
    findings = examine(config)
    assert [finding for finding in findings if finding.status == "fail"] == []
    overrides = (f"model.name={config.name}", f"model.trust_remote_code={config.trust_remote_code}")
    planned = make_plan(tiny_study(tmp_path, *overrides)).models[0].vision_tokens
    adapter = load_adapter(config)
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
def test_a_pass_is_that_of_plain_transformers(published, family: str) -> None:
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
    adapter = load_adapter(config)
    assert torch.equal(adapter.run(adapter.prepare(image, "What is it?")).logits, expected)
    known = prompt_texts(config, resolve(config))
    assert known["prompt"].replace(QUESTION, "What is it?") == text


def test_molmo_s_pass_is_that_of_its_own_code(published) -> None:
    """Its publishers' `process`, its class and their `forward`, without our adapter."""
    from PIL import Image

    adapter, image = load_adapter(published("molmo")), picture(0)
    inputs = adapter.processor.process(images=[Image.fromarray(image)], text="What is it?")
    with torch.no_grad():
        expected = adapter.model(**{key: value[None] for key, value in inputs.items()}, use_cache=False).logits
        assert torch.equal(adapter.run(adapter.prepare(image, "What is it?")).logits, expected)


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


def test_todays_date_is_a_constant_of_the_study(published) -> None:
    adapter = load_adapter(published("llava15"), "meta")
    plain = adapter.processor.chat_template
    adapter.processor.chat_template = "Today is {{ strftime_now('%d %b %Y') }}. " + plain
    text = adapter.tokenizer.decode(adapter.prepare(None, "What?")["input_ids"][0])
    assert "Today is 01 Jan 2026. USER" in text
    adapter.date = "2024-02-03"
    assert "Today is 03 Feb 2024. USER" in adapter.tokenizer.decode(adapter.prepare(None, "What?")["input_ids"][0])
