"""A shard's images in, tables and arrays out, on the shipped models."""

import json
import threading

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from orchestrator.capture.loading import Loaded, from_row, load_shard, to_row
from orchestrator.capture.shard_worker import select_taps
from orchestrator.capture.taps import Taps
from orchestrator.compression.metrics import compute
from orchestrator.config import ModelConfig, RunConfig
from orchestrator.data.source import make_source
from orchestrator.errors import DataError, ModelError
from orchestrator.models.loading import load_adapter
from orchestrator.models.memory import is_out_of_memory
from tests.capture.conftest import load, make_run

MODELS = ("reference-joint", "reference-cross")


@pytest.mark.parametrize("model", MODELS)
def test_a_batch_gives_what_its_images_give_alone(model, make_worker):
    single, batched = (make_worker(make_run(model, how__batch_size=size)) for size in (1, 5))
    images = load(single.run, 6)
    one, many = single.shard(images), batched.shard(images)
    for name in one.tables:
        assert_frame_equal(one.tables[name], many.tables[name], rel_tol=2e-4, abs_tol=1e-5)
    for name in one.arrays:
        np.testing.assert_allclose(one.arrays[name], many.arrays[name], rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("model", MODELS)
def test_every_row_is_what_the_metrics_give_on_the_states_themselves(model, make_worker):
    worker = make_worker(make_run(model))
    images = load(worker.run, 3)
    table = worker.shard(images).tables["layer_metrics"]
    checked = 0
    for one in images:
        batch = worker.adapter.collate([worker.adapter.prepare(one.image, worker.run.capture.prompt)])
        with torch.no_grad(), Taps(worker.adapter, worker.select) as taps:
            worker.adapter.run(batch)
            states = taps.states(batch)
        for state in states:
            for group, mask in (("vision", state.vision), ("text", state.text)):
                if mask is None:
                    continue
                key = (
                    (pl.col("image_id") == one.image_id)
                    & (pl.col("tap") == state.tap)
                    & (pl.col("layer") == state.layer)
                    & (pl.col("group") == group)
                )
                row = table.filter(key)
                assert row.height == 1
                assert row["n_tokens"].item() == int(mask.sum())
                for name, value in compute(state.hidden, mask).items():
                    found = row[name].item()
                    if torch.isnan(value).any():
                        assert found is None
                    else:
                        assert found == pytest.approx(value.item(), rel=1e-3, abs=1e-5), (state.tap, state.layer, name)
                checked += 1
    assert checked == table.height


@pytest.mark.parametrize("model", MODELS)
def test_features_are_the_states_at_the_named_positions(model, make_worker):
    worker = make_worker(make_run(model))
    images = load(worker.run, 2)
    result = worker.shard(images)
    for row, one in enumerate(images):
        batch = worker.adapter.collate([worker.adapter.prepare(one.image, worker.run.capture.prompt)])
        with torch.no_grad(), Taps(worker.adapter, worker.select) as taps:
            worker.adapter.run(batch)
            states = taps.states(batch)
        for state in states:
            described = result.extra["features"][state.tap]
            kept = result.arrays[f"features/{state.tap}"][row, described["layers"].index(state.layer)]
            for place, name in enumerate(described["positions"]):
                expected = _expected(state, name, worker.quantiles)
                np.testing.assert_allclose(kept[place], expected.numpy(), rtol=2e-3, atol=2e-3)


def _expected(state, name, quantiles):
    hidden = state.hidden[0]
    if name == "last":
        return hidden[-1]
    if name == "before":
        return hidden[int(state.vision[0].nonzero()[0]) - 1]
    group, place = name.split("_")
    tokens = hidden[(state.vision if group == "vision" else state.text)[0]]
    if place == "mean":
        return tokens.mean(0)
    if group == "vision":
        return tokens[int(quantiles[int(place)] * len(tokens))]
    n = min(8, len(tokens))
    return tokens[round(int(place) * (len(tokens) - 1) / max(n - 1, 1))]


def test_the_token_before_the_image_is_the_same_for_all_images_of_a_causal_model(make_worker):
    worker = make_worker(make_run())
    result = worker.shard(load(worker.run, 3))
    place = result.extra["features"]["decoder"]["positions"].index("before")
    kept = result.arrays["features/decoder"][:, :, place].astype(np.float32)
    np.testing.assert_allclose(kept, kept[:1].repeat(3, axis=0), atol=2e-3)
    assert np.abs(kept[:, 0]).max() > 0


@pytest.mark.parametrize("model", MODELS)
def test_the_fast_way_to_prepare_an_image_gives_what_the_adapter_gives(model, make_worker):
    worker = make_worker(make_run(model))
    images = [*load(worker.run, 4), *load(make_run(data__width=150, data__height=90), 3)]
    for one in images:
        fast, plain = worker.prepare(one.image), worker.adapter.prepare(one.image, worker.run.capture.prompt)
        assert fast.keys() == plain.keys()
        assert all(torch.equal(fast[key], plain[key]) for key in plain)
    assert worker.prepare._same == {(112, 112, 3): True, (90, 150, 3): True}


def test_a_processor_whose_prompt_depends_on_pixels_is_used_as_it_is(make_worker, monkeypatch):
    worker = make_worker(make_run())
    prepare = worker.adapter.prepare

    def prepare_by_brightness(image, prompt):
        example = prepare(image, prompt)
        return {**example, "attention_mask": example["attention_mask"] * int(image.mean())}

    monkeypatch.setattr(worker.adapter, "prepare", prepare_by_brightness)
    for one in load(worker.run, 5):
        expected = prepare_by_brightness(one.image, worker.run.capture.prompt)
        found = worker.prepare(one.image)
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_rows_of_images_and_features_are_in_the_order_of_the_shard(make_worker):
    worker = make_worker(make_run())
    images = load(worker.run, 5)[::-1]
    result = worker.shard(images)
    assert result.tables["images"]["image_id"].to_list() == [one.image_id for one in images]
    assert result.tables["layer_metrics"]["image_id"].unique(maintain_order=True).to_list() == [
        one.image_id for one in images
    ]
    alone = worker.shard(images[-1:])
    np.testing.assert_allclose(
        result.arrays["features/decoder"][-1], alone.arrays["features/decoder"][0], rtol=2e-3, atol=1e-3
    )


def test_images_of_different_size_share_positions(make_worker):
    worker = make_worker(make_run())
    small, large = load(worker.run, 1), load(make_run(data__width=200, data__height=150), 2)[1:]
    result = worker.shard([*small, *large])
    assert result.tables["images"]["width"].to_list() == [112, 200]
    assert len(result.arrays["features/decoder"]) == 2


def test_features_are_kept_only_when_asked_for(make_worker):
    result = make_worker(make_run(capture__keep_features=False)).shard(load(make_run(), 2))
    assert not [name for name in result.arrays if name.startswith("feature")]
    assert result.extra["features"] == {}
    assert result.n_images == 2


def test_layers_and_metrics_asked_for_are_the_ones_kept(make_worker):
    run = make_run(capture__layers=[0, 4], capture__metrics=["gini"], capture__taps=["decoder"])
    result = make_worker(run).shard(load(run, 2))
    table = result.tables["layer_metrics"]
    assert set(table["layer"]) == {0, 4}
    assert table.columns[-1] == "gini"
    assert result.extra["features"]["decoder"]["layers"] == [0, 4]


def test_a_layer_the_model_lacks_is_named_before_any_image(make_worker):
    with pytest.raises(ModelError, match="no layer 99"):
        make_worker(make_run(capture__layers=[0, 99]))


# ---------------------------------------------------------------- what goes wrong


def test_memory_running_out_halves_the_batch_and_loses_nothing(make_worker, monkeypatch):
    worker = make_worker(make_run(how__batch_size=8))
    images = load(worker.run, 11)
    expected = worker.shard(images)
    run, sizes = worker.adapter.run, []

    def run_with_little_memory(batch, **options):
        sizes.append(len(batch["input_ids"]))
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return run(batch, **options)

    monkeypatch.setattr(worker.adapter, "run", run_with_little_memory)
    result = worker.shard(images)
    assert sizes[:3] == [8, 4, 2]
    assert max(sizes[2:]) == 2, "the smaller batch is kept"
    assert result.n_images == 11
    for name in expected.tables:
        assert_frame_equal(result.tables[name], expected.tables[name], rel_tol=2e-4, abs_tol=1e-5)


def test_an_image_too_large_by_itself_is_recorded(make_worker, monkeypatch):
    worker = make_worker(make_run(how__batch_size=4))
    images = load(worker.run, 4)
    run = worker.adapter.run
    poison = worker.adapter.prepare(images[2].image, worker.run.capture.prompt)["pixel_values"]

    def run_out(batch, **options):
        if any(torch.equal(pixels[None], poison) for pixels in batch["pixel_values"]):
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return run(batch, **options)

    monkeypatch.setattr(worker.adapter, "run", run_out)
    result = worker.shard(images)
    assert result.tables["rejected"].to_dicts() == [
        {"image_id": images[2].image_id, "index": 2, "reason": "out of memory with this image alone"}
    ]
    assert result.tables["images"]["index"].to_list() == [0, 1, 3]


def test_other_errors_of_the_model_are_not_taken_for_memory(make_worker, monkeypatch):
    worker = make_worker(make_run())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))

    def broken(*_, **__):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(worker.adapter, "run", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        worker.shard(load(worker.run, 1))


def test_states_that_are_not_finite_reject_their_image_alone(make_worker):
    worker = make_worker(make_run(how__batch_size=3))
    images = load(worker.run, 3)
    layer = worker.adapter.layers[2]

    def spoil(_, __, output):
        hidden = output[0] if isinstance(output, tuple) else output
        hidden[1, -1, 0] = torch.inf
        hidden[1, hidden.shape[1] // 2, 0] = torch.nan

    handle = layer.register_forward_hook(spoil)
    try:
        result = worker.shard(images)
    finally:
        handle.remove()
    assert result.tables["rejected"]["index"].to_list() == [1]
    assert "not finite at decoder layer 3" in result.tables["rejected"]["reason"][0]
    assert result.n_images == 2


def test_large_states_are_stored_with_their_scale(make_worker):
    worker = make_worker(make_run(capture__taps=["decoder"]))
    images = load(worker.run, 2)
    plain = worker.shard(images)

    def enlarge(_, args):
        return (args[0] * 1e6, *args[1:])

    handle = worker.adapter.final_norm.register_forward_pre_hook(enlarge, prepend=True)
    try:
        result = worker.shard(images)
    finally:
        handle.remove()
    assert result.extra["features"]["decoder"]["scaled"]
    scales = result.arrays["feature_scales/decoder"]
    assert (scales[:, :-1] == 1).all()
    back = result.arrays["features/decoder"][:, -1].astype(np.float64) * scales[:, -1, :, None]
    np.testing.assert_allclose(
        back, plain.arrays["features/decoder"][:, -1].astype(np.float64) * 1e6, rtol=3e-3, atol=3e3
    )


def test_a_broken_image_is_recorded_with_its_reason():
    source = make_source(make_run().data)

    class Broken:
        ids = source.ids

        def load(self, index):
            if index == 1:
                raise DataError("000001.jpg: missing file")
            if index == 2:
                raise ZeroDivisionError("division by zero")
            return source.load(index)

    images = load_shard(Broken(), range(4))
    assert [one.reason for one in images] == [
        None,
        "000001.jpg: missing file",
        "ZeroDivisionError: division by zero",
        None,
    ]


def test_a_shard_of_broken_images_is_a_shard(make_worker):
    worker = make_worker(make_run())
    images = [Loaded(k, f"image-{k}", None, {}, "missing file") for k in range(3)]
    result = worker.shard(images)
    assert (result.n_images, result.n_rejected) == (0, 3)
    whole = worker.shard(load(worker.run, 2))
    for name, table in result.tables.items():
        assert table.schema == whole.tables[name].schema


def test_a_shard_survives_the_way_between_processes():
    images = load(make_run(), 3)
    images[1] = Loaded(1, "broken", None, {}, "missing file")
    shard, back = from_row(to_row(7, images))
    assert shard == 7
    for one, two in zip(images, back, strict=True):
        assert (one.index, one.image_id, one.reason) == (two.index, two.image_id, two.reason)
        assert json.dumps(dict(one.attributes)) == json.dumps(dict(two.attributes))
        assert (one.image is None) == (two.image is None)
        assert one.image is None or np.array_equal(one.image, two.image)


def test_two_threads_of_an_actor_give_what_one_gives(make_worker):
    worker = make_worker(make_run())
    shards = [load(worker.run, 12)[k : k + 4] for k in (0, 4, 8)]
    expected = [worker.shard(images) for images in shards]
    found: dict[int, object] = {}
    threads = [
        threading.Thread(target=lambda k=k: found.update({k: worker.shard(shards[k])})) for k in range(len(shards))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, result in enumerate(expected):
        for name, table in result.tables.items():
            assert_frame_equal(found[k].tables[name], table)


def test_captured_tables_name_the_source_and_its_attributes(make_worker):
    worker = make_worker(make_run())
    table = worker.shard(load(worker.run, 2)).tables["images"]
    assert set(table["source"]) == {"scenes"}
    assert set(make_source(worker.run.data).attribute_kinds) <= set(table.columns)


def test_default_taps_can_be_added_to():
    adapter = load_adapter(ModelConfig(name="reference-joint"))
    run = RunConfig.model_validate({"capture": {"taps": ["default", "encoder", "projector"]}})
    assert list(select_taps(adapter, run)) == ["decoder", "projector", "encoder"]
