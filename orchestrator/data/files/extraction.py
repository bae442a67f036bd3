"""Extraction of the answer from a generated text: a regular expression, or a function of another package."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from orchestrator.errors import ConfigError, did_you_mean

ENTRY_POINT_GROUP = "vtsweep.answers"
Extract = Callable[[str], str]
"""Generated text -> its answer."""


@cache
def _points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def is_pattern(name: str) -> bool:
    """Whether `data.extract` is a regular expression (it has a group); otherwise it names a function."""
    return "(" in name


@cache
def find_extractor(name: str) -> Extract:
    """The extraction function of `data.extract`.

    A regular expression gives its first group in its last match, as a model that reasons first answers last; a text
    without a match is unchanged.

    Raises:
        ConfigError: no such function, not a function, or a pattern that is invalid or does not have exactly one group.
    """
    if not is_pattern(name):
        if name not in _points():
            raise ConfigError(
                f"data.extract: no function {name!r} in the entry-point group {ENTRY_POINT_GROUP}, and a regular "
                f"expression has a group, as 'answer is (\\w+)'.{did_you_mean(name, _points())}"
            )
        function = _points()[name].load()
        if not callable(function):
            raise ConfigError(f"data.extract: {name!r} ({_points()[name].value}) is no function of a text")
        return function
    try:
        pattern = re.compile(name)
    except re.error as error:
        raise ConfigError(f"data.extract: {name!r} is no regular expression: {error}") from None
    if pattern.groups != 1:
        raise ConfigError(f"data.extract: expected one group in {name!r}, found {pattern.groups}")

    def extract(text: str) -> str:
        matches = pattern.findall(text)
        return matches[-1] if matches else text

    return extract
