"""Designed scenes: levels are met exactly, factors are independent, what cannot be drawn is named before work."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import spearmanr

from orchestrator.config import SceneDesign, ScenesConfig
from orchestrator.data.associations import associations, roles_of, strongest
from orchestrator.data.attributes import SHAPE_AREA, hidden_share, scene_attributes
from orchestrator.data.design import FACTORS, cell_of, check_design
from orchestrator.data.designed import OCCLUSION_TOLERANCE, make_designed_scene
from orchestrator.data.packing import place
from orchestrator.data.render import render
from orchestrator.data.scenes import GAP_PX, SceneObject
from orchestrator.data.source import ScenesSource
from orchestrator.errors import ConfigError

RICH = SceneDesign(
    occlusion=(0.0, 0.1, 0.2), texture=(0.0, 0.7), background_texture=(0.0, 1.0), lighting=(0.0, 1.0),
    background=("white", "gradient", "clutter"), size_mean=(0.05, 0.07), n_objects=(4, 8, 16),
)  # fmt: skip
EXACT = ("n_objects", "size_mean", "size_spread", "n_colours", "n_shapes", "spatial_spread")


def levels_of(config: ScenesConfig, n: int) -> np.ndarray:
    """Places of the levels of the factors that vary, (n, factors)."""
    varied = check_design(config).factors
    cells = [cell_of(config, index) for index in range(n)]
    return np.array([[values.index(cell[name]) for name, values in varied.items()] for cell in cells])


@pytest.mark.parametrize("design", [SceneDesign(), RICH], ids=["default", "rich"])
def test_every_level_is_met_exactly(design: SceneDesign) -> None:
    config = ScenesConfig(design=design, seed=3)
    for index in range(60):
        cell, scene = cell_of(config, index), make_designed_scene(config, index)
        found = scene_attributes(scene)
        for name in EXACT:
            assert found[name] == pytest.approx(cell[name], abs=1e-9), name
        assert hidden_share(scene.objects) == pytest.approx(cell["occlusion"], abs=OCCLUSION_TOLERANCE)
        for thing in scene.objects:
            assert thing.size / 2 - 1e-6 <= thing.x <= config.width - thing.size / 2 + 1e-6
            assert thing.size / 2 - 1e-6 <= thing.y <= config.height - thing.size / 2 + 1e-6
        assert {name: getattr(scene, name) for name in FACTORS[-4:]} == {name: cell[name] for name in FACTORS[-4:]}


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 10**6),
    numbers=st.sets(st.integers(4, 24), min_size=2, max_size=4),
    colours=st.sets(st.integers(1, 4), min_size=2),
    layouts=st.sets(st.sampled_from([0.35, 0.4, 0.45, 0.5]), min_size=2),
    sizes=st.sets(st.sampled_from([0.04, 0.05, 0.06, 0.07]), min_size=2),
    n=st.integers(200, 500),
)
def test_factors_do_not_correlate_where_all_cells_are_possible(
    seed: int, numbers: set[int], colours: set[int], layouts: set[float], sizes: set[float], n: int
) -> None:
    design = SceneDesign(
        n_objects=tuple(numbers), n_colours=tuple(colours), spatial_spread=tuple(layouts), size_mean=tuple(sizes)
    )
    config = ScenesConfig(design=design, seed=seed)
    summary = check_design(config)
    assert summary.n_possible == summary.n_cells
    cells = [cell_of(config, index) for index in range(n)]
    values = np.array([[float(cell[name]) for name in summary.factors] for cell in cells])  # type: ignore[arg-type]
    rho = np.abs(spearmanr(values).statistic - np.eye(values.shape[1]))
    assert rho.max() < 0.1
    for k, levels in enumerate(summary.factors.values()):
        counts = np.unique(values[:, k], return_counts=True)[1]
        assert len(counts) == len(levels)
        assert counts.max() - counts.min() <= 0.1 * n


def test_every_pair_of_levels_comes_about_equally_often() -> None:
    levels = levels_of(ScenesConfig(design=SceneDesign()), 400)
    for j in range(levels.shape[1]):
        for k in range(j):
            counts = np.unique(levels[:, [j, k]], axis=0, return_counts=True)[1]
            expected = 400 / len(counts)
            assert np.abs(counts - expected).max() <= max(3, 0.2 * expected)


def test_impossible_cells_leave_the_other_factors_independent() -> None:
    config = ScenesConfig(design=SceneDesign(n_objects=(2, 4, 8), n_colours=(1, 2, 4)))
    summary = check_design(config)
    assert summary.n_possible < summary.n_cells
    coloured = [one.levels for one in summary.impossible if "n_colours" in one.levels]
    assert coloured == [{"n_objects": 2, "n_colours": 4}]
    cells = [cell_of(config, index) for index in range(300)]
    assert not any((cell["n_objects"], cell["n_colours"]) == (2, 4) for cell in cells)
    names = ("n_objects", "size_mean", "spatial_spread")
    values = np.array([[float(cell[name]) for name in names] for cell in cells])  # type: ignore[arg-type]
    assert np.abs(spearmanr(values).statistic - np.eye(3)).max() < 0.1


def test_the_number_of_cells_left_out_counts_each_cell_once() -> None:
    summary = check_design(ScenesConfig(design=SceneDesign(n_objects=(2, 8), n_colours=(1, 4), n_shapes=(1, 4))))
    assert summary.n_cells == 2 * 3 * 2 * 2 * 2 * 2
    assert summary.n_possible == summary.n_cells - 3 * 2 * 2 * 3  # two objects: of four pairs one is left


@pytest.mark.parametrize(
    ("design", "words"),
    [
        ({"n_objects": (3,), "n_colours": (1, 4)}, r"n_colours: no scene can have 4 .*3 objects have fewer"),
        ({"n_colours": (11,), "n_objects": (20,)}, "scenes have 10 of them"),
        ({"n_objects": (32,), "size_mean": (0.05, 0.2)}, r"size_mean: no scene can have 0.2 .*of their room"),
        ({"size_mean": (0.02,), "size_spread": (0.01,)}, "smallest object would have"),
        ({"spatial_spread": (0.9,)}, "apart on this canvas"),
    ],
)
def test_what_no_scene_can_have_is_named_before_work(design: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ScenesSource(ScenesConfig(design=SceneDesign(**design)))


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"design": {}, "n_objects": (1, 50)}, r"set design\.n_objects"),
        ({"design": {}, "overlap": True}, r"set design\.occlusion"),
        ({"design": {"n_objects": (1, 4)}}, "one object has no layout"),
        ({"design": {"n_shapes": (2, 2)}}, "distinct levels"),
        ({"design": {"n_shapes": ()}}, "one or more distinct"),
    ],
)
def test_settings_that_contradict_a_design_are_refused(settings_: dict, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ScenesConfig(**settings_)


def test_a_scene_does_not_depend_on_the_number_of_images_or_on_what_was_made_before() -> None:
    few, many = (ScenesConfig(design=SceneDesign(), n_images=n, seed=5) for n in (10, 5000))
    later = make_designed_scene(many, 1203)
    assert make_designed_scene(few, 7) == make_designed_scene(many, 7)
    assert make_designed_scene(many, 1203) == later


def test_the_attributes_are_the_factors_that_vary_and_what_derives_from_them() -> None:
    source = ScenesSource(ScenesConfig(design=RICH, n_images=200))
    kinds = set(source.attribute_kinds)
    assert {"n_objects", "occlusion", "texture", "background_texture", "lighting", "background", "coverage"} <= kinds
    assert "occlusion" not in ScenesSource(ScenesConfig(design=SceneDesign())).attribute_kinds
    rows = [source.attributes(index) for index in range(200)]
    assert all(set(row) == kinds for row in rows)
    names = [name for name, kind in source.attribute_kinds.items() if kind != "categorical"]
    pairs = associations({name: [row[name] for row in rows] for name in names}, roles_of(source))
    for name in ("size_mean", "size_spread", "spatial_spread"):  # equal levels are tied, whatever rounding left
        assert {row[name] for row in rows} == set(getattr(RICH, name))
    among = strongest(pairs, "factor", "factor")
    derived = strongest(pairs, "derived", "factor")
    assert among is not None
    assert derived is not None
    assert abs(among.rho) < 0.06
    assert abs(derived.rho) > 0.5  # coverage follows number and size: named, not hidden


def test_discs_keep_apart_at_the_spread_asked_for() -> None:
    rng = np.random.default_rng(0)
    radii = rng.uniform(5, 15, 30)
    centres = place(rng, radii, [np.zeros((1, 2))] * 30, 90.0, 336, 336, GAP_PX)
    assert centres is not None
    assert math.sqrt(centres.var(0).sum()) == pytest.approx(90.0, abs=1e-6)
    distance = np.hypot(*(centres[:, None] - centres).transpose(2, 0, 1)) + 1e6 * np.eye(30)
    assert (distance >= radii[:, None] + radii + GAP_PX - 1e-6).all()
    assert place(rng, np.full(30, 40.0), [np.zeros((1, 2))] * 30, 90.0, 336, 336, GAP_PX) is None


def test_the_hidden_share_is_that_of_the_area() -> None:
    under = SceneObject("square", "red", 50.0, 50.0, 40.0, 0.0)
    side = 40 / math.sqrt(2)
    over = under._replace(x=50 + side / 2)
    assert hidden_share([under, over]) == pytest.approx(0.25, abs=0.01)
    assert hidden_share([under, under]) == pytest.approx(0.5, abs=0.01)
    assert hidden_share([under, over._replace(x=120.0)]) == pytest.approx(0.0, abs=0.005)
    disc = under._replace(shape="circle", size=10.0)
    areas = [SHAPE_AREA[thing.shape] * (thing.size / 2) ** 2 for thing in (under, disc)]
    assert hidden_share([under, disc]) == pytest.approx(areas[1] / sum(areas), rel=0.05)  # drawn edges


def test_light_and_texture_change_pixels_and_not_the_truth() -> None:
    plain, lit = (make_designed_scene(ScenesConfig(design=SceneDesign(lighting=(v,))), 1) for v in (0.0, 1.0))
    assert plain.objects == lit.objects
    first, second = (render(scene).astype(float) for scene in (plain, lit))
    white = (first == 255).all(-1)
    assert second[white].min() < 165 < 250 < second[white].max()
    textured = make_designed_scene(ScenesConfig(design=SceneDesign(background_texture=(1.0,))), 1)
    third = render(textured).astype(float)
    assert 200 <= third[white].min() < 215
    assert np.array_equal(render(textured), third.astype(np.uint8))
