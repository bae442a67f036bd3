"""Designed scenes: number, sizes, colours, shapes, layout and occlusion at the levels of a cell."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from orchestrator.config import ScenesConfig
from orchestrator.data.attributes import SHAPE_AREA, hidden_share
from orchestrator.data.design import Cell, cell_of, object_sizes, occluded_pairs, spread_px
from orchestrator.data.packing import place
from orchestrator.data.scenes import GAP_PX, MAX_ANGLE, Scene, SceneObject, colours_of, shapes_of
from orchestrator.errors import ConfigError

OCCLUSION_TOLERANCE = 0.02
"""Tolerance of the measured occlusion."""
_TRIES = 40
_HALVINGS = 10
_CLOSEST = 0.15
"""Minimum distance of the centres of a pair, in sums of radii: the occluded object always stays partly visible."""


def make_designed_scene(config: ScenesConfig, index: int) -> Scene:
    """Make designed scene number `index`; it depends on (settings, seed, index) only.

    Raises ConfigError if the cell's objects cannot be placed.
    """
    cell = cell_of(config, index)
    rng = np.random.default_rng(np.random.SeedSequence([config.seed, index, 0xDE51]))
    for _ in range(_TRIES):
        objects = _draw(config, cell, rng)
        if objects is not None:
            return Scene(
                config.seed,
                index,
                config.width,
                config.height,
                objects,
                str(cell["background"]),
                _number(cell, "texture"),
                config.noise,
                "scene",
                _number(cell, "background_texture"),
                _number(cell, "lighting"),
            )
    levels = ", ".join(f"{name}={value}" for name, value in cell.items())
    raise ConfigError(f"data.design: no scene found in {_TRIES} tries for {levels}; leave one of these levels out")


def _number(cell: Cell, name: str) -> float:
    value = cell[name]
    assert isinstance(value, int | float)
    return float(value)


def _draw(config: ScenesConfig, cell: Cell, rng: np.random.Generator) -> tuple[SceneObject, ...] | None:
    n = int(_number(cell, "n_objects"))
    # large first: later objects cover earlier ones
    sizes = object_sizes(_number(cell, "size_mean"), _number(cell, "size_spread"), n, config)[::-1]
    colours = _names(colours_of(config), int(_number(cell, "n_colours")), n, rng)
    shapes = _names(shapes_of(config), int(_number(cell, "n_shapes")), n, rng)
    angles = rng.uniform(-MAX_ANGLE, MAX_ANGLE, n).tolist()
    scene_objects = [
        SceneObject(shape, colour, 0.0, 0.0, size, angle)
        for shape, colour, size, angle in zip(shapes, colours, sizes.tolist(), angles, strict=True)
    ]
    level = _number(cell, "occlusion")
    groups = _pairs(scene_objects, level, rng) if level else [[(k, np.zeros(2))] for k in range(n)]
    order = [k for group in groups for k, _ in group]
    middles = [
        _middle([scene_objects[k].size / 2 for k, _ in group], [offset for _, offset in group]) for group in groups
    ]
    offsets = [
        np.stack([offset for _, offset in group]) - middle for group, (middle, _) in zip(groups, middles, strict=True)
    ]
    radii = np.array([radius for _, radius in middles])
    spread = spread_px(_number(cell, "spatial_spread"), config)
    centres = place(rng, radii, offsets, spread, config.width, config.height, GAP_PX)
    if centres is None:
        return None
    at = np.concatenate([centre + part for centre, part in zip(centres, offsets, strict=True)])
    placed = {k: scene_objects[k]._replace(x=float(x), y=float(y)) for k, (x, y) in zip(order, at, strict=True)}
    objects = tuple(placed[k] for k in range(n))
    if level and abs(hidden_share(objects) - level) > OCCLUSION_TOLERANCE:
        return None
    return objects


def _names(known: tuple[str, ...], n_names: int, n: int, rng: np.random.Generator) -> list[str]:
    """n names, exactly `n_names` of them distinct, in random order."""
    chosen = rng.permutation(len(known))[:n_names]
    picked = np.concatenate([chosen, rng.choice(chosen, n - n_names)])
    return [known[i] for i in rng.permutation(picked)]


def _pairs(
    objects: list[SceneObject], level: float, rng: np.random.Generator
) -> list[list[tuple[int, Float[np.ndarray, " 2"]]]]:
    """Groups of (object, offset): each object of the smaller half covers one of the larger half, so that `level` is
    occluded.

    The remaining occlusion is divided equally among the remaining pairs.
    """
    n = len(objects)
    n_pairs = occluded_pairs(n)
    under = rng.permutation(n_pairs).tolist()
    over = list(range(n - n_pairs, n))
    area = [_area(item) for item in objects]
    to_hide = level * sum(area)
    groups: list[list[tuple[int, np.ndarray]]] = [[(k, np.zeros(2))] for k in range(n_pairs, n - n_pairs)]
    for left, (below, above) in enumerate(zip(under, over, strict=True)):
        angle = rng.uniform(0, 2 * np.pi)
        direction = np.array([np.cos(angle), np.sin(angle)])
        reach = (objects[below].size + objects[above].size) / 2
        both = area[below] + area[above]
        share = to_hide / (n_pairs - left) / both
        near, far = _CLOSEST, 1.0
        for _ in range(_HALVINGS):
            distance = (near + far) / 2
            moved = objects[above]._replace(x=distance * reach * direction[0], y=distance * reach * direction[1])
            hidden = hidden_share([objects[below], moved])
            near, far = (distance, far) if hidden > share else (near, distance)
        to_hide -= hidden * both
        groups.append([(below, np.zeros(2)), (above, distance * reach * direction)])
    return groups


def _area(item: SceneObject) -> float:
    return SHAPE_AREA[item.shape] * (item.size / 2) ** 2


def _middle(radii: list[float], offsets: list[Float[np.ndarray, " 2"]]) -> tuple[Float[np.ndarray, " 2"], float]:
    """Centre and radius of the smallest disc around one or two discs."""
    if len(radii) == 1:
        return offsets[0], radii[0]
    gap = offsets[1] - offsets[0]
    distance = float(np.hypot(*gap))
    radius = max((distance + sum(radii)) / 2, *radii)
    if radius == max(radii):
        return offsets[int(np.argmax(radii))], radius
    return offsets[0] + gap / distance * (radius - radii[0]), radius
