"""What taps refuse, and what they see where tokens are dropped."""

import pytest
import torch

from orchestrator.capture.taps import Taps, available_taps, default_taps
from orchestrator.errors import ModelError
from tests.models.model_zoo import adapter, batch, examples, some


def test_a_tap_or_layer_that_is_not_there_is_named():
    with pytest.raises(ModelError, match=r"No tap 'decode' on this residual model\. Did you mean 'decoder'"):
        Taps(adapter("llava"), ["decode"])
    with pytest.raises(ModelError, match="No tap 'cross_k'"):
        Taps(adapter("llava"), ["cross_k"])
    with pytest.raises(ModelError, match="has no layer 9; it has 0 to 3"):
        Taps(adapter("llava"), {"decoder": [0, 9]})
    with pytest.raises(ModelError, match=r"has no layer 0; it has 1 to 1: \[1\]"):
        Taps(adapter("mllama"), {"cross_v": [0]})


def test_defaults_leave_the_encoder_out():
    assert default_taps(adapter("llava")) == ("decoder", "projector")
    assert default_taps(adapter("mllama")) == ("decoder", "projector", "cross_k", "cross_v", "cross_out")


@torch.no_grad()
def test_hooks_are_gone_after_the_block_and_silent_while_generating():
    model, inputs = adapter("mllama"), batch("mllama", 2)
    seen = []
    with Taps(model, available_taps(model), on_state=seen.append):
        model.generate_ids(inputs, 2)
    assert seen == []
    model.run(inputs)
    assert seen == []
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())


@torch.no_grad()
def test_states_of_another_batch_are_refused():
    model = adapter("llava")
    with Taps(model, ["decoder"]) as taps:
        model.run(batch("llava", 2))
    with pytest.raises(ModelError, match="last pass was of 2 images"):
        taps.states(batch("llava", 3))


@pytest.mark.parametrize("family", ["llava_next", "qwen3_vl", "molmo"])
@torch.no_grad()
def test_dropped_tokens_are_gone_from_their_layer_on(family):
    model, inputs = adapter(family), batch(family)
    keep = some(inputs, family)
    full = model.n_vision(inputs).tolist()
    kept = [int(row[:n].sum()) for row, n in zip(keep, full, strict=True)]
    for layer in (0, 2):
        with Taps(model, ["decoder"]) as taps:
            model.run(model.drop(inputs, keep, layer))
        for state in taps.states(inputs):
            # At layer 0 the tap may read before or after the deletion: it is named by what it saw.
            if state.layer != layer:
                assert state.vision.sum(1).tolist() == (full if state.layer < layer else kept)


@torch.no_grad()
def test_dropped_states_are_gone_from_cross_attention():
    model, inputs = adapter("mllama"), batch("mllama")
    keep = some(inputs, "mllama")
    kept = [int(row[:n].sum()) for row, n in zip(keep, model.n_vision(inputs).tolist(), strict=True)]
    with Taps(model, ["cross_k", "cross_v"]) as taps:
        model.run(model.drop(inputs, keep))
    assert all(state.vision.sum(1).tolist() == kept for state in taps.states(inputs))


@torch.no_grad()
def test_padding_tiles_are_not_visual_content():
    model, example = adapter("mllama"), examples("mllama")[2]
    n = model.tokens_per_tile
    with Taps(model, ["projector", "cross_v"]) as taps:
        model.run(example)
    for state in taps.states(example):
        assert state.hidden.shape[1] == 4 * n
        assert state.vision[0].tolist() == [True] * 2 * n + [False] * 2 * n
