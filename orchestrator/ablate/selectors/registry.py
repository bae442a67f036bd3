"""Registry of selection methods, used by preflight, plan, cells, costs and documentation.

Built-in methods are in `entries.py`; a package adds its own by an entry point in the group `vtsweep.selectors` that
names a `Selector`. This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from orchestrator.ablate.selectors.entries import ENTRIES
from orchestrator.ablate.selectors.kinds import Selector, Settings
from orchestrator.errors import ConfigError, did_you_mean

ENTRY_POINT_GROUP = "vtsweep.selectors"


@cache
def _built_in() -> dict[str, Selector]:
    return {entry.name: entry for entry in ENTRIES}


@cache
def _user_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def selector_names() -> tuple[str, ...]:
    """Names of all methods, built-in first, then those of installed packages (which are not imported)."""
    return (*_built_in(), *sorted(_user_points().keys() - _built_in().keys()))


def get_selector(name: str) -> Selector:
    """The entry of a method.

    Raises:
        ConfigError: no such method, or its entry point names something else than a `Selector` of that name.
    """
    if name in _built_in():
        return _built_in()[name]
    if name not in _user_points():
        raise ConfigError(f"unknown way to choose tokens {name!r}.{did_you_mean(name, selector_names())}")
    selector = _user_points()[name].load()
    if not isinstance(selector, Selector) or selector.name != name:
        raise ConfigError(
            f"entry point {name!r} of group {ENTRY_POINT_GROUP!r} must name a Selector called {name!r}; "
            f"found {selector!r}"
        )
    return selector


def settings_of(selector: Selector, by_method: Mapping[str, Settings]) -> Settings:
    """A method's settings: its defaults, and what `ablate.selector_settings` says.

    Raises:
        ConfigError: a setting that the method does not have.
    """
    overrides = by_method.get(selector.name, {})
    for key in overrides:
        if key not in selector.settings:
            raise ConfigError(
                f"ablate.selector_settings.{selector.name}: unknown setting {key!r}."
                f"{did_you_mean(key, selector.settings) if selector.settings else ' It has none.'}"
            )
    return {**selector.settings, **overrides}
