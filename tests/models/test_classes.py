"""Properties that every supported class has, each on a tiny model with re-initialised weights."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from orchestrator.capture.taps import Taps, available_taps
from orchestrator.errors import ModelError
from orchestrator.models.lora_folder import attach_lora
from orchestrator.models.random_images import IMAGES, one_tile
from tests.models.model_zoo import CLASSES, adapter, batch, examples, fresh, last, same_answer, some

PIXELS = {"molmo": "images"}

pytestmark = pytest.mark.parametrize("family", CLASSES)


@torch.no_grad()
def test_decoder_tap_is_the_raw_residual_stream(family):
    model, inputs = adapter(family), batch(family)
    outputs, norm_out = [], []
    handles = [
        layer.register_forward_hook(lambda _, __, out: outputs.append(out[0] if isinstance(out, tuple) else out))
        for layer in model.layers
    ]
    handles.append(model.final_norm.register_forward_hook(lambda _, __, out: norm_out.append(out)))
    with Taps(model, ["decoder"]) as taps:
        model.run(inputs)
    for handle in handles:
        handle.remove()
    states = taps.states(inputs)
    assert [state.layer for state in states] == list(range(model.n_layers + 1))
    # DeepStack adds visual features after a layer, so that there the next input is not that layer's output.
    deep = len(getattr(model.config.vision_config, "deepstack_visual_indexes", ())) if family == "qwen3_vl" else 0
    for state, output in zip(states[1 + deep :], outputs[deep:], strict=True):
        torch.testing.assert_close(state.hidden, output, rtol=0, atol=0)
    torch.testing.assert_close(model.final_norm(states[-1].hidden), norm_out[0], rtol=0, atol=0)
    assert all(state.hidden.isfinite().all() for state in states)


@torch.no_grad()
def test_vision_positions_are_visual_content_and_nothing_else(family):
    model, example = adapter(family), examples(family)[1]
    key = PIXELS.get(family, "pixel_values")
    # Only what the processor filled: mllama's padding tiles stay empty.
    changed = {**example, key: torch.where(example[key] == 0, example[key], example[key].flip(-1) + 0.3)}
    tap = "projector" if model.vision_kind == "cross_kv" else "decoder"
    states = []
    for inputs in (example, changed):
        with Taps(model, {tap: [0]}) as taps:
            model.run(inputs)
        states += taps.states(inputs)
    moved = (states[0].hidden - states[1].hidden).abs().amax(-1) > 1e-6
    assert torch.equal(moved, states[0].vision)


def test_every_vision_token_has_its_own_place_on_the_image(family):
    model, inputs = adapter(family), batch(family)
    grids = model.vision_grid(inputs)
    for grid, n in zip(grids, model.n_vision(inputs), strict=True):
        assert len(grid) == n == len({tuple(place) for place in grid.tolist()})
    if model.vision_kind == "residual":
        assert (model.groups(inputs) == 1).sum(1).tolist() == [len(grid) for grid in grids]


@torch.no_grad()
def test_batch_of_different_image_sizes_equals_singles(family):
    model, inputs = adapter(family), batch(family)
    with Taps(model, available_taps(model)) as taps:
        logits = model.run(inputs).logits
    together = taps.states(inputs)
    answers = model.generate_ids(inputs, 4)
    for row, example in enumerate(examples(family)):
        with Taps(model, available_taps(model)) as taps:
            alone = model.run(example).logits
        torch.testing.assert_close(logits[row : row + 1, -alone.shape[1] :], alone, rtol=0, atol=1e-5)
        for several, single in zip(together, taps.states(example), strict=True):
            for group in ("vision", "text"):
                if getattr(several, group) is not None:
                    found = several.hidden[row][getattr(several, group)[row]]
                    expected = single.hidden[0][getattr(single, group)[0]]
                    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert same_answer(answers[row], model.generate_ids(example, 4)[0])


@torch.no_grad()
def test_encoder_tap_sees_every_patch_of_every_tile(family):
    model, inputs = adapter(family), batch(family)
    with Taps(model, ["encoder"]) as taps:
        model.run(inputs)
    counts = {state.vision.sum(1).tolist().__repr__() for state in taps.states(inputs)}
    assert len(taps.states(inputs)) == len(model.encoder_layers) + 1
    assert len(counts) == 1
    first, second, third = taps.states(inputs)[0].vision.sum(1).tolist()
    if family in PIXELS or IMAGES.get(family, one_tile) is not one_tile:
        assert first < third < second


@torch.no_grad()
def test_streamed_states_are_the_held_ones(family):
    model, inputs = adapter(family), batch(family, 2)
    streamed = []
    with Taps(model, available_taps(model), on_state=streamed.append):
        model.run(inputs)
    with Taps(model, available_taps(model)) as taps:
        model.run(inputs)
        model.run(inputs)
    held = taps.states(inputs)
    assert [(s.tap, s.layer) for s in streamed] == [(s.tap, s.layer) for s in held]
    assert all(torch.equal(a.hidden, b.hidden) for a, b in zip(streamed, held, strict=True))


def test_lora_reaches_the_named_groups_and_saves_exactly(family, tmp_path):
    model = fresh(family)
    inputs = batch(family, 2)
    with torch.no_grad():
        before = model.run(inputs).logits
    for part in ("vision", "projector", "language"):
        if (family, part) == ("gemma3", "projector"):
            with pytest.raises(ModelError, match="No linear module"):  # it is a bare matrix
                model.linear_modules([part])
            continue
        names = model.linear_modules([part])
        assert {model.group_of(name) for name in names} == {part}
    names = model.linear_modules(["language", "vision"])
    wrapped = get_peft_model(model.model, LoraConfig(r=2, target_modules=names))
    trained = [name for name, p in wrapped.named_parameters() if p.requires_grad]
    assert {model.group_of(name) for name in trained} == {"language", "vision"}
    assert len(trained) == 2 * len(names)
    with torch.no_grad():
        torch.testing.assert_close(model.run(inputs).logits, before, rtol=0, atol=1e-5)
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
        tuned = model.run(inputs).logits
    assert not torch.equal(tuned, before)
    wrapped.save_pretrained(tmp_path)
    again = fresh(family)
    attach_lora(again, str(tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(again.run(inputs).logits, tuned, rtol=0, atol=0)
    assert not isinstance(again.model, PeftModel)


@torch.no_grad()
def test_labels_survive_deletion(family):
    model = adapter(family)
    inputs = batch(family)
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -2:] = inputs["input_ids"][:, -2:]
    inputs = {**inputs, "labels": labels}
    plain = model.run(inputs)
    everything = torch.ones(3, int(model.n_vision(inputs).max()), dtype=torch.bool)
    torch.testing.assert_close(model.run(model.drop(inputs, everything)).loss, plain.loss, rtol=0, atol=1e-6)
    dropped = model.run(model.drop(inputs, some(inputs, family)))
    expected = torch.nn.functional.cross_entropy(
        last(dropped.logits).flatten(0, 1)[[0, 1, 3, 4, 6, 7]], labels[:, -2:].flatten()
    )
    torch.testing.assert_close(dropped.loss, expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_greedy_decoding_is_the_library_s(family):
    if family == "molmo":
        pytest.skip("the original has no generate under transformers 5")
    model, inputs = adapter(family), batch(family)
    found = model.generate_ids(inputs, 6)
    whole = model.model.generate(**model.model_inputs(inputs), max_new_tokens=6, do_sample=False)
    assert torch.equal(found, whole[:, inputs["input_ids"].shape[1] :])
