"""Several images in one prompt, through the genuine processor of each family that takes them."""

import numpy as np
import pytest
import torch
from PIL import Image

from orchestrator.capture.loading import Loaded
from orchestrator.capture.shard_worker import CaptureWorker
from orchestrator.capture.taps import Taps
from orchestrator.config import RunConfig
from orchestrator.errors import ModelError
from orchestrator.models.catalogue import TAKES_SEVERAL as FAMILIES
from orchestrator.models.groups import VISION
from orchestrator.models.prompts import render
from tests.models.processors import FAMILIES as PROCESSED
from tests.models.processors import processed_adapter


def picture(seed, height=20, width=36):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


PICTURES = [picture(0), picture(1, 30, 14), picture(2)]
QUESTION = "which is larger?"


def states_of(adapter, batch):
    with torch.no_grad(), Taps(adapter, ["decoder"]) as taps:
        adapter.run(batch)
    return taps.states(batch)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_of_two_images_equal_plain_transformers(family):
    adapter = processed_adapter(family)
    example = adapter.prepare(PICTURES[:2], QUESTION)
    text, _ = render(adapter.processor, family, QUESTION, image=2)
    special = not text.startswith(adapter.tokenizer.bos_token)
    shown = [[Image.fromarray(one) for one in PICTURES[:2]]]
    inputs = adapter.processor(text=[text], images=shown, return_tensors="pt", add_special_tokens=special)
    assert inputs["input_ids"].tolist() == example["input_ids"].tolist()
    with torch.no_grad():
        plain = adapter.model(**inputs, output_hidden_states=True, use_cache=False).hidden_states
    # DeepStack adds visual features after a layer, which transformers' own record does not show there.
    deep = len(adapter.config.vision_config.deepstack_visual_indexes) if family == "qwen3_vl" else 0
    for state in states_of(adapter, example)[:-1]:  # transformers gives the last one after the final norm
        if 1 <= state.layer <= deep:
            continue
        torch.testing.assert_close(state.hidden, plain[state.layer], rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_vision_tokens_are_those_that_change_with_their_own_image(family):
    adapter = processed_adapter(family)
    example = adapter.prepare(PICTURES, QUESTION)
    of = adapter.image_of_tokens(example)[0]
    grid = example["vision_grid"][0]
    vision = (adapter.full_groups(example)[0] == VISION).nonzero()[:, 0]
    assert len(of) == len(grid) == len(vision) == len({tuple(place) for place in grid.tolist()})
    assert of.tolist() == sorted(of.tolist())
    assert (torch.diff(grid[:, 2])[torch.diff(of) == 1] > 0).all()  # tiles count on
    before = states_of(adapter, example)[0].hidden[0]
    for number in range(3):
        other = [255 - one if i == number else one for i, one in enumerate(PICTURES)]
        after = states_of(adapter, adapter.prepare(other, QUESTION))[0].hidden[0]
        moved = ((after - before).abs().amax(-1) > 1e-6).nonzero()[:, 0]
        assert moved.tolist() == vision[of == number].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_different_numbers_of_images_equals_singles(family):
    adapter = processed_adapter(family)
    examples = [adapter.prepare(PICTURES[:2], QUESTION), adapter.prepare(PICTURES, "why?")]
    assert adapter.bucket(examples[0]) == adapter.bucket(examples[1])
    assert adapter.bucket(examples[0]) != adapter.bucket(adapter.prepare(PICTURES[0], QUESTION))
    batch = adapter.collate(examples)
    together = states_of(adapter, batch)[-1]
    with torch.no_grad(), Taps(adapter, ["encoder"]) as taps:
        adapter.run(batch)
    encoded = taps.states(batch)[-1]
    for row, example in enumerate(examples):
        alone = states_of(adapter, example)[-1]
        for mask in ("vision", "text"):
            found = together.hidden[row][getattr(together, mask)[row]]
            torch.testing.assert_close(found, alone.hidden[0][getattr(alone, mask)[0]], rtol=1e-5, atol=1e-5)
        with torch.no_grad(), Taps(adapter, ["encoder"]) as taps:
            adapter.run(example)
        single = taps.states(example)[-1]
        assert int(encoded.vision[row].sum()) == int(single.vision.sum())
    keep = torch.zeros(2, int(adapter.n_vision(batch).max()), dtype=torch.bool)
    with torch.no_grad():
        assert adapter.run(adapter.drop(batch, keep)).logits.isfinite().all()


@pytest.mark.parametrize("family", sorted(set(PROCESSED) - set(FAMILIES)))
def test_a_family_of_one_image_a_question_is_named(family):
    with pytest.raises(ModelError, match=rf"{family}: this family is shown one image.*qwen2_5_vl"):
        processed_adapter(family).prepare(PICTURES[:2], QUESTION)


def test_capture_measures_all_images_together_and_each_alone():
    adapter = processed_adapter("qwen2_5_vl")
    run = RunConfig.model_validate({"capture": {"metrics": ["stable_rank", "gini"], "taps": ["decoder"]}})
    loaded = [
        Loaded(0, "both", PICTURES[0], {"n_images": 2}, prompt=QUESTION, more=PICTURES[1:2]),
        Loaded(1, "one", PICTURES[0], {"n_images": 1}, prompt=QUESTION),
    ]
    result = CaptureWorker(run, {"n_images": "count"}, adapter=adapter).shard(loaded)
    assert result.tables["rejected"].is_empty()
    apart, whole = result.tables["picture_metrics"], result.tables["layer_metrics"]
    assert set(apart["image_id"]) == {"both"}
    assert set(apart["picture"]) == {0, 1}
    example = adapter.prepare(PICTURES[:2], QUESTION)
    of = adapter.image_of_tokens(example)[0]
    for state in states_of(adapter, example):
        tokens = state.hidden[0][state.vision[0]].double()
        rows = apart.filter((apart["layer"] == state.layer) & (apart["tap"] == "decoder")).sort("picture")
        found = whole.filter(
            (whole["image_id"] == "both") & (whole["layer"] == state.layer) & (whole["group"] == "vision")
        )
        parts = [tokens[of == 0], tokens[of == 1], tokens]
        measured = [*rows.iter_rows(named=True), found.row(0, named=True)]
        for part, row in zip(parts, measured, strict=True):
            values = torch.linalg.svdvals(part) ** 2
            assert row["n_tokens"] == len(part)
            assert row["stable_rank"] == pytest.approx(float(values.sum() / values.max()), rel=1e-4)
