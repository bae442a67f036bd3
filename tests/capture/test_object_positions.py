"""Means over the tokens that show an object and those that show none, kept for probes."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from orchestrator.capture import positions
from orchestrator.capture.loading import from_row, load_shard, to_row
from orchestrator.config import ProbeConfig, RunConfig
from orchestrator.config.sweep import validate
from orchestrator.data.source import make_source
from orchestrator.errors import ConfigError
from orchestrator.probes.grid import fit_grid
from orchestrator.probes.split import make_split
from orchestrator.probes.targets import make_target
from tests.capture.conftest import load, make_run


def test_class_means_are_those_of_their_tokens_and_undefined_without_any() -> None:
    hidden = torch.randn(3, 2, 5, 4)
    classes = torch.zeros(2, 2, 5, dtype=torch.bool)
    classes[0, 0, [1, 3]], classes[0, 1, 2], classes[1, 1, :4] = True, True, True
    found = positions.class_means(hidden, classes)
    torch.testing.assert_close(found[:, 0, 0], hidden[:, 0, [1, 3]].mean(1))
    torch.testing.assert_close(found[:, 0, 1], hidden[:, 0, 2])
    torch.testing.assert_close(found[:, 1, 1], hidden[:, 1, :4].mean(1))
    assert found[:, 1, 0].isnan().all()


@pytest.mark.parametrize(("model", "tap"), [("reference-joint", "decoder"), ("reference-cross", "cross_v")])
def test_objects_and_background_are_kept_and_leave_all_else_as_it_is(make_worker, model: str, tap: str) -> None:
    keys = {"capture__layers": [0, 2], "capture__n_vision_positions": "all", "capture__taps": ["default", "encoder"]}
    plain = make_worker(make_run(model, **keys)).shard(load(make_run(model, **keys), 5))
    run = make_run(model, capture__object_positions=True, **keys)
    images = load(run, 5)
    worker = make_worker(run)
    shard = worker.shard(images)
    names = shard.extra["features"][tap]["positions"]
    assert names[-2:] == ["vision_object", "vision_background"]
    assert not set(names[-2:]) & set(shard.extra["features"]["encoder"]["positions"])
    features = shard.arrays[f"features/{tap}"].astype(np.float32)
    assert np.array_equal(features[:, :, :-2], plain.arrays[f"features/{tap}"], equal_nan=True)
    single = [k for k, name in enumerate(names) if name.startswith("vision_") and name[7:].isdigit()]
    for k, one in enumerate(images):
        assert one.image is not None
        example = worker.prepare(one.image, None)
        shown = worker._classes(one, example).numpy()
        assert shown.any(axis=1).any()
        for place, own in zip((-2, -1), shown, strict=True):
            expected = features[k][:, single][:, own].mean(1) if own.any() else np.nan
            assert np.allclose(features[k][:, place], expected, rtol=2e-3, atol=5e-3, equal_nan=True)


def test_boxes_travel_between_processes() -> None:
    images = load_shard(make_source(make_run().data), range(3))
    for sent, own in zip(from_row(to_row(0, images))[1], images, strict=True):
        assert sent.boxes is not None
        assert own.boxes is not None
        assert np.array_equal(sent.boxes.edges, own.boxes.edges)
        assert sent.boxes.size == own.boxes.size
        assert len(own.boxes.edges) == own.attributes["n_objects"]


def test_a_source_without_boxes_is_refused_before_work() -> None:
    tree = {"data": {"source": "folder", "root": "/nowhere"}, "capture": {"object_positions": True}}
    with pytest.raises(ConfigError, match=r"capture.object_positions.*scenes and coco.*folder"):
        validate(RunConfig, tree, "test")
    with pytest.raises(ConfigError, match="keep_features"):
        validate(RunConfig, {"capture": {"object_positions": True, "keep_features": False}}, "test")


def test_a_position_that_some_images_lack_is_probed_on_the_others_alone() -> None:
    """Equal to a grid over those images by themselves; every other position is as if nobody lacked any."""
    rng = np.random.default_rng(0)
    n = 160
    truth = rng.standard_normal(n)
    names = ["vision_mean", "vision_object", "vision_background"]
    features = rng.standard_normal((n, 3, 6)).astype(np.float32)
    features[:, :, 0] += 2 * truth[:, None]
    lacking = rng.permutation(n)[:40]
    features[lacking, 1] = np.nan
    targets, split = [make_target("x", "continuous", truth)], make_split(list(range(n)), 0.3, 4, 0)
    config = ProbeConfig(solvers=("ridge",), n_bootstrap=20)
    found = fit_grid(features, targets, config, split, tap="decoder", layer=1, positions=names)
    assert set(found["position"]) == set(names)
    by = {row["position"]: row for row in found.iter_rows(named=True)}
    rows = np.setdiff1d(np.arange(n), lacking)
    assert by["vision_object"]["n_train"] == len(np.intersect1d(split.train, rows))
    assert by["vision_object"]["n_test"] == len(np.intersect1d(split.test, rows))
    assert by["vision_object"]["score"] > 0.5
    assert by["vision_object"]["reason"] is None
    alone = fit_grid(
        features[:, [0, 2]], targets, config, split, tap="decoder", layer=1, positions=[names[0], names[2]]
    )
    others = found.filter(pl.col("position") != "vision_object").sort("position")
    assert others.equals(alone.sort("position"))
    features[3:, 1] = np.nan
    few = fit_grid(features, targets, config, split, tap="decoder", layer=1, positions=names)
    assert few.filter(pl.col("position") == "vision_object")["reason"].to_list() == ["only 3 images have such a token"]
