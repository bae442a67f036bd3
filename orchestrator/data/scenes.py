"""Synthetic scenes: 1 to 200 plain 2-D objects whose every attribute is known. A scene depends on (seed, index) alone.

Legend: `n` objects; arrays `x`, `y`, `size` in px, `angle` in degrees, all float64 of shape (n,).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from orchestrator.config import ScenesConfig
from orchestrator.errors import ConfigError, did_you_mean

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "heart", "ring")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 35),
    "green": (30, 150, 50),
    "blue": (30, 70, 215),
    "yellow": (250, 220, 20),
    "orange": (250, 135, 10),
    "purple": (135, 40, 165),
    "cyan": (40, 205, 220),
    "pink": (250, 150, 195),
    "brown": (125, 75, 35),
    "black": (15, 15, 15),
}
"""RGB of each colour, 0..255."""

MIN_SIZE_PX = 4.0
"""Objects never get smaller than this: below it their shape cannot be seen."""
MAX_FILL = 0.38
"""Share of the canvas that the circumscribed circles may fill; sizes shrink together beyond it. Random sequential
placement of discs jams near 0.547, so at this share it ends quickly."""
MAX_ANGLE = 12.0
"""Objects are turned by at most this many degrees, so that a square never looks like a diamond."""
GAP_PX = 1.0
"""Least distance between two circumscribed circles."""


class SceneObject(NamedTuple):
    """One object: centre (x, y) in px from the top left, y down; `size` is the diameter in px of its circumscribed
    circle; `angle` in degrees, counter-clockwise."""

    shape: str
    colour: str
    x: float
    y: float
    size: float
    angle: float


@dataclass(frozen=True)
class Scene:
    """A scene's full ground truth; later objects are drawn over earlier ones."""

    seed: int
    index: int
    width: int
    height: int
    objects: tuple[SceneObject, ...]
    background: str = "white"
    texture: float = 0.0
    noise: float = 0.0
    stream: str = "scene"
    """Which generator made it; keeps ids and noise of scenes built for a question apart from plain ones."""

    @property
    def scene_id(self) -> str:
        """Unique name of the scene for this configuration."""
        return f"{self.stream}-{self.seed}-{self.index:07d}"


class Layout(NamedTuple):
    """Geometry of a scene before shapes and colours are given: float64 arrays of shape (n,)."""

    x: np.ndarray
    y: np.ndarray
    size: np.ndarray
    angle: np.ndarray


def capacity(width: int, height: int) -> int:
    """Largest number of separate objects that a canvas of width x height px holds."""
    return int(MAX_FILL * width * height / (math.pi / 4 * (MIN_SIZE_PX + GAP_PX) ** 2))


def shapes_of(config: ScenesConfig) -> tuple[str, ...]:
    """Shapes that scenes of this configuration use; ConfigError for an unknown one."""
    return _subset("shapes", config.shapes, SHAPES)


def colours_of(config: ScenesConfig) -> tuple[str, ...]:
    """Colours that scenes of this configuration use; ConfigError for an unknown one."""
    return _subset("colours", config.colours, tuple(COLOURS))


def _subset(key: str, chosen: tuple[str, ...] | None, known: tuple[str, ...]) -> tuple[str, ...]:
    if chosen is None:
        return known
    for name in chosen:
        if name not in known:
            raise ConfigError(f"data.{key}: unknown {key[:-1]} {name!r}.{did_you_mean(name, known)}")
    if not chosen or len(set(chosen)) < len(chosen):
        raise ConfigError(f"data.{key}: expected at least one name and none twice, found {list(chosen)}")
    return chosen


def check_scenes(config: ScenesConfig) -> None:
    """Raise ConfigError for unknown shapes or colours, or a canvas that cannot hold the largest number of objects."""
    shapes_of(config), colours_of(config)
    room = capacity(config.width, config.height)
    if not config.overlap and config.n_objects[1] > room:
        raise ConfigError(
            f"data.n_objects: found {list(config.n_objects)}, more objects than the canvas holds: {config.width} x "
            f"{config.height} px holds at most {room} objects of {MIN_SIZE_PX:g} px. Enlarge the canvas, lower the "
            "number or allow data.overlap."
        )


def draw_number(rng: np.random.Generator, low: int, high: int, spacing: str = "log") -> int:
    """Draw an integer in [low, high], uniformly or with every octave equally likely (`log`)."""
    if spacing == "log" and low > 0:
        return min(high, int(math.exp(rng.uniform(math.log(low), math.log(high + 1)))))
    return int(rng.integers(low, high + 1))


def draw_layout(config: ScenesConfig, rng: np.random.Generator, n: int) -> Layout:
    """Place n objects; sizes are uniform in the configured range, shrunk together where the canvas gets full."""
    short = min(config.width, config.height)
    size = np.maximum(rng.uniform(config.size[0] * short, config.size[1] * short, n), MIN_SIZE_PX)
    angle = rng.uniform(-MAX_ANGLE, MAX_ANGLE, n)
    if config.overlap:
        x, y = _propose(rng, size, config.width, config.height)
        return Layout(x, y, size, angle)
    room = MAX_FILL * config.width * config.height
    needed = float(np.sum((size + GAP_PX) ** 2) * math.pi / 4)
    if needed > room:
        size = np.maximum(size * math.sqrt(room / needed), MIN_SIZE_PX)
    for _ in range(40):
        placed = _place(rng, size, config.width, config.height)
        if placed is not None:
            return Layout(*placed, size, angle)
        if size.max() <= MIN_SIZE_PX:
            break
        size = np.maximum(size * 0.85, MIN_SIZE_PX)
    check_scenes(config)
    raise ConfigError(
        f"data.n_objects: {n} objects of at least {MIN_SIZE_PX:g} px did not fit on {config.width} x {config.height} px"
    )


def _propose(rng: np.random.Generator, size: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    unit = rng.random((2, len(size)))
    return size / 2 + unit[0] * (width - size), size / 2 + unit[1] * (height - size)


def _place(
    rng: np.random.Generator, size: np.ndarray, width: int, height: int, rounds: int = 80
) -> tuple[np.ndarray, np.ndarray] | None:
    """Rejection sampling in rounds over all objects at once, large ones first; None where it did not end.

    In a round every object still without a place proposes one; it stays if it touches no placed object and no earlier
    proposal of the round.
    """
    n = len(size)
    order = np.argsort(-size, kind="stable")
    radius = size[order] / 2
    x, y = np.empty(n), np.empty(n)
    placed = np.zeros(n, dtype=bool)
    for _ in range(rounds):
        todo = np.flatnonzero(~placed)
        copies = max(1, 24 // len(todo))
        who = np.repeat(todo, copies)
        px, py = _propose(rng, 2 * radius[who], width, height)
        done = np.flatnonzero(placed)
        if len(done):
            reach = radius[who][:, None] + radius[done] + GAP_PX
            free = ((px[:, None] - x[done]) ** 2 + (py[:, None] - y[done]) ** 2 >= reach * reach).all(1)
            who, px, py = who[free], px[free], py[free]
            first = np.unique(who, return_index=True)[1]
            who, px, py = who[first], px[first], py[first]
        elif copies > 1:
            who, px, py = who[::copies], px[::copies], py[::copies]
        if len(who) > 1:
            reach = radius[who][:, None] + radius[who] + GAP_PX
            near = (px[:, None] - px) ** 2 + (py[:, None] - py) ** 2 < reach * reach
            alone = ~np.tril(near, -1).any(1)
            who, px, py = who[alone], px[alone], py[alone]
        x[who], y[who], placed[who] = px, py, True
        if placed.all():
            back = np.empty(n, dtype=np.intp)
            back[order] = np.arange(n)
            return x[back], y[back]
    return None


def compose(
    config: ScenesConfig,
    layout: Layout,
    kinds: list[tuple[str, str]],
    *,
    seed: int,
    index: int,
    stream: str = "scene",
) -> Scene:
    """Join a layout with one (colour, shape) per object into a scene."""
    columns = (values.tolist() for values in layout)
    objects = tuple(
        SceneObject(shape, colour, x, y, size, angle)
        for (colour, shape), x, y, size, angle in zip(kinds, *columns, strict=True)
    )
    return Scene(
        seed,
        index,
        config.width,
        config.height,
        objects,
        config.background,
        config.texture,
        config.noise,
        stream,
    )


def make_scene(config: ScenesConfig, index: int) -> Scene:
    """Make scene number `index`: number of objects, places, shapes and colours drawn from SeedSequence([seed, index]).

    Raises ConfigError where the canvas cannot hold the objects.
    """
    rng = np.random.default_rng(np.random.SeedSequence([config.seed, index]))
    n = draw_number(rng, *config.n_objects, config.n_objects_spacing)
    layout = draw_layout(config, rng, n)
    shapes, colours = shapes_of(config), colours_of(config)
    kinds = [
        (colours[c], shapes[s])
        for c, s in zip(
            rng.integers(len(colours), size=n).tolist(), rng.integers(len(shapes), size=n).tolist(), strict=True
        )
    ]
    return compose(config, layout, kinds, seed=config.seed, index=index)
