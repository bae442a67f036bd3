"""Questions that can be asked of a scene, one function a family, each with its right answer.

Every question is unambiguous: an object it refers to is unique, near-ties in relations are left out, and a majority is
a strict one. Wordings are data (`templates.yaml`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeVar

import numpy as np

from orchestrator.data.scenes import COLOURS, SHAPES, Scene, SceneObject
from orchestrator.data.templates import group_name

T = TypeVar("T")

CLEAR = 0.08
"""Least difference of two centres along the axis asked about, as a share of the canvas, for a relation to be asked."""


class SceneView:
    """What the question builders need to know of a scene, counted once and only when asked."""

    def __init__(
        self, scene: Scene, shapes: tuple[str, ...] = SHAPES, colours: tuple[str, ...] = tuple(COLOURS)
    ) -> None:
        self.scene, self.shapes, self.colours = scene, shapes, colours
        self.objects = scene.objects
        self.n = len(scene.objects)

    @cached_property
    def by_shape(self) -> Counter[str]:
        return Counter(o.shape for o in self.objects)

    @cached_property
    def by_colour(self) -> Counter[str]:
        return Counter(o.colour for o in self.objects)

    @cached_property
    def by_kind(self) -> Counter[tuple[str, str]]:
        return Counter((o.colour, o.shape) for o in self.objects)

    @cached_property
    def unique(self) -> list[SceneObject]:
        """Objects that no other object shares both colour and shape with."""
        return [o for o in self.objects if self.by_kind[o.colour, o.shape] == 1]

    def group_size(self, colour: str | None, shape: str | None) -> int:
        """Number of objects of a colour, of a shape, or of both."""
        if colour is None:
            return self.by_shape[shape or ""]
        return self.by_colour[colour] if shape is None else self.by_kind[colour, shape]


Built = tuple[str, dict[str, str], str]
"""Group of wordings, words for its placeholders, answer."""
Builder = Callable[[SceneView, np.random.Generator], "Built | None"]


def pick(rng: np.random.Generator, items: Sequence[T] | np.ndarray) -> T | None:
    """Draw one item; None from an empty sequence."""
    return items[int(rng.integers(len(items)))] if len(items) else None


def name_of(scene_object: SceneObject) -> str:
    """Describe an object by colour and shape, as in "red circle"."""
    return f"{scene_object.colour} {scene_object.shape}"


def colour_question(view: SceneView, rng: np.random.Generator) -> Built | None:
    """Ask the colour of an object whose shape is unique."""
    target = pick(rng, [o for o in view.objects if view.by_shape[o.shape] == 1])
    return target and ("object", {"shape": target.shape}, target.colour)


def shape_question(view: SceneView, rng: np.random.Generator) -> Built | None:
    """Ask the shape of an object whose colour is unique."""
    target = pick(rng, [o for o in view.objects if view.by_colour[o.colour] == 1])
    return target and ("object", {"colour": target.colour}, target.shape)


def existence_question(view: SceneView, rng: np.random.Generator) -> Built | None:
    """Ask for a kind of object: half present, half absent, half of the absent with its colour and shape both there."""
    kind: tuple[str, str] | None
    answer = "yes" if rng.random() < 0.5 else "no"
    if answer == "yes":
        kind = pick(rng, list(view.by_kind))
    else:
        absent = [(c, s) for c in view.colours for s in view.shapes if not view.by_kind[c, s]]
        hard = [(c, s) for c, s in absent if view.by_colour[c] and view.by_shape[s]]
        kind = pick(rng, hard if hard and rng.random() < 0.5 else absent)
    return kind and ("pair", {"object": " ".join(kind)}, answer)


def count_question(view: SceneView, _: np.random.Generator) -> Built | None:
    """Ask the number of objects."""
    return "all", {}, str(view.n)


def draw_group(rng: np.random.Generator, view: SceneView) -> tuple[str | None, str | None]:
    """Draw a colour, a shape, or both, as the description of a group of objects."""
    way = int(rng.integers(3))
    colour = None if way == 1 else pick(rng, view.colours)
    shape = None if way == 0 else pick(rng, view.shapes)
    return colour, shape


def count_by_attribute_question(view: SceneView, rng: np.random.Generator) -> Built | None:
    """Ask the size of a group; a group that is empty is drawn again twice, so that 0 does not prevail."""
    for _ in range(3):
        group = draw_group(rng, view)
        if view.group_size(*group):
            break
    return "group", {"group": group_name(*group)}, str(view.group_size(*group))


def comparison_question(view: SceneView, rng: np.random.Generator) -> Built | None:
    """Compare two colours or two shapes that both occur, unequally often; or ask for the most common colour."""
    if rng.random() < 0.25:
        ranked = view.by_colour.most_common(2)
        if len(ranked) == 2 and ranked[0][1] > ranked[1][1]:
            return "colour", {}, ranked[0][0]
        return None
    of_colour = rng.random() < 0.5
    counts = view.by_colour if of_colour else view.by_shape
    pairs = [(a, b) for a in counts for b in counts if counts[a] > counts[b]]
    pair = pick(rng, pairs)
    if pair is None:
        return None
    wording = "more" if rng.random() < 0.5 else "fewer"
    answer = "yes" if rng.random() < 0.5 else "no"
    first, second = pair if (wording == "more") == (answer == "yes") else pair[::-1]
    words = [group_name(w, None) if of_colour else group_name(None, w) for w in (first, second)]
    return wording, {"group": words[0], "other": words[1]}, answer


def relation_question(view: SceneView, rng: np.random.Generator) -> Built | None:
    """Ask on which side of a unique object another unique object lies, along an axis where they differ clearly."""
    axis = int(rng.integers(2))
    limit = CLEAR * (view.scene.height if axis else view.scene.width)
    order = rng.permutation(len(view.unique))[:12]
    candidates = [view.unique[i] for i in order]
    pairs = [(a, b) for a in candidates for b in candidates if (b.y - a.y if axis else b.x - a.x) >= limit]
    pair = pick(rng, pairs)
    if pair is None:
        return None
    answers = ("above", "below") if axis else ("left", "right")
    swap = rng.random() < 0.5
    first, second = pair[::-1] if swap else pair
    return ("vertical" if axis else "horizontal", {"object": name_of(first), "other": name_of(second)}, answers[swap])


def percent(value: float, full: float) -> str:
    """Write a coordinate as two digits, 00..99 hundredths of the canvas."""
    return f"{min(99, max(0, int(100 * value / full))):02d}"


def point_question(view: SceneView, rng: np.random.Generator) -> Built | None:
    """Ask for the centre ("x y") or the box ("x0 y0 x1 y1") of a unique object, in hundredths of width and height."""
    target = pick(rng, view.unique)
    if target is None:
        return None
    width, height, radius = view.scene.width, view.scene.height, target.size / 2
    if rng.random() < 0.75:
        return "point", {"object": name_of(target)}, f"{percent(target.x, width)} {percent(target.y, height)}"
    corners = [(target.x - radius, target.y - radius), (target.x + radius, target.y + radius)]
    return (
        "box",
        {"object": name_of(target)},
        " ".join(percent(x, width) + " " + percent(y, height) for x, y in corners),
    )


def caption_question(view: SceneView, _: np.random.Generator) -> Built | None:
    """Ask for all objects from left to right."""
    ordered = sorted(view.objects, key=lambda o: o.x)
    return "ordered", {}, " , ".join(map(name_of, ordered))


BUILDERS: dict[str, Builder] = {
    "colour": colour_question,
    "shape": shape_question,
    "existence": existence_question,
    "count": count_question,
    "count_by_attribute": count_by_attribute_question,
    "comparison": comparison_question,
    "relation": relation_question,
    "point": point_question,
    "caption": caption_question,
}
FAMILIES = tuple(f for f in BUILDERS if f != "caption")
