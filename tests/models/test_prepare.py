"""From an image and a question to model inputs, through each family's genuine processor."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from functools import cache

import numpy as np
import pytest
import torch

from orchestrator.capture.taps import Taps
from orchestrator.config import ModelConfig
from orchestrator.errors import ModelError
from orchestrator.models.groups import TEXT, VISION
from orchestrator.models.loading import load_adapter
from tests.models.processors import FAMILIES, processed_adapter

QUESTION = "how many red circles are there?"
adapter_of = cache(processed_adapter)


def picture(height=20, width=36, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("family", FAMILIES)
def test_text_group_is_the_question_s_own_tokens(family):
    adapter = adapter_of(family)
    for question in (QUESTION, "USER: what?", "a"):
        example = adapter.prepare(picture(), question)
        ids = example["input_ids"][0][example["groups"][0] == TEXT].tolist()
        assert "".join(adapter.tokenizer.decode(ids).split()) == "".join(question.split())


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_processed_images_run_and_batch_like_singles(family):
    adapter = adapter_of(family)
    examples = [adapter.prepare(picture(*size), text) for size, text in (((20, 36), QUESTION), ((40, 16), "a b?"))]
    batch = adapter.collate(examples)
    with Taps(adapter, ["encoder"]) as taps:
        logits = adapter.run(batch).logits
    together = taps.states(batch)[-1]
    for row, example in enumerate(examples):
        with Taps(adapter, ["encoder"]) as taps:
            alone = adapter.run(example).logits
        patches = taps.states(example)[-1]
        found = together.hidden[row][together.vision[row]]
        torch.testing.assert_close(found, patches.hidden[0][patches.vision[0]], rtol=1e-5, atol=2e-5)
        torch.testing.assert_close(logits[row : row + 1, -alone.shape[1] :], alone, rtol=0, atol=2e-5)
        if adapter.vision_kind == "residual":
            assert int((example["groups"] == VISION).sum()) == int(adapter.n_vision(example)[0])
    assert len(adapter.generate(batch, 3)) == 2


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_labels_are_the_answer_and_its_end(family):
    adapter = adapter_of(family)
    example = adapter.prepare(picture(), QUESTION, "blue")
    prompt = adapter.prepare(picture(), QUESTION)
    labelled = example["labels"][0]
    assert "blue" in adapter.tokenizer.decode(labelled[labelled >= 0].tolist())
    n = prompt["input_ids"].shape[1]
    assert torch.equal(example["input_ids"][:, :n], prompt["input_ids"])
    assert (labelled[:n] == -100).all()
    assert torch.equal(example["groups"][:, :n], prompt["groups"])
    assert not (example["groups"][:, n:] == TEXT).any()
    # The prompt's own states do not see the answer that follows.
    torch.testing.assert_close(
        adapter.run(example).logits[:, n - 1], adapter.run(prompt).logits[:, -1], rtol=0, atol=1e-5
    )
    assert adapter.run(example).loss.isfinite()


@pytest.mark.parametrize("family", FAMILIES)
def test_type_ids_are_there_where_the_model_needs_them(family):
    example = adapter_of(family).prepare(picture(), QUESTION)
    needed = {"gemma3": "token_type_ids", "paligemma": "token_type_ids"}
    needed |= dict.fromkeys(("qwen2_5_vl", "qwen3_vl"), "mm_token_type_ids")
    if family in needed:
        assert needed[family] in example


@pytest.mark.parametrize("name", ["reference-joint", "reference-cross"])
@torch.no_grad()
def test_reference_models_answer_questions_with_and_without_an_image(name):
    adapter = load_adapter(ModelConfig(name=name))
    with_image = adapter.collate([adapter.prepare(picture(seed=i), QUESTION) for i in range(2)])
    assert len(adapter.generate(with_image, 3)) == 2
    without = adapter.prepare(None, QUESTION)
    assert int(adapter.n_vision(without)[0]) == 0
    assert adapter.bucket(without) != adapter.bucket(adapter.prepare(picture(), QUESTION))
    assert adapter.run(without).logits.isfinite().all()


def test_bad_input_is_named():
    adapter = adapter_of("llava")
    with pytest.raises(ModelError, match="prompt is empty"):
        adapter.prepare(picture(), "  ")
    with pytest.raises(ModelError, match="image placeholder"):
        adapter.prepare(picture(), "what is <image> about?")
    with pytest.raises(ModelError, match="no examples"):
        adapter.collate([])
    with pytest.raises(ModelError, match="differ in"):
        adapter.collate([adapter.prepare(picture(), "a"), adapter.prepare(picture(), "a", "b")])
