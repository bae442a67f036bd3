"""Pairs of scenes that differ in one attribute, with a question whose answer that attribute decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from orchestrator.data.mixture import Example, ExampleMaker
from orchestrator.data.questions import Question
from orchestrator.data.scenes import COLOURS, SHAPES, Scene, SceneObject
from orchestrator.errors import ConfigError, did_you_mean

Draw = np.random.Generator


def _other_colour(scene: Scene, question: Question, draw: Draw) -> tuple[Scene, str] | None:
    """The object of the question's shape in a colour the scene does not have."""
    return _changed(scene, lambda o: o.shape == question.detail["shape"], "colour", COLOURS, draw)


def _other_shape(scene: Scene, question: Question, draw: Draw) -> tuple[Scene, str] | None:
    """The object of the question's colour in a shape the scene does not have."""
    return _changed(scene, lambda o: o.colour == question.detail["colour"], "shape", SHAPES, draw)


def _changed(
    scene: Scene, which: Callable[[SceneObject], bool], attribute: str, values: Sequence[str] | dict, draw: Draw
) -> tuple[Scene, str] | None:
    found = [i for i, o in enumerate(scene.objects) if which(o)]
    unused = [v for v in values if all(getattr(o, attribute) != v for o in scene.objects)]
    if len(found) != 1 or not unused:
        return None
    value = unused[int(draw.integers(len(unused)))]
    objects = list(scene.objects)
    objects[found[0]] = objects[found[0]]._replace(**{attribute: value})  # type: ignore[arg-type]
    return replace(scene, objects=tuple(objects)), value


def _one_fewer(scene: Scene, _: Question, draw: Draw) -> tuple[Scene, str] | None:
    """The scene without one of its objects."""
    if len(scene.objects) < 2:
        return None
    gone = int(draw.integers(len(scene.objects)))
    left = tuple(o for i, o in enumerate(scene.objects) if i != gone)
    return replace(scene, objects=left), str(len(left))


_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def _exchanged(scene: Scene, question: Question, _: Draw) -> tuple[Scene, str] | None:
    """The two objects of a spatial question in each other's places."""
    names = [question.detail["object"], question.detail["other"]]
    places = [[i for i, o in enumerate(scene.objects) if f"{o.colour} {o.shape}" == name] for name in names]
    if any(len(found) != 1 for found in places):
        return None
    (a,), (b,) = places
    objects = list(scene.objects)
    first, second = objects[a], objects[b]
    objects[a] = first._replace(x=second.x, y=second.y, size=second.size)
    objects[b] = second._replace(x=first.x, y=first.y, size=first.size)
    return replace(scene, objects=tuple(objects)), _OPPOSITE[question.answer]


CHANGES: dict[str, tuple[str, str, Callable[[Scene, Question, Draw], tuple[Scene, str] | None]]] = {
    "colour": ("colour", "low", _other_colour),
    "shape": ("shape", "low", _other_shape),
    "count": ("count", "low", _one_fewer),
    "relation": ("relation", "low", _exchanged),
}
"""Attribute -> (family and tier of its question, how the donor scene differs)."""


def make_pairs(attribute: str, n: int, seed: int, maker: ExampleMaker) -> tuple[list[Example], list[Example]]:
    """`n` questions, each once about a scene and once about its donor, which differs in `attribute` alone.

    Args:
        maker: of questions about scenes; every tier keeps its numbers of objects.

    Returns:
        Two lists of equal length: the questions with their own scenes and answers, and with the donors'.

    Raises:
        ConfigError: no pairs are defined for the attribute.
    """
    if attribute not in CHANGES:
        raise ConfigError(f"patching: no pairs differ in {attribute!r}.{did_you_mean(attribute, CHANGES)}")
    family, tier, change = CHANGES[attribute]
    own: list[Example] = []
    donors: list[Example] = []
    index = 0
    while len(own) < n:
        example = maker.make(family, tier, seed, index)
        scene, question = example.scene, example.question
        assert scene is not None, "pairs are made of scenes"
        changed = change(scene, question, np.random.default_rng([seed, index, 7]))
        index += 1
        if changed is None:
            continue
        donor, answer = changed
        own.append(example)
        donors.append(Example(replace(question, answer=answer), scene=donor))
    return own, donors
