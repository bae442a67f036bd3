"""Attributes against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config import ScenesConfig
from orchestrator.data.attributes import (
    COCO_ATTRIBUTES,
    SCENE_ATTRIBUTES,
    coco_attributes,
    scene_attributes,
    union_area,
)
from orchestrator.data.scenes import Scene, SceneObject, make_scene


def test_scene_attributes_equal_hand_computed_values() -> None:
    scene = Scene(
        0,
        0,
        300,
        400,
        (
            SceneObject("square", "red", 100, 100, 30, 0.0),
            SceneObject("square", "blue", 200, 100, 60, 0.0),
            SceneObject("diamond", "blue", 100, 300, 60, 0.0),
        ),
    )
    found = scene_attributes(scene)
    # Squares of diameter s cover s^2 / 2; the diamond's half-axes are 30 and 16.5 px.
    area = 450 + 1800 + 2 * 30 * 16.5
    length = 4 * 30 / math.sqrt(2) + 4 * 60 / math.sqrt(2) + 4 * math.hypot(30, 16.5)
    centre = (400 / 3, 500 / 3)
    spread = sum((x - centre[0]) ** 2 + (y - centre[1]) ** 2 for x, y in ((100, 100), (200, 100), (100, 300))) / 3
    assert found["n_objects"] == 3
    assert found["n_shapes"] == 2
    assert found["n_colours"] == 2
    assert found["dominant_colour"] == "blue"
    assert found["dominant_shape"] == "square"
    assert found["coverage"] == pytest.approx(area / 120_000)
    assert found["size_mean"] == pytest.approx(0.5 / 3)
    assert found["size_spread"] == pytest.approx(np.std([0.1, 0.2, 0.2]))
    assert found["spatial_spread"] == pytest.approx(math.sqrt(spread) / 250)
    assert found["nearest_distance"] == pytest.approx((100 + 100 + 200) / 3 / 500)
    assert found["clutter"] == pytest.approx(length / math.sqrt(120_000))
    assert list(found) == list(SCENE_ATTRIBUTES)


def test_equal_counts_are_decided_by_area() -> None:
    things = (SceneObject("square", "red", 20, 20, 10, 0.0), SceneObject("circle", "blue", 50, 50, 30, 0.0))
    found = scene_attributes(Scene(0, 0, 80, 80, things))
    assert found["dominant_colour"] == "blue"
    assert found["dominant_shape"] == "circle"


def test_a_lone_object_has_no_nearest_distance() -> None:
    found = scene_attributes(Scene(0, 0, 80, 80, (SceneObject("circle", "red", 40, 40, 20, 0.0),)))
    assert found["nearest_distance"] is None
    assert found["spatial_spread"] == 0.0
    assert found["coverage"] == pytest.approx(math.pi * 100 / 6400, rel=0.01)


def test_overlapping_objects_are_covered_once() -> None:
    square = SceneObject("square", "red", 40, 40, 40 * math.sqrt(2), 0.0)
    found = scene_attributes(Scene(0, 0, 100, 100, (square, square._replace(x=60.0, colour="blue"))))
    assert found["coverage"] == pytest.approx(0.24, rel=0.015)


def test_every_attribute_stays_in_its_range() -> None:
    for overlap in (False, True):
        config = ScenesConfig(width=160, height=120, n_objects=(1, 100), overlap=overlap)
        for index in range(20):
            found = scene_attributes(make_scene(config, index))
            for name in ("coverage", "size_mean", "spatial_spread"):
                assert 0 <= found[name] <= 1
            assert found["size_spread"] <= 0.5


def test_coco_attributes_equal_hand_computed_values() -> None:
    boxes = np.array([[0, 0, 50, 50], [25, 25, 50, 50], [150, 0, 50, 100]], dtype=float)
    found = coco_attributes(
        boxes, np.array([2000.0, 1000.0, 3000.0]), ["dog", "cat", "car"], ["animal", "animal", "vehicle"], 200, 100, 2
    )
    centres = np.array([[25, 25], [50, 50], [175, 50]])
    assert found == {
        "n_objects": 3,
        "n_crowds": 2,
        "n_categories": 3,
        "n_supercategories": 2,
        "dominant_supercategory": "animal",
        "coverage": pytest.approx((2500 + 2500 - 625 + 5000) / 20_000),
        "area_mean": pytest.approx(0.1),
        "area_spread": pytest.approx(np.std([0.1, 0.05, 0.15])),
        "spatial_spread": pytest.approx(math.sqrt(centres.var(0).sum()) / (math.hypot(200, 100) / 2)),
    }
    assert list(found) == list(COCO_ATTRIBUTES)


def test_an_image_without_objects_has_missing_values() -> None:
    found = coco_attributes(np.zeros((0, 4)), np.zeros(0), [], [], 200, 100, 1)
    assert found["n_objects"] == 0
    assert found["coverage"] == 0
    assert found["area_mean"] is None
    assert found["dominant_supercategory"] is None


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(*[st.integers(-5, 30)] * 2, *[st.integers(0, 30)] * 2), max_size=12))
def test_union_area_equals_counted_pixels(boxes: list[tuple[int, int, int, int]]) -> None:
    pixels = np.zeros((24, 32), dtype=bool)
    for x, y, w, h in boxes:
        pixels[max(0, y) : max(0, y + h), max(0, x) : max(0, x + w)] = True
    assert union_area(np.array(boxes, dtype=float).reshape(-1, 4), 32, 24) == pixels.sum()
