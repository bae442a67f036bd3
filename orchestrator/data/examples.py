"""One training or test example: the answer is drawn first, then a scene and a question that have it.

Answers therefore balance by construction: within a family, a tier and a wording, the text says nothing about the
answer, and a model that cannot see scores at chance. Colours and shapes of objects that a question does not concern
are uniform; places are drawn as in `make_scene`.

The image may still say what the question asks: the group of a count by attribute is mostly the scene's largest. Who
sees all groups' sizes but reads no question is right in 75, 70, 62 and 22 % of scenes of up to 9, 12, 20 and 200
objects. Existence, relation and comparison are at chance for one that knows four coarse statistics of the scene.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from orchestrator.config import ScenesConfig
from orchestrator.data.questions import (
    BUILDERS,
    CLEAR,
    CROWDED,
    LOW_COUNT,
    LOW_FAMILIES,
    Built,
    Question,
    View,
    finish,
)
from orchestrator.data.scenes import Layout, Scene, colours_of, compose, draw_layout, draw_number, shapes_of
from orchestrator.data.templates import check_families, group_name
from orchestrator.errors import ConfigError

MAX_GROUP = 9
"""Largest answer when counting by attribute; answers are uniform in 0..MAX_GROUP as far as `n_objects` allows."""

Kind = tuple[str, str]
"""Colour and shape."""
Number = Callable[[int], int]
"""Draws a number of objects no smaller than its argument."""

_LEAST = {"relation": 2, "comparison": 3, "count_by_attribute": 2, "point": 2, "count": LOW_COUNT + 1}
_WORDS_NEEDED = {"comparison": 3, "caption": 1, "count": 1}


class Palette(NamedTuple):
    """What the scenes of a study are made of, and the generator that draws from it."""

    rng: np.random.Generator
    colours: tuple[str, ...]
    shapes: tuple[str, ...]

    def one(self, items: tuple[str, ...]) -> str:
        return items[int(self.rng.integers(len(items)))]

    def kinds(self, n: int, allowed: Callable[[str, str], bool] = lambda *_: True) -> list[Kind]:
        """Draw n kinds, uniformly among the allowed ones."""
        pool = [(c, s) for c in self.colours for s in self.shapes if allowed(c, s)]
        return [pool[i] for i in self.rng.integers(len(pool), size=n)] if n else []


def object_range(config: ScenesConfig, family: str, tier: str | None) -> tuple[int, int]:
    """Return the inclusive range of object numbers that a family and tier have within `config.n_objects`.

    Raises ConfigError where there is none, naming what it would need.
    """
    low, high = config.n_objects
    if family == "caption" and tier:
        raise ConfigError("families: 'caption' has no tier")
    if tier == "low":
        least, most = 1, {"count": LOW_COUNT, "point": 1}.get(family, CROWDED if family in LOW_FAMILIES else 0)
        if not most:
            raise ConfigError(f"families: {family!r} has no low-tier questions")
    else:
        crowded = CROWDED + 1 if family in LOW_FAMILIES else _LEAST.get(family, 1)
        least, most = (crowded if tier == "high" else 1), 10**9
    found = max(low, least), min(high, most)
    if found[0] > found[1]:
        needed = f"{least} to {most}" if most < 10**9 else f"at least {least}"
        raise ConfigError(f"n_objects: {tier} {family} questions need {needed} objects, found [{low}, {high}]")
    return found


def _colour(draw: Palette, number: Number) -> tuple[list[Kind], Built]:
    colour, shape = draw.kinds(1)[0]
    others = draw.kinds(number(1) - 1, lambda _, s: s != shape)
    return [(colour, shape), *others], ("object", {"shape": shape}, colour)


def _shape(draw: Palette, number: Number) -> tuple[list[Kind], Built]:
    colour, shape = draw.kinds(1)[0]
    others = draw.kinds(number(1) - 1, lambda c, _: c != colour)
    return [(colour, shape), *others], ("object", {"colour": colour}, shape)


def _existence(draw: Palette, number: Number) -> tuple[list[Kind], Built]:
    kind = colour, shape = draw.kinds(1)[0]
    n = number(1)
    answer = "yes" if draw.rng.random() < 0.5 else "no"
    seeds: list[Kind] = [kind] if answer == "yes" else []
    if answer == "no" and n >= 2 and draw.rng.random() < 0.5:
        # A hard negative: the colour and the shape are both there, on different objects.
        seeds = draw.kinds(1, lambda c, s: c == colour and s != shape)
        seeds += draw.kinds(1, lambda c, s: c != colour and s == shape)
    others = draw.kinds(n - len(seeds), lambda c, s: answer == "yes" or (c, s) != kind)
    return seeds + others, ("pair", {"object": " ".join(kind)}, answer)


def _count(draw: Palette, number: Number) -> tuple[list[Kind], Built]:
    n = number(1)
    return draw.kinds(n), ("all", {}, str(n))


def _count_by_attribute(draw: Palette, number: Number, most: int) -> tuple[list[Kind], Built]:
    answer = int(draw.rng.integers(min(MAX_GROUP, most) + 1))
    n = number(max(2, answer))
    colour, shape = draw.kinds(1)[0]
    way = int(draw.rng.integers(3))

    def inside(c: str, s: str) -> bool:
        return (way == 1 or c == colour) and (way == 0 or s == shape)

    name = group_name(None if way == 1 else colour, None if way == 0 else shape)
    kinds = draw.kinds(answer, inside) + draw.kinds(n - answer, lambda c, s: not inside(c, s))
    return kinds, ("group", {"group": name}, str(answer))


def _comparison(draw: Palette, number: Number) -> tuple[list[Kind], Built]:
    n = number(3)
    if draw.rng.random() < 0.25:
        return _majority(draw, n)
    of_colour = draw.rng.random() < 0.5
    names = draw.colours if of_colour else draw.shapes
    asked = [names[i] for i in draw.rng.permutation(len(names))[:2]]
    more = int(draw.rng.integers(2, max(3, min(n - 1, MAX_GROUP) + 1)))
    fewer = int(draw.rng.integers(1, min(more - 1, n - more) + 1))
    wording = "more" if draw.rng.random() < 0.5 else "fewer"
    answer = "yes" if draw.rng.random() < 0.5 else "no"
    sizes = (more, fewer) if (wording == "more") == (answer == "yes") else (fewer, more)

    def value(c: str, s: str) -> str:
        return c if of_colour else s

    kinds = draw.kinds(n - more - fewer, lambda c, s: value(c, s) not in asked)
    kinds += draw.kinds(sizes[0], lambda c, s: value(c, s) == asked[0])
    kinds += draw.kinds(sizes[1], lambda c, s: value(c, s) == asked[1])
    words = [group_name(name, None) if of_colour else group_name(None, name) for name in asked]
    return kinds, (wording, {"group": words[0], "other": words[1]}, answer)


def _majority(draw: Palette, n: int) -> tuple[list[Kind], Built]:
    """Draw a scene with one most common colour; it leads by one object or more."""
    answer = draw.one(draw.colours)
    rivals = len(draw.colours) - 1
    least = -(-(n + rivals) // (rivals + 1))  # n - k others, at most k - 1 of each rival
    lead = min(n, least + int(draw.rng.integers(3)))
    slots = [c for c in draw.colours if c != answer for _ in range(lead - 1)]
    chosen = draw.rng.permutation(len(slots))[: n - lead]
    kinds = [(c, draw.one(draw.shapes)) for c in [answer] * lead + [slots[i] for i in chosen]]
    return kinds, ("colour", {}, answer)


def _relation(draw: Palette, config: ScenesConfig, n: int) -> tuple[list[Kind], Built, Layout]:
    """Draw places until two objects differ clearly along the axis; these two become the ones asked about."""
    axis, side = (int(i) for i in draw.rng.integers(2, size=2))
    limit = CLEAR * (config.height if axis else config.width)
    while True:
        layout = draw_layout(config, draw.rng, n)
        place = layout.y if axis else layout.x
        # side 0: the object asked about lies left of, or above, the other.
        pairs = np.argwhere((place - place[:, None] if side == 0 else place[:, None] - place) >= limit)
        if len(pairs):
            break
    first, second = pairs[int(draw.rng.integers(len(pairs)))]
    kind = draw.kinds(1)[0]
    other = draw.kinds(1, lambda c, s: (c, s) != kind)[0]
    kinds = draw.kinds(n, lambda c, s: (c, s) not in (kind, other))
    kinds[first], kinds[second] = kind, other
    answer = (("left", "right"), ("above", "below"))[axis][side]
    group = ("horizontal", "vertical")[axis]
    return kinds, (group, {"object": " ".join(kind), "other": " ".join(other)}, answer), layout


def make_example(config: ScenesConfig, family: str, tier: str | None, seed: int, index: int) -> tuple[Scene, Question]:
    """Make example number `index` of a family and tier: a scene and a question about it, with a drawn answer.

    Depends on (config, family, tier, seed, index) alone. The number of objects comes from `config.n_objects`, cut to
    the tier's range, uniformly in the low tier and by `config.n_objects_spacing` above it; `config.seed` and
    `config.n_images` are not used. `tier` is None for captions, and for any number of objects.

    Raises ConfigError for an unknown family, a tier that the family does not have within `config.n_objects`, or too
    few colours or shapes.
    """
    check_families([family], BUILDERS)
    stream = f"{family}-{tier}" if tier else family
    rng = np.random.default_rng([seed, index, zlib.crc32(stream.encode())])
    draw = Palette(rng, colours_of(config), shapes_of(config))
    least = _WORDS_NEEDED.get(family, 2)
    if min(len(draw.colours), len(draw.shapes)) < least:
        raise ConfigError(f"data.colours, data.shapes: {family} questions need at least {least} of each")
    low, high = object_range(config, family, tier)

    spacing = "uniform" if tier == "low" else config.n_objects_spacing

    def number(at_least: int) -> int:
        return draw_number(rng, max(low, at_least), high, spacing)

    built: Built | None = None
    layout: Layout | None = None
    if family == "relation":
        kinds, built, layout = _relation(draw, config, number(2))
    elif family == "point":
        kind = draw.kinds(1)[0]
        kinds = [kind, *draw.kinds(number(1) - 1, lambda c, s: (c, s) != kind)]
    elif family == "count_by_attribute":
        kinds, built = _count_by_attribute(draw, number, high)
    elif family == "caption":
        kinds = draw.kinds(number(1))
    else:
        makers = {"colour": _colour, "shape": _shape, "existence": _existence, "count": _count}
        kinds, built = makers.get(family, _comparison)(draw, number)
    if layout is None:
        layout = draw_layout(config, rng, len(kinds))
        kinds = [kinds[i] for i in rng.permutation(len(kinds))]
    scene = compose(config, layout, kinds, seed=seed, index=index, stream=stream)
    view = View(scene, draw.shapes, draw.colours)
    if built is None:
        built = BUILDERS[family](view, rng)
    assert built is not None, f"no {family} question for its own scene"
    return scene, finish(family, built, view, scene.scene_id, 0, rng)
