"""Types of token selection: `Selector` (a method's declaration) and `Request` (its input). Does not import torch."""

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
    """Sizes that the operations of a selection depend on."""

    v: int
    """Visual tokens."""
    d: int
    """Width of the states."""
    n: int
    """Tokens kept."""
    t: int
    """Tokens of the question."""


@dataclass(frozen=True)
class Request:
    """Input of a method: select `n` of the visual tokens of one image."""

    seen: Seen
    n: int
    """How many, 1 to V - 1."""
    settings: Settings = field(default_factory=dict)
    seed: tuple[int, ...] = (0,)
    """Seed sequence of random methods."""


Choice = Callable[[Request], "Tensor | Kept"]
"""Returns at least `n` token indices in order of preference, or `Kept` tokens with weights."""


@dataclass(frozen=True)
class Selector:
    """One method of selecting visual tokens."""

    name: str
    keeps: str
    """What it keeps, as a phrase."""
    source: str
    """Paper, with what differs here."""
    choose: Choice | str
    """The function, or `module:function`, imported when it is first used."""
    needs: frozenset[Need] = frozenset()
    depths: tuple[float, ...] = (0.0,)
    """Depths of deletion in comparisons, as shares of the layers that read the image; 0: before the decoder. With
    several depths tokens are deleted step by step."""
    profile: tuple[float, ...] | Literal["geometric"] = (1.0,)
    """Relation of the shares kept at several depths: proportional to these numbers, or a geometric sequence."""
    settings: Settings = field(default_factory=dict)
    """Settings with their defaults; `ablate.selector_settings` overrides them."""
    merges: bool = False
    draws: bool = False
    """Whether the selection is random, and so depends on a seed."""
    operations: Callable[[Sizes], float] = lambda _: 0.0
    """Floating-point operations of the selection."""
    cost: str = ""
    """The operations in words."""

    @property
    def at_input(self) -> bool:
        """Whether it can select before the decoder."""
        return not self.needs & {"attention", "own_attention", "keys"}

    def needs_at(self, layer: int) -> frozenset[Need]:
        """Inputs of a selection at a depth; inside the decoder, attention needs no separate forward pass."""
        if "full_pass" in self.needs and layer > 0:
            return self.needs - {"full_pass"} | {"attention"}
        return self.needs

    def function(self) -> Choice:
        """The function, imported."""
        if not isinstance(self.choose, str):
            return self.choose
        module, _, name = self.choose.partition(":")
        return getattr(importlib.import_module(module), name)
