"""The logit lens ends in the model's own logits, and reads early states through its own norm and head."""

from __future__ import annotations

import pytest
import torch

from orchestrator.models.lens import lens_logits
from tests.models.model_zoo import CLASSES, adapter, batch


@pytest.mark.parametrize("family", [family for family in CLASSES if family != "molmo"])
@torch.no_grad()
def test_the_lens_ends_in_the_model_s_own_logits(family):
    model, inputs = adapter(family), batch(family)
    found = lens_logits(model, inputs)
    expected = model.run(inputs).logits[:, -1].float()
    assert found.shape == (model.n_layers + 1, *expected.shape)
    torch.testing.assert_close(found[-1], expected, rtol=0, atol=1e-5)
    state = []
    handle = model.final_norm.register_forward_pre_hook(lambda _, args: state.append(args[0][:, -1:]))
    model.run(inputs)
    handle.remove()
    by_hand = model.model.get_output_embeddings()(model.final_norm(state[0]))[:, -1]
    torch.testing.assert_close(found[-1], by_hand.float(), rtol=0, atol=1e-5)
    assert not torch.allclose(found[0], found[-1], atol=1e-3)
