"""Deletion, knock-out and patching are exact on every class."""

import pytest
import torch

from orchestrator.errors import ModelError
from orchestrator.models.groups import VISION
from orchestrator.models.interventions import (
    attention_to_vision,
    prompt_patched,
    prompt_states,
    vision_blocked,
    vision_patched,
    vision_states,
)
from tests.models.model_zoo import CLASSES, RESIDUAL, adapter, batch, examples, last, same_answer, some


def everything(inputs, family):
    return torch.ones(len(inputs["input_ids"]), int(adapter(family).n_vision(inputs).max()), dtype=torch.bool)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", CLASSES)
@torch.no_grad()
def test_deleting_nothing_changes_nothing_at_all(family):
    model, inputs = adapter(family), batch(family)
    plain = model.run(inputs).logits
    for layer in (0, 1, model.n_layers - 1):
        dropped = model.drop(inputs, everything(inputs, family), layer)
        assert torch.equal(last(model.run(dropped).logits), last(plain))
        assert torch.equal(model.generate_ids(dropped, 3), model.generate_ids(inputs, 3))


@pytest.mark.parametrize("family", RESIDUAL)
@torch.no_grad()
def test_shortening_equals_masking(family):
    model, inputs = adapter(family), batch(family)
    keep = some(inputs, family)
    dropped = model.drop(inputs, keep)
    assert model.groups(dropped).shape[1] < inputs["input_ids"].shape[1]
    gone = model.full_groups(inputs) == VISION
    gone[model.full_groups(inputs) == VISION] = ~torch.cat(
        [keep[row, :n] for row, n in enumerate(model.n_vision(inputs).tolist())]
    )
    with keys_hidden(model, gone):
        masked = model.run(inputs).logits
    close(last(model.run(dropped).logits), last(masked))


def keys_hidden(model, gone):
    """A context in which every block's mask hides the positions `gone` from every other position."""
    from contextlib import ExitStack

    from orchestrator.models.shortening import block, full_mask

    def hide(_, args, kwargs):
        mask = kwargs.get(model.mask_name)
        if mask is None:
            mask = full_mask(None, torch.ones_like(gone), gone.shape[1])
        others = ~torch.eye(gone.shape[1], dtype=torch.bool)
        return args, {**kwargs, model.mask_name: block(mask, gone[:, None, None, :] & others)}

    stack = ExitStack()
    for layer in model.layers:
        stack.callback(layer.register_forward_pre_hook(hide, with_kwargs=True).remove)
    return stack


@torch.no_grad()
def test_shortening_equals_masking_across():
    model, inputs = adapter("mllama"), batch("mllama")
    keep = some(inputs, "mllama")
    gone = model.vision_mask(inputs)
    gone[model.vision_mask(inputs)] = ~torch.cat(
        [keep[row, :n] for row, n in enumerate(model.n_vision(inputs).tolist())]
    )

    def hide(_, args, kwargs):
        mask = kwargs["cross_attention_mask"].masked_fill(gone[:, None, None, :], torch.finfo(torch.float).min)
        return args, {**kwargs, "cross_attention_mask": mask}

    handles = [model.layers[i].register_forward_pre_hook(hide, with_kwargs=True) for i in model.cross_layers]
    masked = model.run(inputs).logits
    for handle in handles:
        handle.remove()
    close(last(model.run(model.drop(inputs, keep)).logits), last(masked))


@pytest.mark.parametrize("family", CLASSES)
@torch.no_grad()
def test_unequal_deletion_in_a_batch_equals_singles(family):
    model, inputs = adapter(family), batch(family)
    keep = some(inputs, family)
    keep[0] = False
    for layer in (0, 1):
        dropped = model.drop(inputs, keep, layer)
        logits, ids = model.run(dropped).logits, model.generate_ids(dropped, 8)
        for row, example in enumerate(examples(family)):
            single = model.drop(example, keep[row : row + 1], layer)
            close(last(logits[row : row + 1]), last(model.run(single).logits))
            assert same_answer(ids[row], model.generate_ids(single, 8)[0])


@pytest.mark.parametrize("family", CLASSES)
@torch.no_grad()
def test_blocking_every_layer_equals_deleting_every_token(family):
    model, inputs = adapter(family), batch(family)
    nothing = model.drop(inputs, ~everything(inputs, family))
    with vision_blocked(model, range(model.n_layers)):
        blocked, ids = model.run(inputs).logits, model.generate_ids(inputs, 4)
    close(last(blocked), last(model.run(nothing).logits))
    assert torch.equal(ids, model.generate_ids(nothing, 4))
    with vision_blocked(model, [1]):
        window = model.run(inputs).logits
    assert not torch.allclose(last(window), last(model.run(inputs).logits))


@pytest.mark.parametrize("family", ["llava", "smolvlm", "internvl", "llava_next"])
@torch.no_grad()
def test_deleting_every_token_is_the_text_only_answer(family):
    """The same text without image tokens, at the positions it had beside the image, through the plain decoder."""
    model, inputs = adapter(family), examples(family)[0]
    text = (inputs["groups"] != VISION)[0].nonzero()[:, 0]
    if family == "llava_next":  # newline embeddings stay; leave their prompt out of the comparison with plain text
        text = text[inputs["input_ids"][0, text] != model.config.image_token_id]
    plain = model.model(
        input_ids=inputs["input_ids"][:, text],
        attention_mask=torch.ones(1, len(text), dtype=torch.long),
        position_ids=text[None],
    ).logits
    nothing = model.run(model.drop(inputs, ~everything(inputs, family))).logits
    if family == "llava_next":
        assert nothing.shape[1] == plain.shape[1] + 2
    else:
        close(nothing, plain)


@torch.no_grad()
def test_deleting_every_token_across_is_the_text_only_answer():
    model, inputs = adapter("mllama"), examples("mllama")[0]
    plain = model.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    assert torch.equal(model.run(model.drop(inputs, ~everything(inputs, "mllama"))).logits, plain)


@pytest.mark.parametrize("family", CLASSES)
@torch.no_grad()
def test_patching_an_image_with_itself_changes_nothing(family):
    model, inputs = adapter(family), batch(family, 2)
    plain, ids = model.run(inputs).logits, model.generate_ids(inputs, 3)
    for layer in range(max(model.cross_layers) + 1 if model.vision_kind == "cross_kv" else model.n_layers):
        states = vision_states(model, inputs, layer)
        with vision_patched(model, layer, states):
            assert torch.equal(model.run(inputs).logits, plain)
            assert torch.equal(model.generate_ids(inputs, 3), ids)
    with vision_patched(model, 1, states + 1):
        assert not torch.allclose(last(model.run(inputs).logits), last(plain))


@pytest.mark.parametrize("family", CLASSES)
@torch.no_grad()
def test_patching_every_input_of_the_decoder_gives_the_other_answer(family):
    model, first = adapter(family), examples(family)[1]
    key = "images" if family == "molmo" else "pixel_values"
    second = {**first, key: torch.where(first[key] == 0, 0, first[key].flip(-1) + 0.3)}
    other = model.run(second).logits
    with vision_patched(model, 0, vision_states(model, second, 0)):
        patched = model.run(first).logits
    if family == "qwen3_vl":  # later layers add the first image's own features
        assert not torch.allclose(last(patched), last(other))
    else:
        close(last(patched), last(other))


@pytest.mark.parametrize("family", [family for family in CLASSES if family != "molmo"])
def test_attention_to_vision_is_a_share(family):
    model, inputs = adapter(family), batch(family)
    before = model.decoder.config._attn_implementation
    shares = attention_to_vision(model, inputs)
    counts = model.n_vision(inputs)
    assert shares.shape == (3, int(counts.max()))
    for row, n in enumerate(counts.tolist()):
        assert (shares[row, :n] > 0).all()
        assert (shares[row, n:] == 0).all()
        assert shares[row].sum() <= 1 + 1e-5
    assert model.decoder.config._attn_implementation == before


def test_fused_blocks_refuse_to_give_attention():
    with pytest.raises(ModelError, match="attention weights cannot be read"):
        attention_to_vision(adapter("molmo"), batch("molmo"))


def test_impossible_requests_are_refused():
    model, inputs = adapter("llava"), batch("llava")
    with pytest.raises(ModelError, match=r"expected torch.bool \(3, 4\)"):
        model.drop(inputs, torch.ones(3, 2, dtype=torch.bool))
    with pytest.raises(ModelError, match="layer 3; expected 0 to 2"):
        model.drop(inputs, everything(inputs, "llava"), layer=3)
    with pytest.raises(ModelError, match="layer 9"), vision_blocked(model, [9]):
        pass
    with (
        pytest.raises(ModelError, match="same size"),
        vision_patched(model, 0, torch.zeros(3, 2, 32)),
    ):
        model.run(inputs)


@pytest.mark.parametrize("family", CLASSES)
@torch.no_grad()
def test_patching_some_tokens_leaves_the_others(family):
    model, inputs = adapter(family), batch(family, 2)
    layer = model.cross_layers[0] if model.vision_kind == "cross_kv" else 2
    states, chosen = vision_states(model, inputs, layer), some(inputs, family)[:2]
    mixed = torch.where(chosen[:, : states.shape[1], None], states + 1, states)
    with vision_patched(model, layer, mixed):
        expected = model.run(inputs).logits
    with vision_patched(model, layer, states + 1, chosen):
        assert torch.equal(model.run(inputs).logits, expected)


@pytest.mark.parametrize("family", CLASSES)
@torch.no_grad()
def test_patching_every_position_of_the_prompt_gives_the_other_answer(family):
    model, first = adapter(family), examples(family)[1]
    key = "images" if family == "molmo" else "pixel_values"
    second = {**first, key: torch.where(first[key] == 0, 0, first[key].flip(-1) + 0.3)}
    whole = torch.ones_like(first["input_ids"], dtype=torch.bool)
    plain, other = model.run(first).logits, model.run(second).logits
    with prompt_patched(model, 2, prompt_states(model, second, 2), whole):
        close(last(model.run(first).logits), last(other))
        assert same_answer(model.generate_ids(first, 3)[0][:1], model.generate_ids(second, 3)[0][:1])
    with prompt_patched(model, 2, prompt_states(model, second, 2), ~whole):
        assert torch.equal(model.run(first).logits, plain)
