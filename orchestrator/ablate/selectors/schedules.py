"""Schedules of deletion: shares kept at each depth such that all methods have the same average number of tokens.

The average is over the decoder layers that read the image (R of them): a method that deletes half of the tokens after
half of the layers keeps 75 %. This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from orchestrator.ablate.selectors.kinds import Selector
from orchestrator.errors import ConfigError

Schedule = tuple[tuple[int, float], ...]
"""(depth, share of the image's tokens left from there on), depths ascending."""


def schedule_for(selector: Selector, n_layers: int, cross_layers: Sequence[int], budget: float) -> Schedule:
    """The schedule of a method at a budget.

    Args:
        budget: average share of tokens, 0 to 1.

    Raises:
        ConfigError: the layers before the method's first depth alone see more than the budget.
    """
    reading = list(cross_layers) or list(range(n_layers))
    places = depths(selector, len(reading))
    least = places[0] / len(reading)
    if budget >= 1.0:
        return tuple((reading[place], 1.0) for place in places)
    if budget <= least:
        raise ConfigError(
            f"{selector.name} leaves all tokens to {places[0]} of {len(reading)} layers that read the image, so its"
            f" average stays above {least:.0%}; the budget is {budget:.0%}"
        )
    shares = _solve(_family(selector, len(places)), places, len(reading), budget)
    return tuple((reading[place], share) for place, share in zip(places, shares, strict=True))


def depths(selector: Selector, n_reading: int) -> list[int]:
    """Indices, among the layers that read the image, before which a method deletes tokens: distinct, at least one.

    A method that selects inside the decoder does so after the first layer at the earliest.
    """
    places = [0 if depth == 0 else min(n_reading - 1, max(1, round(depth * n_reading))) for depth in selector.depths]
    return sorted(set(places))


def average_share(schedule: Sequence[tuple[int, float]], n_layers: int, cross_layers: Sequence[int]) -> float:
    """Share of tokens present, mean over the layers that read the image."""
    reading = list(cross_layers) or list(range(n_layers))
    present = [next((share for depth, share in reversed(schedule) if depth <= layer), 1.0) for layer in reading]
    return sum(present) / len(present)


def _family(selector: Selector, n: int) -> Callable[[float], list[float]]:
    """Shares kept at `n` depths for a number from 0 (none) to 1 (all)."""
    if selector.profile == "geometric":
        return lambda c: [c ** (k + 1) for k in range(n)]
    weights = list(selector.profile)[-n:]
    if len(weights) < n:
        raise ConfigError(f"{selector.name}: {n} depths and {len(weights)} relative shares; expected as many")
    return lambda c: [min(1.0, c / (1.0 - c) * w / weights[0]) if c < 1.0 else 1.0 for w in weights]


def _solve(shares: Callable[[float], list[float]], places: Sequence[int], n_reading: int, budget: float) -> list[float]:
    """The shares whose average over the layers is the budget, by bisection: the average grows with the number."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        ends = [*places[1:], n_reading]
        held = [(end - start) * s for start, end, s in zip(places, ends, shares(middle), strict=True)]
        low, high = (low, middle) if places[0] + sum(held) > budget * n_reading else (middle, high)
    return [min(1.0, share) for share in shares((low + high) / 2)]
