"""One training or test example: the answer is drawn first, then a scene and a question that have it.

Answers therefore balance by construction: within a family, a tier and a wording, the text says nothing about the
answer, and a model that cannot see scores at chance. Colours and shapes of objects that a question does not concern
are uniform; places are drawn as in `make_scene`.

Nor does the image say what the question asks: a count by attribute draws one of several groups whose sizes are 0, 1,
2, ..., so who knows the size of every group but reads no question is right by chance. Existence, relation and
comparison are at chance for one that knows four coarse statistics of the scene.

Both tiers ask for groups of the same sizes (`room`): more objects mean more objects beside them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from orchestrator.config import ScenesConfig
from orchestrator.data.builders import BUILDERS, CLEAR, Built, SceneView
from orchestrator.data.questions import Question, finish
from orchestrator.data.scenes import Layout, Scene, colours_of, compose, draw_layout, draw_number, shapes_of
from orchestrator.data.templates import LARGEST_NUMBER, check_families, group_name
from orchestrator.errors import ConfigError

MAX_GROUP = 9
"""Most objects of a group that a count by attribute or a comparison asks for."""

Kind = tuple[str, str]
"""Colour and shape."""
Number = Callable[[int], int]
"""Draws a number of objects no smaller than its argument."""

LEAST_OBJECTS = {"relation": 2, "comparison": 3, "count_by_attribute": 3}
"""Fewest objects of a scene that a family can be asked of; 1 for the others."""
_WORDS_NEEDED = {"comparison": 3, "count_by_attribute": 4, "caption": 1, "count": 1}


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
        return self.of(pool, n)

    def of(self, pool: Sequence[Kind], n: int) -> list[Kind]:
        """Draw n kinds out of a pool, with replacement."""
        return [pool[i] for i in self.rng.integers(len(pool), size=n)] if n else []

    def groups(self, way: int) -> list[list[Kind]]:
        """All groups of kinds of one colour (way 0), of one shape (1) or both (2), in random order.

        Kinds come so that the first ones share a colour or a shape: who reads only half of a name confuses them.
        """
        colours = [self.colours[i] for i in self.rng.permutation(len(self.colours))]
        shapes = [self.shapes[i] for i in self.rng.permutation(len(self.shapes))]
        if way == 0:
            return [[(c, s) for s in shapes] for c in colours]
        if way == 1:
            return [[(c, s) for c in colours] for s in shapes]
        pairs = sorted(
            ((i, j) for i in range(len(colours)) for j in range(len(shapes))), key=lambda p: (max(p), sum(p))
        )
        first = [pairs[i] for i in self.rng.permutation(min(4, len(pairs)))]
        return [[(colours[i], shapes[j])] for i, j in first + pairs[4:]]


def check_range(config: ScenesConfig, family: str, tier: str | None) -> tuple[int, int]:
    """Return the inclusive numbers of objects that scenes of a family have within `config.n_objects`.

    Raises ConfigError where there is none, naming what it would need.
    """
    low, high = config.n_objects
    if family == "caption" and tier:
        raise ConfigError("families: 'caption' has no tier")
    least = LEAST_OBJECTS.get(family, 1)
    if high < least:
        raise ConfigError(f"n_objects: {family} questions need at least {least} objects, found [{low}, {high}]")
    return max(low, least), high


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


def largest_group(room: int) -> int:
    """Largest m <= MAX_GROUP for which groups of 0, 1, ..., m objects fit into `room` objects together."""
    return max(m for m in range(MAX_GROUP + 1) if m * (m + 1) // 2 <= max(room, 0))


def _count_by_attribute(draw: Palette, number: Number, room: int) -> tuple[list[Kind], Built]:
    """Plant groups of 0, 1, ..., m objects and ask for any of them: no group of the image is likelier to be asked."""
    way = int(draw.rng.integers(3))
    kinds_of_group = draw.groups(way)
    largest = min(largest_group(room), len(kinds_of_group) - 2)
    n = number(max(LEAST_OBJECTS["count_by_attribute"], largest * (largest + 1) // 2))
    answer = int(draw.rng.integers(largest + 1))
    groups = kinds_of_group[: largest + 1]
    kinds = [kind for size, group in enumerate(groups) for kind in draw.of(group, size)]
    planted = {kind for group in groups for kind in group}
    kinds += draw.kinds(n - len(kinds), lambda c, s: (c, s) not in planted)
    colour, shape = groups[answer][0]
    name = group_name(None if way == 1 else colour, None if way == 0 else shape)
    return kinds, ("group", {"group": name}, str(answer))


def _comparison(draw: Palette, number: Number, room: int) -> tuple[list[Kind], Built]:
    if draw.rng.random() < 0.25:
        return _majority(draw, number(3))
    of_colour = draw.rng.random() < 0.5
    names = draw.colours if of_colour else draw.shapes
    asked = [names[i] for i in draw.rng.permutation(len(names))[:2]]
    sizes = [(b, a) for b in range(2, MAX_GROUP + 1) for a in range(1, b) if a + b <= room]
    more, fewer = sizes[int(draw.rng.integers(len(sizes)))]
    n = number(max(LEAST_OBJECTS["comparison"], more + fewer))
    wording = "more" if draw.rng.random() < 0.5 else "fewer"
    answer = "yes" if draw.rng.random() < 0.5 else "no"
    first, second = (more, fewer) if (wording == "more") == (answer == "yes") else (fewer, more)

    def value(c: str, s: str) -> str:
        return c if of_colour else s

    kinds = draw.kinds(n - more - fewer, lambda c, s: value(c, s) not in asked)
    kinds += draw.kinds(first, lambda c, s: value(c, s) == asked[0])
    kinds += draw.kinds(second, lambda c, s: value(c, s) == asked[1])
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


def make_example(
    config: ScenesConfig,
    family: str,
    tier: str | None,
    seed: int,
    index: int,
    *,
    room: int | None = None,
    largest: int | None = None,
) -> tuple[Scene, Question]:
    """Make example number `index` of a family: a scene and a question about it, with a drawn answer.

    Depends on the arguments alone. The number of objects comes from `config.n_objects`, which is the tier's range, as
    far as the family allows, by `config.n_objects_spacing`; `config.seed` and `config.n_images` are not used.

    Args:
        tier: name of the range, kept with the question; it also keeps the random streams of tiers apart.
        room: most objects that the groups a question asks for hold together; `config.n_objects[1]` when absent. Give
            both tiers the low tier's, so that they ask for groups of equal sizes.
        largest: largest number among the choices of a count; `config.n_objects[1]`, and at least 20, when absent.

    Raises ConfigError for an unknown family, too few objects for it, or too few colours or shapes.
    """
    check_families([family], BUILDERS)
    stream = f"{family}-{tier}" if tier else family
    rng = np.random.default_rng([seed, index, zlib.crc32(stream.encode())])
    draw = Palette(rng, colours_of(config), shapes_of(config))
    least = _WORDS_NEEDED.get(family, 2)
    if min(len(draw.colours), len(draw.shapes)) < least:
        raise ConfigError(f"data.colours, data.shapes: {family} questions need at least {least} of each")
    low, high = check_range(config, family, tier)
    room = high if room is None else room

    def number(at_least: int) -> int:
        return draw_number(rng, max(low, at_least), high, config.n_objects_spacing)

    built: Built | None = None
    layout: Layout | None = None
    if family == "relation":
        kinds, built, layout = _relation(draw, config, number(2))
    elif family == "point":
        kind = draw.kinds(1)[0]
        kinds = [kind, *draw.kinds(number(1) - 1, lambda c, s: (c, s) != kind)]
    elif family in ("count_by_attribute", "comparison"):
        maker = _comparison if family == "comparison" else _count_by_attribute
        kinds, built = maker(draw, number, max(room, LEAST_OBJECTS[family]))
    elif family == "caption":
        kinds = draw.kinds(number(1))
    else:
        kinds, built = {"colour": _colour, "shape": _shape, "existence": _existence, "count": _count}[family](
            draw, number
        )
    if layout is None:
        layout = draw_layout(config, rng, len(kinds))
        kinds = [kinds[i] for i in rng.permutation(len(kinds))]
    scene = compose(config, layout, kinds, seed=seed, index=index, stream=stream)
    view = SceneView(scene, draw.shapes, draw.colours)
    if built is None:
        built = BUILDERS[family](view, rng)
    assert built is not None, f"no {family} question for its own scene"
    largest = max(LARGEST_NUMBER, high) if largest is None else largest
    return scene, finish(family, built, view, scene.scene_id, 0, rng, tier=tier, largest=largest)
