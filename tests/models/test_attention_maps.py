"""Attention maps are the model's own weights, of the queries and layers asked for alone."""

from __future__ import annotations

import pytest
import torch

from orchestrator.errors import ModelError
from orchestrator.models.attention_maps import attention_maps, reading_layers
from orchestrator.models.interventions import attention_to_vision
from orchestrator.models.reading import attention_module, attention_read
from tests.models.model_zoo import CLASSES, adapter, batch


@pytest.mark.parametrize("family", [family for family in CLASSES if family != "molmo"])
@torch.no_grad()
def test_maps_are_those_of_the_layer_and_add_up(family):
    model, inputs = adapter(family), batch(family)
    layers = reading_layers(model)[-2:]
    plain, found = model.run(inputs).logits, attention_maps(model, inputs, layers)
    assert list(found) == layers
    for layer, one in found.items():
        torch.testing.assert_close(one.question, attention_to_vision(model, inputs, [layer]), rtol=0, atol=1e-6)
        seen = []
        with attention_read({attention_module(model.layers[layer]): lambda h, seen=seen: seen.append(h.weights())}):
            assert torch.equal(model.run(inputs).logits, plain)
        groups = model.full_groups(inputs)
        for row, n in enumerate(model.n_vision(inputs).tolist()):
            real = model.vision_mask(inputs)[row] if model.vision_kind == "cross_kv" else groups[row] == 1
            torch.testing.assert_close(one.last[row, :n], seen[0][row, -1, real], rtol=0, atol=1e-6)
        assert (one.last.sum(dim=1) <= 1 + 1e-5).all()


def test_a_layer_that_reads_no_image_is_refused():
    with pytest.raises(ModelError, match=r"layers \[0\]; those that attend to the image are \[1\]"):
        attention_maps(adapter("mllama"), batch("mllama"), [0])
