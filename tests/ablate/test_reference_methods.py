"""Every way to choose tokens on both reference models, at the depths of its paper: exact at both ends, or refused.

The tiny models of all classes have the same properties in `tests/models/test_reduction.py`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from orchestrator.ablate.selection import make_reduction
from orchestrator.ablate.selectors.check import check_layers, check_model_gives
from orchestrator.ablate.selectors.entries import ENTRIES
from orchestrator.ablate.selectors.kinds import Selector
from orchestrator.ablate.selectors.schedules import depths
from orchestrator.config import AblateConfig, ModelConfig, ScenesConfig
from orchestrator.data.render import render
from orchestrator.data.scenes import make_scene
from orchestrator.errors import ConfigError
from orchestrator.models.loading import load_adapter
from orchestrator.models.needs import cannot_have
from orchestrator.models.reading import attention_module, attention_read
from orchestrator.models.reduction import Kept

MODELS = ("reference-joint", "reference-cross")
QUESTIONS = ("what colour is the circle ?", "how many objects are there ?", "is there a red square ?")


@cache
def asked(name: str) -> tuple[Any, Any, Any]:
    """A model, a batch of three questions about scenes, and the first of them alone."""
    model = load_adapter(ModelConfig(name=name), "cpu")
    scenes = [make_scene(ScenesConfig(seed=4, n_objects=(2, 5)), i) for i in range(3)]
    with_image = [model.prepare(render(s), q) for s, q in zip(scenes, QUESTIONS, strict=True)]
    return model, model.collate(with_image), with_image[0]


def layers_of(model: Any, selector: Selector) -> list[int]:
    reading = list(getattr(model, "cross_layers", ())) or list(range(model.n_layers))
    return [reading[place] for place in depths(selector, len(reading))]


def reduced(model: Any, inputs: Any, selector: Selector, layers: list[int], share: float) -> Any:
    return model.reduce(inputs, make_reduction(model, inputs, selector, layers, [[share] * 3 for _ in layers]))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("selector", ENTRIES, ids=lambda one: one.name)
@torch.no_grad()
def test_a_method_is_exact_at_both_ends_or_refused_before_work(name: str, selector: Selector) -> None:
    model, inputs, _ = asked(name)
    layers, model_type = layers_of(model, selector), str(model.config.model_type)
    config = AblateConfig(checks=("rivals",), rivals=(selector.name,))
    if cannot_have(selector.needs_at(layers[0]), model_type):
        assert (name, selector.name) == ("reference-cross", "sparsevlm")
        with pytest.raises(ConfigError, match="text and visual states in one space"):
            check_model_gives(config, model_type)
        return
    check_model_gives(config, model_type)
    plain, ids = model.run(inputs).logits, model.generate_ids(inputs, 4)
    whole = reduced(model, inputs, selector, layers, 1.0)
    assert torch.equal(model.run(whole).logits[:, -1], plain[:, -1])
    assert torch.equal(model.generate_ids(whole, 4), ids)
    none = reduced(model, inputs, selector, layers, 0.0)
    gone = model.drop(inputs, torch.zeros(3, int(model.n_vision(inputs).max()), dtype=torch.bool), layers[0])
    torch.testing.assert_close(model.run(none).logits[:, -1], model.run(gone).logits[:, -1], rtol=0, atol=5e-5)
    assert torch.equal(model.generate_ids(none, 4), model.generate_ids(gone, 4))
    half = reduced(model, inputs, selector, layers, 0.5)
    model.run(half)
    assert [k.tolist() for k in half["reduction"].kept][-1] == [
        -(-int(n) // 2) if int(n) % 2 else int(n) // 2 for n in model.n_vision(inputs)
    ]


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_without_any_visual_token_the_answer_is_that_to_the_text_alone(name: str) -> None:
    """The text of the same prompt without a picture; in joint attention its tokens stay at their positions."""
    model, _, example = asked(name)
    gone = model.drop(example, torch.zeros(1, int(model.n_vision(example).max()), dtype=torch.bool))
    text = model.full_groups(example)[0] != 1
    inputs = {"input_ids": example["input_ids"][:, text], "attention_mask": torch.ones(1, int(text.sum()))}
    if name == "reference-joint":
        inputs["position_ids"] = text.nonzero().T
    alone = model.model(**inputs, use_cache=False).logits[:, -1]
    torch.testing.assert_close(model.run(gone).logits[:, -1], alone, rtol=0, atol=2e-4)


def _last_tokens(wanted: Any) -> Kept:
    v = len(wanted.seen.states)
    index = torch.arange(v - wanted.n, v)
    return Kept(index, torch.eye(v)[index])


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_merging_with_one_hot_weights_equals_selection(name: str) -> None:
    model, inputs, _ = asked(name)
    merging = Selector("one_hot", "", "", _last_tokens, merges=True)
    selecting = Selector("plainly", "", "", lambda wanted: Kept(_last_tokens(wanted).index))
    reading = list(getattr(model, "cross_layers", ())) or list(range(model.n_layers))
    for layers in ([reading[0]], [reading[1]], reading[:2]):
        merged, selected = (reduced(model, inputs, kind, layers, 0.5) for kind in (merging, selecting))
        torch.testing.assert_close(
            model.run(merged).logits[:, -1], model.run(selected).logits[:, -1], rtol=0, atol=5e-5
        )
        assert torch.equal(model.generate_ids(merged, 4), model.generate_ids(selected, 4))


@torch.no_grad()
def test_fastv_is_what_a_second_implementation_makes_of_it() -> None:
    """Eager attention of every layer, then the others hidden by a mask instead of taken out of the sequence."""
    model, inputs, _ = asked("reference-joint")
    fastv = next(one for one in ENTRIES if one.name == "fastv")
    module, seen = attention_module(model.layers[1]), []
    with attention_read({module: lambda heads: seen.append(heads.weights())}):
        model.run(inputs)
    vision = model.full_groups(inputs) == 1
    keep = torch.zeros(3, int(vision.sum(1).max()), dtype=torch.bool)
    for row, mask in enumerate(vision):
        weights = seen[0][row, -1, mask]
        best = sorted(range(len(weights)), key=lambda i: -float(weights[i]))[: len(weights) // 2]
        keep[row, best] = True
    found = model.run(reduced(model, inputs, fastv, [2], 0.5)).logits[:, -1]
    torch.testing.assert_close(found, model.run(model.drop(inputs, keep, 2)).logits[:, -1], rtol=0, atol=5e-5)


def test_layers_that_are_not_there_or_read_no_image_are_refused_before_work() -> None:
    config = AblateConfig(checks=("attention",), attention_layers=(1, 3))
    check_layers(config, 6, ())
    with pytest.raises(ConfigError, match=r"attention_layers: \[1\] attend to no image; those that do are \[3, 5\]"):
        check_layers(config, 6, (3, 5))
    with pytest.raises(ConfigError, match=r"inside_layers: \[9\]; the decoder has layers 1 to 5"):
        check_layers(AblateConfig(checks=("inside",), inside_layers=(2, 9)), 6, ())
