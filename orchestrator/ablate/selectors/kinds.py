"""What a way to choose visual tokens declares, and what it is asked. Importing this module imports no torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from orchestrator.models.needs import Need

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.models.reduction import Kept, Seen

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
