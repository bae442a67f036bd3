"""The logit lens ends in the model's own logits, and reads early states through its own norm and head."""

from __future__ import annotations

import pytest
import torch

from orchestrator.models.choosing import branch_probabilities, make_tree
from orchestrator.models.lens import branch_shares, kept_states, lens_logits
from tests.models.model_zoo import CLASSES, adapter, batch


@pytest.mark.parametrize("family", [family for family in CLASSES if family != "molmo"])
@torch.no_grad()
def test_the_lens_ends_in_the_model_s_own_logits(family):
    model, inputs = adapter(family), batch(family)
    n = inputs["input_ids"].shape[1]
    places = torch.tensor([[n - 1, n - 2]]).expand(len(inputs["input_ids"]), -1)
    states = kept_states(model, inputs, places)
    plain = model.run(inputs).logits[:, [-1, -2]].float()
    assert states.shape[:3] == (model.n_layers + 1, len(plain), 2)
    found = lens_logits(model, states[-1].flatten(0, 1)).view_as(plain)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-5)
    early = lens_logits(model, states[0].flatten(0, 1)).view_as(plain)
    assert not torch.allclose(early, plain, atol=1e-3)


def test_shares_of_many_states_are_those_of_each():
    logits = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    for choices in ([(3,), (4, 5), (4, 6)], [(7, 1), (7, 2), (9,)]):
        tree = make_tree(choices)
        found = branch_shares(tree, logits)
        for row, one in enumerate(logits):
            assert found[row].tolist() == pytest.approx(list(branch_probabilities(tree, one).values()), abs=1e-6)
    ending = make_tree([(1,), (1, 2), (1, 3)])
    found = branch_shares(ending, logits)
    assert found[0].tolist() == pytest.approx(list(branch_probabilities(ending, logits[0]).values()), abs=1e-6)
    torch.testing.assert_close(found.sum(1), torch.ones(5))
