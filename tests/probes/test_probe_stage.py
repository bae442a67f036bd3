"""The probe stage on a small capture made by hand: blocks, resume, storage, and what its table says."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from orchestrator.config import CaptureConfig, HowConfig, ProbeConfig, RunConfig, ScenesConfig
from orchestrator.data.source import make_source
from orchestrator.errors import ConfigError, DataError
from orchestrator.probes import probe_stage as probes_stage
from orchestrator.probes.features import Features
from orchestrator.probes.summary import redundancy
from orchestrator.report.probe_views import by_kind, first_layers
from orchestrator.store.filesystem import Storage
from orchestrator.store.stage_folder import Stage
from tests.points import probe_stage, run_probes

POSITIONS = ["vision_mean", "vision_00", "vision_01", "text_mean", "text_00", "last"]
LAYERS = [0, 2, 4]
SCENES = ScenesConfig(n_images=60, width=32, height=32, n_objects=(1, 6), shapes=("circle", "square"))


def make_run(**probe: Any) -> RunConfig:
    settings = {"n_folds": 3, "penalties": (1e-2, 1.0), "n_bootstrap": 50, "solvers": ("ridge", "logistic"), **probe}
    return RunConfig(data=SCENES, capture=CaptureConfig(), probe=ProbeConfig(**settings))


def make_capture(storage: Storage, *, copy: bool = False) -> Stage:
    """Two shards of noise. Number of objects: in every vision token at layer 2 and 4, in text from layer 4 on."""
    source = make_source(SCENES)
    places = [3 if copy and i == 50 else i for i in range(len(source))]
    rows = [
        {"image_id": name, "source": "scenes", "index": i, "width": 32, "height": 32, **source.load(i).attributes}
        for name, i in zip(source.ids, places, strict=True)
    ]
    images = pl.DataFrame(rows)
    random = np.random.default_rng(0)
    features = random.normal(size=(len(rows), len(LAYERS), len(POSITIONS), 6))
    count = images["n_objects"].to_numpy()
    features[:, 1:, :3, 2] += 2 * count[:, None, None]
    features[:, 2, 3:5, 2] += 2 * count[:, None]
    if copy:
        features[50] = features[3] + 1e-3  # as another batch may round it
    features[:, 0, 3:] = 1.0  # the prompt alone, before any layer has read the image
    capture = Stage(storage, "capture", {"n": len(rows), "copy": copy})
    capture.open({})
    kept = {"features": {"decoder": {"layers": LAYERS, "positions": POSITIONS}}}
    for shard, part in enumerate((slice(0, 40), slice(40, 60))):
        arrays = {"features/decoder": features[part].astype(np.float16)}
        capture.write_shard(shard, {"images": images[part]}, arrays, kept)
    capture.mark_done()
    return capture


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return Storage(str(tmp_path_factory.mktemp("results")))


@pytest.fixture(scope="module")
def capture(storage: Storage) -> Stage:
    return make_capture(storage)


@pytest.fixture(scope="module")
def probes(storage: Storage, capture: Stage) -> pl.DataFrame:
    stage = run_probes(make_run(), storage, capture, quiet=True)
    assert stage.is_done()
    return stage.scan("probes").collect()


def test_every_block_attribute_and_the_pixel_baseline_are_in_the_table(probes: pl.DataFrame) -> None:
    kinds = make_source(SCENES).attribute_kinds
    assert probes.filter(tap="decoder").height == len(LAYERS) * len(POSITIONS) * len(kinds)
    assert probes.filter(tap="pixels").select("layer", "position").unique().rows() == [(0, "pixels")]
    assert set(probes.filter(pl.col("score").is_null())["reason"].is_null()) <= {False}


def test_an_interrupted_stage_computes_only_what_is_missing(
    storage: Storage, capture: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(attributes=("n_objects",), seed=1)
    calls: list[int] = []
    fit_block = probes_stage.fit_block

    def interrupted(work: Any, index: int, device: str) -> None:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(index)
        fit_block(work, index, device)

    monkeypatch.setattr(probes_stage, "fit_block", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_probes(run, storage, capture, quiet=True)
    stage = probe_stage(run, storage, capture)
    assert not stage.is_done()
    monkeypatch.setattr(probes_stage, "fit_block", lambda *args: calls.append(args[1]) or fit_block(*args))
    monkeypatch.setattr(probes_stage, "load_pixels", None)  # nor are the images loaded again
    run_probes(run, storage, capture, quiet=True)
    assert calls == [0, 1, 2, 3]
    run_probes(run, storage, capture, quiet=True)
    assert calls == [0, 1, 2, 3]


def test_an_object_store_gives_the_same_table_as_a_disk(probes: pl.DataFrame) -> None:
    remote = Storage(f"memory://probes-{uuid.uuid4().hex}")
    stage = run_probes(make_run(), remote, make_capture(remote), quiet=True)
    found = [stage.store.read(f"probes/{i:05d}.parquet") for i in stage.finished_shards()]
    table = pl.concat([pl.read_parquet(part) for part in found])
    assert table.equals(probes)


@pytest.mark.parametrize("controls", [("shuffled",), ("shuffled", "pixels")])
def test_a_copied_image_is_left_out_and_counted(tmp_path: Path, controls: tuple[str, ...]) -> None:
    capture = make_capture(Storage(str(tmp_path)), copy=True)
    run = make_run(attributes=("n_objects",), controls=controls, layers=(2,))
    stage = run_probes(run, Storage(str(tmp_path)), capture, quiet=True)
    assert stage.summary()["copies_left_out"] == 1
    assert set(stage.scan("probes").select(pl.col("n_train") + pl.col("n_test")).collect()["n_train"]) == {59}


def test_states_that_are_the_same_for_every_image_make_no_copies_of_them(storage: Storage, capture: Stage) -> None:
    run = make_run(attributes=("n_objects",), controls=("shuffled",), layers=(0,), positions=("text_mean", "last"))
    stage = run_probes(run, storage, capture, quiet=True)
    assert stage.summary()["copies_left_out"] == 0
    table = stage.scan("probes").collect()
    assert table["score"].to_list() == pytest.approx(table["baseline"].to_list(), abs=1e-5)


def test_names_that_were_not_captured_are_refused_before_any_work(storage: Storage, capture: Stage) -> None:
    for setting, message in (
        (
            {"positions": ("vision_mea",)},
            "probe.positions: nothing was captured at 'vision_mea'. Did you mean 'vision_mean'",
        ),
        ({"layers": (2, 5)}, "probe.layers: nothing was captured at 5"),
        ({"taps": ("decodr",)}, "probe.taps: nothing was captured at 'decodr'. Did you mean 'decoder'"),
        ({"attributes": ("n_object",)}, "probe.attributes: unknown attribute 'n_object'. Did you mean 'n_objects'"),
    ):
        run = make_run(**setting)
        with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
            run_probes(run, storage, capture, quiet=True)
        assert not probe_stage(run, storage, capture).store.exists("stage.json")


def test_a_capture_without_features_says_how_to_keep_them(tmp_path: Path) -> None:
    capture = Stage(Storage(str(tmp_path)), "capture", {})
    capture.open({})
    capture.write_shard(0, {"images": pl.DataFrame({"image_id": ["a"]})})
    with pytest.raises(DataError, match=r"features to probe: set capture\.keep_features=true"):
        Features(capture)


def test_the_summaries_find_where_the_number_of_objects_was_planted(probes: pl.DataFrame) -> None:
    count = probes.filter(pl.col("attribute") == "n_objects")
    shares = redundancy(count).filter(share=0.8)
    assert shares.select("layer", "reached", "n_tokens").rows() == [(2, 1.0, 2), (4, 1.0, 2)]
    first = first_layers(count).select("position_kind", "first_layer").rows()
    assert sorted(first) == [("text_mean", 4), ("vision_mean", 2)]
    single = by_kind(count).filter(tap="decoder", position_kind="vision_single")
    assert single["layer"].to_list() == LAYERS
    assert (single["score"] > 0.8).to_list() == [False, True, True]


def test_the_directory_depends_on_the_settings_and_the_capture_alone(storage: Storage, capture: Stage) -> None:
    stage = probe_stage(make_run(), storage, capture)
    assert (
        stage.digest
        == probe_stage(make_run().model_copy(update={"how": HowConfig(batch_size=3)}), storage, capture).digest
    )
    for change in ({"seed": 5}, {"search_trials": 9}):
        assert stage.digest != probe_stage(make_run(**change), storage, capture).digest


def test_small_pictures_are_vouched_for_and_made_again_where_they_are_damaged(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    run, capture = make_run(attributes=("n_objects",), solvers=("ridge",), n_bootstrap=0), make_capture(storage)
    stage = run_probes(run, storage, capture, quiet=True)
    before = stage.scan("probes").collect()
    file = Path(stage.store.path("pixels.npy"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    damaged = {index: stage.check_shard(index)[0] for index in stage.written_shards()}
    (place,) = [index for index, problem in damaged.items() if problem]
    assert "pixels.npy" in str(damaged[place])
    stage.store.remove("_SUCCESS")
    stage.store.remove(f"shards/{place:05d}.json")
    again = run_probes(run, storage, capture, quiet=True)
    assert again.scan("probes").collect().equals(before)
    assert all(again.check_shard(index)[0] is None for index in again.written_shards())
