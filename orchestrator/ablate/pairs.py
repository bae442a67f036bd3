"""Pairs of scenes that differ in one attribute, with a question whose answer depends on that attribute."""

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
    """Give the object of the question's shape a colour that the scene does not have."""
    return _changed(scene, lambda o: o.shape == question.detail["shape"], "colour", COLOURS, draw)


def _other_shape(scene: Scene, question: Question, draw: Draw) -> tuple[Scene, str] | None:
    """Give the object of the question's colour a shape that the scene does not have."""
    return _changed(scene, lambda o: o.colour == question.detail["colour"], "shape", SHAPES, draw)


def _changed(
    scene: Scene, is_asked: Callable[[SceneObject], bool], attribute: str, values: Sequence[str] | dict, draw: Draw
) -> tuple[Scene, str] | None:
    indices = [i for i, o in enumerate(scene.objects) if is_asked(o)]
    unused = [v for v in values if all(getattr(o, attribute) != v for o in scene.objects)]
    if len(indices) != 1 or not unused:
        return None
    value = unused[int(draw.integers(len(unused)))]
    objects = list(scene.objects)
    objects[indices[0]] = objects[indices[0]]._replace(**{attribute: value})  # type: ignore[arg-type]
    return replace(scene, objects=tuple(objects)), value


def _one_fewer(scene: Scene, _: Question, draw: Draw) -> tuple[Scene, str] | None:
    """The scene without one of its objects."""
    if len(scene.objects) < 2:
        return None
    gone = int(draw.integers(len(scene.objects)))
    remaining = tuple(o for i, o in enumerate(scene.objects) if i != gone)
    return replace(scene, objects=remaining), str(len(remaining))


_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def _exchanged(scene: Scene, question: Question, _: Draw) -> tuple[Scene, str] | None:
    """Exchange the positions of the two objects of a spatial question."""
    names = [question.detail["object"], question.detail["other"]]
    places = [[i for i, o in enumerate(scene.objects) if f"{o.colour} {o.shape}" == name] for name in names]
    if any(len(indices) != 1 for indices in places):
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
    """`n` questions, each about a scene and about a donor scene that differs only in `attribute`.

    Args:
        maker: makes questions about scenes, with the numbers of objects of each tier.

    Returns:
        Two lists of equal length: the questions with their own scenes and answers, and with the donors'.

    Raises:
        ConfigError: no pairs are defined for the attribute.
    """
    if attribute not in CHANGES:
        raise ConfigError(f"patching: no pairs differ in {attribute!r}.{did_you_mean(attribute, CHANGES)}")
    family, tier, change = CHANGES[attribute]
    examples: list[Example] = []
    donors: list[Example] = []
    index = 0
    while len(examples) < n:
        example = maker.make(family, tier, seed, index)
        scene, question = example.scene, example.question
        assert scene is not None, "pairs are made of scenes"
        changed = change(scene, question, np.random.default_rng([seed, index, 7]))
        index += 1
        if changed is None:
            continue
        donor, answer = changed
        examples.append(example)
        donors.append(Example(replace(question, answer=answer), scene=donor))
    return examples, donors
