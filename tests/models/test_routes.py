"""Attention knock-out by source and target is exact: parts add up to the whole, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from orchestrator.errors import ModelError
from orchestrator.models.groups import TEXT, VISION
from orchestrator.models.reading import attention_module, attention_read
from orchestrator.models.routes import Route, route_blocked
from tests.models.model_zoo import CLASSES, adapter, batch, last

WHOLE = [family for family in CLASSES if family != "molmo"]


def objects_of(model, inputs, first: int):
    """The first tokens of each image as the object, the others as background."""
    counts = model.n_vision(inputs)
    return (torch.arange(int(counts.max()))[None] < first).expand(len(counts), -1)


@pytest.mark.parametrize("family", [family for family in CLASSES if family != "paligemma"])  # its prompt reads ahead
@torch.no_grad()
def test_what_the_last_token_cannot_read_leaves_all_before_it_as_it_was(family):
    model, inputs = adapter(family), batch(family)
    plain = model.run(inputs).logits
    with route_blocked(model, range(model.n_layers), Route("image", "last")):
        blocked = model.run(inputs).logits
    real = inputs["attention_mask"][:, :-1].bool()
    torch.testing.assert_close(blocked[:, :-1][real], plain[:, :-1][real], rtol=0, atol=2e-5)
    assert not torch.allclose(blocked[:, -1], plain[:, -1], atol=1e-4)


@pytest.mark.parametrize("family", CLASSES)
@torch.no_grad()
def test_object_and_background_of_which_one_is_empty_are_nothing_and_the_image(family):
    model, inputs = adapter(family), batch(family)
    plain, layers = model.run(inputs).logits, range(model.n_layers)
    every = objects_of(model, inputs, 10_000)
    found = {}
    for source in ("image", "object", "background"):
        with route_blocked(model, layers, Route(source, "question"), every):
            found[source] = model.run(inputs).logits, model.generate_ids(inputs, 3)
    torch.testing.assert_close(last(found["object"][0]), last(found["image"][0]), rtol=0, atol=2e-5)
    assert torch.equal(found["object"][1], found["image"][1])
    torch.testing.assert_close(last(found["background"][0]), last(plain), rtol=0, atol=2e-5)
    assert not torch.allclose(last(found["image"][0]), last(plain), atol=1e-4)


@pytest.mark.parametrize("family", WHOLE)
@torch.no_grad()
def test_a_blocked_route_has_no_attention_and_others_have(family):
    model, inputs = adapter(family), batch(family)
    cross = model.vision_kind == "cross_kv"
    layer = model.cross_layers[0] if cross else 1
    groups = model.full_groups(inputs)
    weights = []
    reader = {attention_module(model.layers[layer]): lambda heads: weights.append(heads.weights())}
    with (
        route_blocked(model, [layer], Route("object", "question"), objects_of(model, inputs, 1)),
        attention_read(reader),
    ):
        model.run(inputs)
    for row in range(len(groups)):
        places = model.vision_mask(inputs)[row].nonzero()[:, 0] if cross else (groups[row] == VISION).nonzero()[:, 0]
        if len(places) < 2:
            continue
        words = (groups[row] == TEXT).nonzero()[:, 0]
        words = words[words > places[0]] if not cross else words[-2:]
        read = weights[0][row][words]
        assert float(read[:, places[0]].abs().max()) < 1e-12
        assert float(read[:, places[1:]].sum(1).min()) > 0


@torch.no_grad()
def test_generated_tokens_go_on_from_the_last_one():
    """Blocking image->last while decoding equals the same with the prompt made longer by the token."""
    model, inputs = adapter("llava"), batch("llava", 1)
    with route_blocked(model, range(model.n_layers), Route("image", "last")):
        ids = model.generate_ids(inputs, 3)[0]
        first = model.run(inputs).logits[0, -1].argmax()
    assert int(ids[0]) == int(first)
    groups = model.full_groups(inputs)
    longer = {
        **inputs,
        "input_ids": torch.cat([inputs["input_ids"], first.view(1, 1)], dim=1),
        "attention_mask": torch.cat([inputs["attention_mask"], torch.ones(1, 1, dtype=torch.long)], dim=1),
        "groups": torch.cat([groups, torch.zeros(1, 1, dtype=torch.int8)], dim=1),
    }

    def hide(_, args, kwargs):
        n = longer["input_ids"].shape[1]
        mask = torch.ones(n, n, dtype=torch.bool).tril()[None, None].clone()
        mask[:, :, -2:] &= ~(longer["groups"][0] == VISION)
        return args, {**kwargs, "attention_mask": mask}

    handles = [layer.register_forward_pre_hook(hide, with_kwargs=True) for layer in model.layers]
    expected = model.run(longer).logits[0, -1].argmax()
    for handle in handles:
        handle.remove()
    assert int(ids[1]) == int(expected)


@torch.no_grad()
def test_no_layer_blocks_nothing_and_impossible_requests_are_refused():
    model, inputs = adapter("llava"), batch("llava")
    plain = model.run(inputs).logits
    with route_blocked(model, [], Route("image", "last")):
        assert torch.equal(model.run(inputs).logits, plain)
    with pytest.raises(ModelError, match="layer 5"), route_blocked(model, [5], Route("image", "last")):
        pass
    with (
        pytest.raises(ModelError, match="which tokens show objects"),
        route_blocked(model, [0], Route("object", "last")),
    ):
        pass
    dropped = model.drop(inputs, torch.ones(3, int(model.n_vision(inputs).max()), dtype=torch.bool))
    with pytest.raises(ModelError, match="tokens dropped"), route_blocked(model, [0], Route("image", "last")):
        model.run(dropped)
    assert Route.of("question->last") == Route("question", "last")
    assert np.isfinite(plain.numpy()).all()
