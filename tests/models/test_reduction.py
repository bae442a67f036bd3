"""Reductions are exact on every class: all tokens are the plain model, none the text-only one, at any depths."""

from __future__ import annotations

import pytest
import torch

from orchestrator.ablate.selection import make_reduction
from orchestrator.ablate.selectors.kinds import Selector
from orchestrator.ablate.selectors.registry import get_selector, selector_names
from orchestrator.errors import ModelError
from orchestrator.models.encoder_reading import EncoderReading, projected_block
from orchestrator.models.groups import TEXT, VISION
from orchestrator.models.interventions import attention_to_vision, vision_patched, vision_states
from orchestrator.models.reading import attention_module, attention_read
from orchestrator.models.reduction import Kept, Reduction, n_kept
from tests.models.model_zoo import CLASSES, RESIDUAL, adapter, batch, examples, last, same_answer
from tests.models.without_image import greedy_without, logits_without

METHODS = selector_names()


ENCODER = {"fastervlm", "visionzip", "prumerge"}
DECODER = {"fastv", "debiased_attention", "question_attention", "pyramiddrop", "sparsevlm", "dart"}
REFUSED = {
    "llava_onevision": ENCODER,
    "qwen2_5_vl": ENCODER,
    "molmo2": ENCODER,
    "molmo": ENCODER | DECODER,
    "mllama": {"sparsevlm"},
}
"""The methods that a class cannot have, as the documentation says; every other method works on every class."""


def depths(name: str, family: str) -> list[list[int]]:
    """Where a method can choose in a model of three layers."""
    selector = get_selector(name)
    first = 2 if family == "mllama" and "attention" in selector.needs_at(1) else 1
    inside = [[1]] if family == "mllama" and "own_attention" in selector.needs else [[first]]
    if family != "mllama" and len(selector.depths) > 1:
        inside = [[1, 2]]
    return [*([[0]] if selector.at_input else []), *inside]


def reduce(model, inputs, name, layers, share):
    n = len(inputs["input_ids"])
    return model.reduce(inputs, make_reduction(model, inputs, name, layers, [[share] * n for _ in layers]))


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-5)


@pytest.mark.parametrize("family", CLASSES)
@torch.no_grad()
def test_all_tokens_are_the_plain_model_and_none_the_text_only_one(family):
    model, inputs = adapter(family), batch(family)
    plain, ids = model.run(inputs).logits, model.generate_ids(inputs, 3)
    images = [example["groups"][0] == VISION for example in examples(family)]
    alone = {
        layer: torch.cat(
            [last(logits_without(model.model, e, i, layer)) for e, i in zip(examples(family), images, strict=True)]
        )
        for layer in (0, 1, 2)
    }
    text_ids = [greedy_without(model.model, e, i, 3) for e, i in zip(examples(family), images, strict=True)]
    for name in METHODS:
        if name in REFUSED.get(family, ()):
            for layers in depths(name, family):
                with pytest.raises(ModelError, match=f"{name}: .* does not give"):
                    reduce(model, inputs, name, layers, 1.0)
            continue
        for layers in depths(name, family):
            same = reduce(model, inputs, name, layers, 1.0)
            assert torch.equal(last(model.run(same).logits), last(plain)), name
            assert torch.equal(model.generate_ids(same, 3), ids), name
            none = reduce(model, inputs, name, layers, 0.0)
            close(last(model.run(none).logits), alone[layers[0]])
            if layers[0] == 0:
                found = model.generate_ids(none, 3)
                assert found.tolist() == [row[: found.shape[1]] for row in text_ids], name
            else:
                assert torch.equal(model.generate_ids(none, 3), without(model, inputs, layers[0])), name


def without(model, inputs, layer):
    """Ids generated after `drop` of all tokens, which is another path than a reduction."""
    nothing = torch.zeros(len(inputs["input_ids"]), int(model.n_vision(inputs).max()), dtype=torch.bool)
    return model.generate_ids(model.drop(inputs, nothing, layer), 3)


@pytest.mark.parametrize("family", CLASSES)
@torch.no_grad()
def test_what_is_chosen_in_the_pass_equals_dropping_it_beforehand(family):
    model, inputs = adapter(family), batch(family)
    counts = model.n_vision(inputs).tolist()
    for layer in (0, 1):
        reduced = reduce(model, inputs, "norm", [layer], 0.5)
        logits, ids = model.run(reduced).logits, model.generate_ids(reduced, 4)
        states = vision_states(model, inputs, layer)
        keep = torch.zeros(states.shape[:2], dtype=torch.bool)
        for row, n in enumerate(counts):
            keep[row, states[row, :n].norm(dim=1).argsort(descending=True, stable=True)[: n_kept(n, 0.5)]] = True
        dropped = model.drop(inputs, keep, layer)
        close(last(logits), last(model.run(dropped).logits))
        assert torch.equal(ids, model.generate_ids(dropped, 4))
        assert reduced["reduction"].kept[0].tolist() == [n_kept(n, 0.5) for n in counts]


def one_hot(wanted):
    """Keep the last tokens, as a merge whose weights move nothing."""
    v = len(wanted.seen.states)
    index = torch.arange(v - wanted.n, v)
    return Kept(index, torch.eye(v)[index])


def plainly(wanted):
    return Kept(one_hot(wanted).index)


MERGING = Selector("one_hot", "", "", one_hot, merges=True)
SELECTING = Selector("plainly", "", "", plainly)


@pytest.mark.parametrize("family", CLASSES)
@torch.no_grad()
def test_merging_with_one_hot_weights_equals_selection(family):
    model, inputs = adapter(family), batch(family)
    for layers in ([0], [1], [0, 1]):
        merged, selected = (reduce(model, inputs, kind, layers, 0.5) for kind in (MERGING, SELECTING))
        close(last(model.run(merged).logits), last(model.run(selected).logits))
        assert torch.equal(model.generate_ids(merged, 4), model.generate_ids(selected, 4))


def mean_of_all(wanted):
    v = len(wanted.seen.states)
    return Kept(torch.arange(wanted.n), torch.full((wanted.n, v), 1 / v))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "mllama"])
@torch.no_grad()
def test_a_merged_token_holds_the_weighted_sum_at_the_place_of_its_anchor(family):
    model, inputs = adapter(family), batch(family, 1)
    states = vision_states(model, inputs, 0)
    averaged = states.mean(dim=1, keepdim=True).expand_as(states).contiguous()
    keep = torch.zeros(states.shape[:2], dtype=torch.bool)
    keep[:, : n_kept(states.shape[1], 0.5)] = True
    merged = reduce(model, inputs, Selector("mean", "", "", mean_of_all, merges=True), [0], 0.5)
    if family == "mllama":  # states are patched where they are read, before they are dropped
        with vision_patched(model, 0, averaged):
            expected = model.run(model.drop(inputs, keep)).logits
        close(last(model.run(merged).logits), last(expected))
        return
    handle = model.decoder.register_forward_pre_hook(_put(model, inputs, averaged), with_kwargs=True, prepend=True)
    expected = model.run(model.drop(inputs, keep)).logits
    handle.remove()
    close(last(model.run(merged).logits), last(expected))


def _put(model, inputs, states):
    vision = model.full_groups(inputs) == 1

    def put(_, args, kwargs):
        embeds = kwargs["inputs_embeds"].clone()
        embeds[vision] = states.flatten(0, 1)
        return args, {**kwargs, "inputs_embeds": embeds}

    return put


@pytest.mark.parametrize("family", CLASSES)
@torch.no_grad()
def test_steps_of_a_schedule_add_up_and_a_batch_equals_its_rows(family):
    model, inputs = adapter(family), batch(family)
    counts, layers, shares = model.n_vision(inputs).tolist(), [0, 1, 2], (0.8, 0.5, 0.25)
    reduced = model.reduce(inputs, make_reduction(model, inputs, "norm", layers, [[s] * 3 for s in shares]))
    logits, ids = model.run(reduced).logits, model.generate_ids(reduced, 6)
    reached = 2 if family == "mllama" else 3  # its only cross-attention layer is the second
    kept = reduced["reduction"].kept
    assert [k.tolist() for k in kept] == [[n_kept(n, 1 - s) for n in counts] for s in shares[: len(kept)]]
    assert len(kept) == reached
    for row, example in enumerate(examples(family)):
        single = model.reduce(example, make_reduction(model, example, "norm", layers, [[s] for s in shares]))
        close(last(logits[row : row + 1]), last(model.run(single).logits))
        assert same_answer(ids[row], model.generate_ids(single, 6)[0])


@pytest.mark.parametrize("family", [family for family in CLASSES if family != "molmo"])
@torch.no_grad()
def test_attention_read_beside_the_kernel_is_that_of_the_eager_one(family):
    """And reading changes no output."""
    model, inputs = adapter(family), batch(family)
    layer = model.cross_layers[0] if model.vision_kind == "cross_kv" else 1
    module, found = attention_module(model.layers[layer]), []
    plain = model.run(inputs).logits
    with attention_read({module: lambda heads: found.append(heads.weights())}):
        assert torch.equal(model.run(inputs).logits, plain)
    configs = {id(m.config): m.config for m in model.model.modules() if hasattr(m, "config")}.values()
    before = [c._attn_implementation for c in configs]
    eager = []
    handle = module.register_forward_hook(lambda _, __, output: eager.append(output[1].mean(1)))
    try:
        for config in configs:
            config._attn_implementation = "eager"
        model.run(inputs)
    finally:
        handle.remove()
        for config, kind in zip(configs, before, strict=True):
            config._attn_implementation = kind
    real = model.full_groups(inputs) >= 0
    if model.vision_kind == "cross_kv":
        real &= inputs["cross_attention_mask"].flatten(2).any(dim=2)
    torch.testing.assert_close(found[0][real], eager[0][real], rtol=0, atol=2e-6)


@torch.no_grad()
def test_only_the_layer_that_is_read_is_read():
    model, inputs = adapter("llava"), batch("llava")
    reduced = reduce(model, inputs, "fastv", [1], 0.5)
    kinds = []
    handles = [
        attention_module(layer).register_forward_pre_hook(lambda m, _: kinds.append(m.config._attn_implementation))
        for layer in model.layers
    ]
    model.run(reduced)
    for handle in handles:
        handle.remove()
    assert "eager" not in kinds
    assert model.decoder.config._attn_implementation == "sdpa"


@torch.no_grad()
def test_pyramiddrop_reads_the_layer_itself():
    model, inputs = adapter("llava"), batch("llava", 1)
    seen = []
    with attention_read({attention_module(model.layers[1]): lambda heads: seen.append(heads.weights())}):
        model.run(inputs)
    reduced = reduce(model, inputs, "pyramiddrop", [1], 0.5)
    model.run(reduced)
    vision = (model.full_groups(inputs)[0] == 1).nonzero()[:, 0]
    best = vision[seen[0][0, -1, vision].argsort(descending=True)[:2]]
    cut = reduced["reduction"].cuts[0]
    assert set(cut.index[0].tolist()) & set(vision.tolist()) == set(best.tolist())


@pytest.mark.parametrize("family", ["llava", "paligemma", "gemma3", "internvl", "idefics3", "llava_next", "qwen3_vl"])
@torch.no_grad()
def test_encoder_attention_follows_patches_to_their_tokens(family):
    """A token's keys depend on the pixels of its own patches; those of one bright patch stand out at its token."""
    model, inputs = adapter(family), examples(family)[0]
    reading = EncoderReading(model, inputs, last=True)
    with attention_read(reading.readers()):
        model.run(inputs)
    attention, keys = reading.found()[0]
    n = int(model.n_vision(inputs)[0])
    assert attention.shape == (n,)
    assert keys.shape[0] == n
    assert (attention > 0).all()
    assert float(attention.sum()) <= n


@torch.no_grad()
def test_a_class_token_s_attention_is_the_encoder_s_own():
    model, inputs = adapter("llava"), batch("llava")
    blocks = model.encoder_layers
    reading = EncoderReading(model, inputs, last=False)
    assert reading.module is attention_module(blocks[-2]), "LLaVA projects the output of the last block but one"
    encoder = model.model.get_encoder("image")
    before = encoder.config._attn_implementation
    with attention_read(reading.readers()):
        model.run(inputs)
    encoder.config._attn_implementation = "eager"
    kept = []
    handle = reading.module.register_forward_hook(lambda _, __, output: kept.append(output[1]))
    model.run(inputs)
    handle.remove()
    encoder.config._attn_implementation = before
    expected = kept[0].mean(1)[:, 0, 1:]
    for row, (attention, _) in enumerate(reading.found()):
        torch.testing.assert_close(attention, expected[row], rtol=0, atol=1e-6)


def test_the_projected_block_follows_the_config():
    class Config:
        model_type = "llava"
        vision_feature_layer = -2

    assert projected_block(Config, 24) == 22
    Config.vision_feature_layer = -1
    assert projected_block(Config, 24) == 23
    Config.vision_feature_layer = [3, -2]
    assert projected_block(Config, 24) == 22


@torch.no_grad()
def test_attention_over_all_layers_is_the_mean_over_words_layers_and_heads():
    model, inputs = adapter("llava"), batch("llava")
    total = 0
    for layer in model.layers:
        seen = []
        with attention_read({attention_module(layer): lambda heads, seen=seen: seen.append(heads.weights())}):
            model.run(inputs)
        total = total + seen[0] / model.n_layers
    found = attention_to_vision(model, inputs)
    for row, groups in enumerate(model.full_groups(inputs)):
        expected = total[row][groups == TEXT][:, groups == 1].mean(0)
        torch.testing.assert_close(found[row, : len(expected)], expected)


def test_impossible_reductions_are_refused():
    model, inputs = adapter("llava"), batch("llava")
    with pytest.raises(ModelError, match="layer 3; expected 0 to 2"):
        reduce(model, inputs, "norm", [3], 0.5)
    with pytest.raises(ModelError, match=r"fastv reads the decoder's attention .* after 1 or more layers; found 0"):
        make_reduction(model, inputs, "fastv", [0], [[0.5] * 3])
    with pytest.raises(ModelError, match="after 2 or more"):
        make_reduction(adapter("mllama"), batch("mllama"), "fastv", [1], [[0.5] * 3])
    with pytest.raises(ModelError, match=r"molmo.*fused blocks"):
        make_reduction(adapter("molmo"), batch("molmo"), "fastv", [1], [[0.5] * 3])
    with pytest.raises(ModelError, match="labels"):
        model.reduce(
            {**inputs, "labels": inputs["input_ids"]}, Reduction((0,), [[1.0] * 3], lambda *_: Kept(torch.arange(1)))
        )


def test_every_class_has_methods():
    assert set(RESIDUAL) < set(CLASSES)
    assert set(REFUSED) < set(CLASSES)
    assert set(METHODS) > (ENCODER | DECODER)
    assert len(METHODS) >= 15
