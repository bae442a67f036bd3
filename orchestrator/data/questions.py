"""Questions about a scene: families, the tier rule, and questions for a scene that already exists.

The tier of a question is the complexity of its scene alone: every family is asked in both tiers, with the same wordings
and the same choices, numbers included.

Every question is unambiguous: an object it refers to is unique, near-ties in relations are left out, and a majority is
a strict one. Wordings are data (`templates.yaml`). `examples.py` builds scenes around a drawn answer, so that answers
balance by construction; here the wanted answer is drawn first too, as far as the given scene allows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np

from orchestrator.data.scenes import COLOURS, SHAPES, Scene, SceneObject
from orchestrator.data.templates import LARGEST_NUMBER, check_families, choices_of, group_name, word

T = TypeVar("T")

LOW_OBJECTS = (1, 4)
"""Numbers of objects of a low-tier scene, inclusive."""
HIGH_OBJECTS = (6, 12)
"""Numbers of objects of a high-tier scene, inclusive."""
CLEAR = 0.08
"""Least difference of two centres along the axis asked about, as a share of the canvas, for a relation to be asked."""


@dataclass(frozen=True)
class Question:
    """One question about one image."""

    question_id: str
    image_id: str
    family: str
    tier: str | None
    text: str
    answer: str
    choices: tuple[str, ...] | None = None
    """Every possible answer, the same in both tiers; None for places, lists and questions without a closed set."""
    template: int = 0
    """Number of the wording within its family in `templates.yaml`."""
    detail: dict[str, Any] = field(default_factory=dict)
    """Facts for analysis: the group of wordings, the number of objects, and the objects referred to."""

    @property
    def cluster(self) -> str:
        """What makes questions depend on each other: the group that a question file names, else the image."""
        return self.detail.get("cluster") or self.image_id


def tier_of(
    n_objects: int, low: tuple[int, int] = LOW_OBJECTS, high: tuple[int, int] = HIGH_OBJECTS
) -> Literal["low", "high"] | None:
    """Return the tier of a scene by its number of objects; None where it lies in neither range.

    Args:
        low: inclusive numbers of objects of low-tier scenes.
        high: those of high-tier scenes.
    """
    if low[0] <= n_objects <= low[1]:
        return "low"
    return "high" if high[0] <= n_objects <= high[1] else None


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


def name_of(thing: SceneObject) -> str:
    """Describe an object by colour and shape, as in "red circle"."""
    return f"{thing.colour} {thing.shape}"


def colour_question(view: SceneView, rng: np.random.Generator) -> Built | None:
    """Ask the colour of an object whose shape is unique."""
    thing = pick(rng, [o for o in view.objects if view.by_shape[o.shape] == 1])
    return thing and ("object", {"shape": thing.shape}, thing.colour)


def shape_question(view: SceneView, rng: np.random.Generator) -> Built | None:
    """Ask the shape of an object whose colour is unique."""
    thing = pick(rng, [o for o in view.objects if view.by_colour[o.colour] == 1])
    return thing and ("object", {"colour": thing.colour}, thing.shape)


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
    things = [view.unique[i] for i in order]
    pairs = [(a, b) for a in things for b in things if (b.y - a.y if axis else b.x - a.x) >= limit]
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
    thing = pick(rng, view.unique)
    if thing is None:
        return None
    width, height, radius = view.scene.width, view.scene.height, thing.size / 2
    if rng.random() < 0.75:
        return "point", {"object": name_of(thing)}, f"{percent(thing.x, width)} {percent(thing.y, height)}"
    corners = [(thing.x - radius, thing.y - radius), (thing.x + radius, thing.y + radius)]
    return "box", {"object": name_of(thing)}, " ".join(percent(x, width) + " " + percent(y, height) for x, y in corners)


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


def finish(
    family: str,
    built: Built,
    view: SceneView,
    image_id: str,
    number: int,
    rng: np.random.Generator,
    *,
    tier: str | None,
    largest: int = LARGEST_NUMBER,
) -> Question:
    """Word a built question; `largest` is the largest number among the choices of a count."""
    group, words, answer = built
    template, text = word(family, group, words, rng)
    return Question(
        question_id=f"{image_id}/{family}-{number}",
        image_id=image_id,
        family=family,
        tier=tier,
        text=text,
        answer=answer,
        choices=choices_of(family, group, view.shapes, view.colours, largest),
        template=template,
        detail={"wording": group, "n_objects": view.n, **words},
    )


def make_questions(
    scene: Scene,
    families: Sequence[str],
    n: int,
    seed: int,
    *,
    shapes: tuple[str, ...] = SHAPES,
    colours: tuple[str, ...] = tuple(COLOURS),
) -> list[Question]:
    """Ask up to n different questions about a scene, the families in turn; fewer where the scene allows no more.

    `shapes` and `colours` are those that the scenes of the study use: questions about absent objects name only these.
    Depends on (scene, families, n, seed) alone. Raises ConfigError for an unknown family.
    """
    check_families(families, BUILDERS)
    rng = np.random.default_rng([seed, scene.seed, scene.index])
    view = SceneView(scene, shapes, colours)
    questions: dict[str, Question] = {}
    order = [families[i] for i in rng.permutation(len(families))]
    for attempt in range(3 * max(n, len(families))):
        if len(questions) >= n:
            break
        family = order[attempt % len(order)]
        built = BUILDERS[family](view, rng)
        if built is not None:
            tier = None if family == "caption" else tier_of(view.n)
            largest = max(LARGEST_NUMBER, view.n)
            question = finish(family, built, view, scene.scene_id, len(questions), rng, tier=tier, largest=largest)
            questions.setdefault(question.text, question)
    return list(questions.values())


def parse_point(text: str) -> tuple[int, ...] | None:
    """Read a point or box answer back as 2 or 4 hundredths, however its digits are spaced; None where it is neither."""
    tokens = text.replace(",", " ").split()
    if not tokens or not all(token.isdecimal() and token.isascii() for token in tokens):
        return None
    plain = len(tokens) in (2, 4) and max(map(len, tokens)) <= 2
    if not plain or [len(token) for token in tokens] == [1, 1, 1, 1]:
        digits = "".join(tokens)
        tokens = [digits[i : i + 2] for i in range(0, len(digits), 2)] if len(digits) in (4, 8) else []
    return tuple(map(int, tokens)) or None
