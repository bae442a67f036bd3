"""Wordings of questions, from `templates.yaml`, and their closed vocabulary."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import yaml

from orchestrator.data.coco_names import COCO_CATEGORIES
from orchestrator.data.scenes import COLOURS, SHAPES
from orchestrator.errors import ConfigError, did_you_mean

QUESTIONS_VERSION = 3
"""Incremented whenever the same arguments give different questions, mixtures or tiers."""
LARGEST_NUMBER = 20
"""Largest number among the choices of a count if scenes have at most this many objects."""


@cache
def templates() -> dict[str, dict[str, Any]]:
    """Return the published templates: family -> group -> {texts, choices}."""
    text = resources.files("orchestrator.data").joinpath("templates.yaml").read_text(encoding="utf-8")
    # BaseLoader keeps "yes" and "no" as strings instead of Booleans.
    return yaml.load(text, Loader=yaml.BaseLoader)


def check_families(families: Iterable[str], known: Iterable[str]) -> None:
    """Raise ConfigError for an unknown family or none at all."""
    known, families = tuple(known), tuple(families)
    if not families:
        raise ConfigError("families: expected at least one question family, found none")
    for family in families:
        if family not in known:
            raise ConfigError(f"families: unknown question family {family!r}.{did_you_mean(family, known)}")


def article(noun: str) -> str:
    """Put "a" or "an" before a noun phrase."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def group_name(colour: str | None, shape: str | None) -> str:
    """Name a group of objects: "red objects", "circles" or "red circles"."""
    noun = templates()["plurals"][shape] if shape else "objects"
    return f"{colour} {noun}" if colour else noun


def word(family: str, group: str, words: Mapping[str, str], rng: np.random.Generator) -> tuple[int, str]:
    """Draw and fill a wording of a group; return its index within the family and the text."""
    numbered = _numbered(family)[group]
    number, text = numbered[int(rng.integers(len(numbered)))]
    if "{an_object}" in text:
        return number, text.format(an_object=article(words["object"]), **words)
    return number, text.format(**words)


@cache
def _numbered(family: str) -> dict[str, list[tuple[int, str]]]:
    number, table = 0, {}
    for group, entry in templates()[family].items():
        table[group] = list(enumerate(entry["texts"], start=number))
        number += len(entry["texts"])
    return table


def choices_of(
    family: str,
    group: str,
    shapes: tuple[str, ...],
    colours: tuple[str, ...],
    largest: int = LARGEST_NUMBER,
) -> tuple[str, ...] | None:
    """Return the possible answers of a group of wordings, numbers up to `largest`; None for places and lists."""
    choices = templates()[family][group].get("choices")
    if not isinstance(choices, str):
        return choices and tuple(choices)
    numbers = {"numbers_from_0": 0, "numbers_from_1": 1}
    if choices in numbers:
        return tuple(map(str, range(numbers[choices], largest + 1)))
    return {"colours": colours, "shapes": shapes}[choices]


def vocabulary() -> list[str]:
    """Return every word of questions and answers, sorted. Numbers are encoded by their digits."""
    entries = templates()
    lines = [t for f, groups in entries.items() if f != "plurals" for g in groups.values() for t in g["texts"]]
    answers = [c for f, groups in entries.items() if f != "plurals" for g in groups.values() for c in _listed(g)]
    words = {w for line in lines for w in line.split() if not w.startswith("{")} | set(answers)
    words |= set("0123456789,") | {"a", "an", "objects", "object"} | set(SHAPES) | set(COLOURS)
    words |= set(entries["plurals"].values()) | {w for name in COCO_CATEGORIES for w in name.split()}
    return sorted(words)


def _listed(group: Mapping[str, Any]) -> list[str]:
    choices = group.get("choices", [])
    return [] if isinstance(choices, str) else list(choices)


def question_fingerprint() -> dict[str, Any]:
    """Identity of the wordings and rules of questions, for digests of stages with questions."""
    text = resources.files("orchestrator.data").joinpath("templates.yaml").read_bytes()
    return {"templates": hashlib.sha256(text).hexdigest(), "version": QUESTIONS_VERSION}
