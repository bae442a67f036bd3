"""Questions about a scene: families, the tier rule, and questions for a scene that already exists.

The tier of a question is the complexity of its scene alone: every family is asked in both tiers, with the same wordings
and the same choices, numbers included.

What can be asked is in `builders.py`. `examples.py` builds scenes around a drawn answer, so that answers
balance by construction; here the wanted answer is drawn first too, as far as the given scene allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from orchestrator.data.builders import BUILDERS, Built, SceneView
from orchestrator.data.scenes import COLOURS, SHAPES, Scene
from orchestrator.data.templates import LARGEST_NUMBER, check_families, choices_of, word

LOW_OBJECTS = (1, 4)
"""Numbers of objects of a low-tier scene, inclusive."""
HIGH_OBJECTS = (6, 12)
"""Numbers of objects of a high-tier scene, inclusive."""


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

    @property
    def keys(self) -> dict[str, str | None]:
        """Columns that identify the question in tables."""
        names = ("question_id", "image_id", "cluster", "family", "tier")
        return {name: getattr(self, name) for name in names}


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
