"""What of a generated text is the answer: a regular expression, or a function of another package."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from orchestrator.errors import ConfigError, did_you_mean

ENTRY_POINT_GROUP = "vtsweep.answers"
Extract = Callable[[str], str]
"""Generated text -> the answer in it."""


@cache
def _points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def is_pattern(name: str) -> bool:
    """Whether `data.extract` is a regular expression: one with a group. Anything else names a function."""
    return "(" in name


@cache
def find_extractor(name: str) -> Extract:
    """The function that `data.extract` means.

    A regular expression gives its first group in its last match, and a text without a match stays as it is: a model
    that reasons first names its answer last.

    Raises:
        ConfigError: no such function, not a function, or a pattern that is broken or has other than one group.
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
        found = pattern.findall(text)
        return found[-1] if found else text

    return extract
