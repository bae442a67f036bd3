"""Every way to choose tokens on both reference models, at the depths of its paper: exact at both ends, or refused.

The tiny models of all classes have the same properties in `tests/models/test_reduction.py`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from orchestrator.ablate.bench import Bench
from orchestrator.ablate.selection import make_reduction
from orchestrator.ablate.selectors.check import check_layers, check_model_gives
from orchestrator.ablate.selectors.entries import ENTRIES
from orchestrator.ablate.selectors.kinds import Selector
from orchestrator.ablate.selectors.schedules import depths
from orchestrator.config import AblateConfig, ModelConfig, ScenesConfig
from orchestrator.data.mixture import Example
from orchestrator.data.questions import Question
from orchestrator.data.render import render
from orchestrator.data.scenes import make_scene
from orchestrator.errors import ConfigError
from orchestrator.models.groups import VISION
from orchestrator.models.loading import load_adapter
from orchestrator.models.needs import cannot_have
from orchestrator.models.reduction import Kept
from tests.models.without_image import greedy_without, logits_without

MODELS = ("reference-joint", "reference-cross")
QUESTIONS = ("what colour is the circle ?", "how many objects are there ?", "is there a red square ?")
SCENES = [make_scene(ScenesConfig(seed=4, n_objects=(2, 5)), i) for i in range(3)]


@cache
def asked(name: str) -> tuple[Any, Any, Any, Any]:
    """A model, a batch of three questions about scenes, the first of them alone, and all three alone."""
    model = load_adapter(ModelConfig(name=name), "cpu")
    with_image = [model.prepare(render(s), q) for s, q in zip(SCENES, QUESTIONS, strict=True)]
    return model, model.collate(with_image), with_image[0], with_image


@cache
@torch.no_grad()
def text_only(name: str, layer: int) -> tuple[Any, Any]:
    """Last logits (3, vocabulary) of plain transformers without the image from a layer on; at 0, two ids too."""
    model, _, _, examples = asked(name)
    images = [example["groups"][0] == VISION for example in examples]
    pairs = list(zip(examples, images, strict=True))
    logits = torch.cat([logits_without(model.model, e, image, layer)[:, -1] for e, image in pairs])
    return logits, [greedy_without(model.model, e, image, 2) for e, image in pairs] if layer == 0 else None


def layers_of(model: Any, selector: Selector) -> list[int]:
    reading = list(getattr(model, "cross_layers", ())) or list(range(model.n_layers))
    return [reading[place] for place in depths(selector, len(reading))]


def reduced(model: Any, inputs: Any, selector: Selector, layers: list[int], share: float) -> Any:
    return model.reduce(inputs, make_reduction(model, inputs, selector, layers, [[share] * 3 for _ in layers]))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("selector", ENTRIES, ids=lambda one: one.name)
@torch.no_grad()
def test_a_method_is_exact_at_both_ends_or_refused_before_work(name: str, selector: Selector) -> None:
    model, inputs, _, _ = asked(name)
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
    torch.testing.assert_close(model.run(none).logits[:, -1], text_only(name, layers[0])[0], rtol=0, atol=5e-5)
    if layers[0] == 0:
        assert model.generate_ids(none, 2).tolist() == text_only(name, 0)[1]
    half = reduced(model, inputs, selector, layers, 0.5)
    model.run(half)
    assert [k.tolist() for k in half["reduction"].kept][-1] == [
        -(-int(n) // 2) if int(n) % 2 else int(n) // 2 for n in model.n_vision(inputs)
    ]


@pytest.mark.parametrize("name", MODELS)
def test_a_smaller_image_is_the_plain_one_at_full_size_and_none_at_no_size(name: str) -> None:
    model, _, _, _ = asked(name)
    scenes = [Example(Question(f"q{i}", f"i{i}", "colour", "low", q, "red"), scene=SCENES[i])
              for i, q in enumerate(QUESTIONS)]  # fmt: skip
    bench = Bench(model, scenes, 3)
    assert bench.reduced("downsample", [0], [[1.0] * 3]).predicted == bench.plain.predicted
    nothing = [model.prepare(None, q) for q in QUESTIONS]
    expected = [model.texts(model.generate_ids(model.collate([one]), bench.max_new_tokens))[0] for one in nothing]
    assert bench.reduced("downsample", [0], [[0.0] * 3]).predicted == expected


def _last_tokens(wanted: Any) -> Kept:
    v = len(wanted.seen.states)
    index = torch.arange(v - wanted.n, v)
    return Kept(index, torch.eye(v)[index])


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_merging_with_one_hot_weights_equals_selection(name: str) -> None:
    model, inputs, _, _ = asked(name)
    merging = Selector("one_hot", "", "", _last_tokens, merges=True)
    selecting = Selector("plainly", "", "", lambda wanted: Kept(_last_tokens(wanted).index))
    reading = list(getattr(model, "cross_layers", ())) or list(range(model.n_layers))
    for layers in ([reading[0]], [reading[1]], reading[:2]):
        merged, selected = (reduced(model, inputs, kind, layers, 0.5) for kind in (merging, selecting))
        torch.testing.assert_close(
            model.run(merged).logits[:, -1], model.run(selected).logits[:, -1], rtol=0, atol=5e-5
        )
        assert torch.equal(model.generate_ids(merged, 4), model.generate_ids(selected, 4))


def test_layers_that_are_not_there_or_read_no_image_are_refused_before_work() -> None:
    config = AblateConfig(checks=("attention",), attention_layers=(1, 3))
    check_layers(config, 6, ())
    with pytest.raises(ConfigError, match=r"attention_layers: \[1\] attend to no image; those that do are \[3, 5\]"):
        check_layers(config, 6, (3, 5))
    with pytest.raises(ConfigError, match=r"inside_layers: \[9\]; the decoder has layers 1 to 5"):
        check_layers(AblateConfig(checks=("inside",), inside_layers=(2, 9)), 6, ())
