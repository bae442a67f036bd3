"""What ways there are to choose visual tokens: read by preflight, plan, cells, costs and documentation.

Importing this module imports no torch. The built-in entries are in `entries.py`; a package adds its own by an entry
point in the group `vtsweep.selectors` that names a `Selector`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Literal, NamedTuple

from orchestrator.errors import ConfigError, did_you_mean
from orchestrator.models.needs import Need

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.models.reduction import Kept, Seen

ENTRY_POINT_GROUP = "vtsweep.selectors"
Settings = Mapping[str, float]


class Sizes(NamedTuple):
    """What the operations of choosing depend on."""

    v: int
    """Visual tokens."""
    d: int
    """Width of the states."""
    n: int
    """Tokens kept."""
    t: int
    """Tokens of the question."""


@dataclass(frozen=True)
class Wanted:
    """What a method is asked: which tokens of one image to keep."""

    seen: Seen
    n: int
    """How many, 1 to V - 1."""
    settings: Settings = field(default_factory=dict)
    seed: tuple[int, ...] = (0,)
    """For methods that draw."""


Choice = Callable[[Wanted], "Tensor | Kept"]
"""An order of at least `n` of the V tokens, the first to be kept most; or `Kept` tokens with weights."""


@dataclass(frozen=True)
class Selector:
    """One way to choose which visual tokens stay."""

    name: str
    keeps: str
    """What it keeps, as a phrase."""
    source: str
    """Paper, with what differs here."""
    choose: Choice | str
    """The function, or `module:function`, imported when it is first used."""
    needs: frozenset[Need] = frozenset()
    depths: tuple[float, ...] = (0.0,)
    """Where it deletes when compared with others, as shares of the layers that read the image; 0: before the decoder.
    Of several, tokens leave step by step."""
    profile: tuple[float, ...] | Literal["geometric"] = (1.0,)
    """How shares kept at several depths relate: proportional to these numbers, or each the same multiple of the one
    before."""
    settings: Settings = field(default_factory=dict)
    """Its settings with their defaults; `ablate.selector_settings` overrides them."""
    merges: bool = False
    draws: bool = False
    """Whether it depends on a seed."""
    operations: Callable[[Sizes], float] = lambda _: 0.0
    """Floating-point operations of choosing."""
    cost: str = ""
    """The operations in words."""

    @property
    def at_input(self) -> bool:
        """Whether it can choose before the decoder."""
        return not self.needs & {"attention", "own_attention", "keys"}

    def needs_at(self, layer: int) -> frozenset[Need]:
        """What it looks at when it chooses at a depth: inside the decoder, attention needs no pass of its own."""
        if "full_pass" in self.needs and layer > 0:
            return self.needs - {"full_pass"} | {"attention"}
        return self.needs

    def function(self) -> Choice:
        """The function, imported."""
        if not isinstance(self.choose, str):
            return self.choose
        module, _, name = self.choose.partition(":")
        return getattr(importlib.import_module(module), name)


@cache
def _built_in() -> dict[str, Selector]:
    from orchestrator.ablate.selectors.entries import ENTRIES

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


def settings_of(selector: Selector, given: Mapping[str, Settings]) -> Settings:
    """A method's settings: its defaults, and what `ablate.selector_settings` says.

    Raises:
        ConfigError: a setting that the method does not have.
    """
    own = given.get(selector.name, {})
    for key in own:
        if key not in selector.settings:
            raise ConfigError(
                f"ablate.selector_settings.{selector.name}: unknown setting {key!r}."
                f"{did_you_mean(key, selector.settings) if selector.settings else ' It has none.'}"
            )
    return {**selector.settings, **own}
