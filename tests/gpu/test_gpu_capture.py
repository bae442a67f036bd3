"""Capture on a GPU gives the CPU's tables and features; mixed sizes equal single images; memory may run out."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from orchestrator.capture.loading import Loaded, load_shard
from orchestrator.capture.pass_record import PassRecord
from orchestrator.capture.recorder import Recorder
from orchestrator.capture.shard_result import ShardResult
from orchestrator.capture.shard_worker import CaptureWorker
from orchestrator.capture.taps import Taps, default_taps
from orchestrator.capture.vision_quantiles import vision_quantiles
from orchestrator.compression.registry import METRICS
from orchestrator.config import CaptureConfig, RunConfig
from orchestrator.data.source import make_source
from orchestrator.models.adapter import Adapter
from orchestrator.models.batching import Batch
from orchestrator.models.random_models import random_adapter, random_example
from tests.gpu.conftest import loaded, make_run

pytestmark = pytest.mark.cuda

MODELS = ("reference-joint", "reference-cross")
BF16 = {"norms": 0.02, "gram": 0.05}
"""Median relative difference of a metric between a pass in bfloat16 and one in float32, by class of cost."""


def images_of(run: RunConfig) -> list[Loaded]:
    source = make_source(run.data)
    return load_shard(source, range(len(source)))


def captured(run: RunConfig, device: str) -> ShardResult:
    kinds = dict(make_source(run.data).attribute_kinds)
    worker = CaptureWorker(run, kinds, device=device, adapter=loaded(run.model.name, device, run.model.dtype))
    return worker.shard(images_of(run))


@pytest.mark.parametrize("spectrum", ["none", "exact"])
@pytest.mark.parametrize("model", MODELS)
def test_tables_and_features_in_float32_equal_those_of_the_cpu(model: str, spectrum: str, gpu: str) -> None:
    run = make_run(model, model__dtype="float32", **({} if spectrum == "none" else {"capture__spectrum": spectrum}))
    here, there = captured(run, "cpu"), captured(run, gpu)
    for name, array in here.arrays.items():
        np.testing.assert_allclose(there.arrays[name], array, rtol=5e-3, atol=5e-3, err_msg=name)
    tables = [result.tables["layer_metrics"] for result in (here, there)]
    keys = ["image_id", "tap", "layer", "group", "n_tokens"]
    assert tables[0].select(keys).equals(tables[1].select(keys))
    for name in set(tables[0].columns) - set(keys):
        a, b = (table[name].to_numpy() for table in tables)
        # directions of nearly equal singular values may mix; counts may fall either side of 90 %
        loose = name.startswith(("top5_alignment", "rank_90", "tokens_90"))
        np.testing.assert_allclose(b, a, rtol=0.02 if loose else 3e-3, atol=0.02 if loose else 1e-3, err_msg=name)


@pytest.mark.parametrize("model", MODELS)
def test_a_pass_in_bfloat16_differs_by_its_rounding_alone(model: str, gpu: str) -> None:
    tables = [
        captured(make_run(model, model__dtype=dtype), device).tables["layer_metrics"]
        for dtype, device in (("float32", "cpu"), ("bfloat16", gpu))
    ]
    for name in set(tables[0].columns) & set(METRICS):
        a, b = (table[name].to_numpy() for table in tables)
        valid = np.isfinite(a) & np.isfinite(b) & (np.abs(a) > 1e-3)
        if not valid.any():  # no token is massive, or a tap has no token of the other group
            continue
        difference = float(np.median(np.abs(b[valid] / a[valid] - 1)))
        print(f"bf16 {model} {name}: median relative difference {difference:.1e}")
        assert difference <= BF16[METRICS[name].needs], name


def record(adapter: Adapter, batch: Batch) -> PassRecord:
    config = CaptureConfig()
    quantiles = vision_quantiles(config.n_vision_positions, config.seed)
    names = [name for name in METRICS if METRICS[name].needs in ("norms", "gram")]
    recorder = Recorder(config, names, quantiles, {"decoder": adapter.n_layers + 1}, own_prompts=True)
    with torch.inference_mode(), Taps(adapter, default_taps(adapter), on_state=recorder):
        adapter.run(batch)
    return recorder.finish()


@pytest.mark.parametrize("family", ["llava_next", "qwen2_5_vl", "mllama", "gemma3"])
def test_a_batch_of_mixed_sizes_equals_single_images(family: str, gpu: str) -> None:
    adapter: Any = random_adapter(family)
    adapter.model.to(gpu)
    examples = [random_example(adapter, *size) for size in (((1, 1), 6, 1), ((2, 2), 4, 2), ((1, 2), 9, 3))]
    together = record(adapter, adapter.collate(examples))
    rows = {(row.tap, row.layer, row.group): row for row in together.rows}
    for place, example in enumerate(examples):
        for row in record(adapter, adapter.collate([example])).rows:
            among = rows[row.tap, row.layer, row.group]
            assert among.n_tokens[place] == row.n_tokens[0]
            np.testing.assert_allclose(among.values[:, place], row.values[:, 0], rtol=5e-3, atol=5e-3)


def test_running_out_of_memory_halves_the_batch_and_loses_nothing(gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(model__dtype="float32", how__batch_size=8)
    whole = captured(run, gpu)
    adapter = loaded("reference-joint", gpu, "float32")
    run_all, sizes = adapter.run, []

    def run_with_little_memory(batch: Batch, **options: Any) -> Any:
        sizes.append(len(batch["input_ids"]))
        if sizes[-1] > 3:
            torch.empty(2**50, device=gpu)  # the allocator's own error
        return run_all(batch, **options)

    monkeypatch.setattr(adapter, "run", run_with_little_memory)
    halved = captured(run, gpu)
    assert sizes[0] == 8
    assert max(sizes[-2:]) <= 3
    for name, table in whole.tables.items():
        assert table["image_id"].equals(halved.tables[name]["image_id"])
    values = [result.tables["layer_metrics"].select(pl.col(pl.Float32)).to_numpy() for result in (whole, halved)]
    np.testing.assert_allclose(values[1], values[0], rtol=5e-3, atol=5e-3)
