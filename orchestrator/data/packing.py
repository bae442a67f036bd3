"""Positions of non-overlapping discs on the canvas with an exact root mean square distance from their mean.

Shapes: U discs; `centres` (U, 2) float64, px. A disc may contain several objects at fixed offsets from its centre.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

MAX_PACKED = 0.6
"""Maximum packing fraction. Random packing by repulsion jams beyond 0.8."""
EVEN = math.sqrt(1 / 6)
"""Root mean square distance from the centre of uniform points in a unit square."""
_ROUNDS = 400


def packed_share(radii: Float[np.ndarray, " U"], spread: float, width: float, height: float, gap: float) -> float:
    """Packing fraction: area of the discs over that of a disc of the given spread, or of the canvas if smaller."""
    room = min(2 * math.pi * spread**2, width * height)
    return float(np.sum((radii + gap / 2) ** 2)) * math.pi / room


def place(
    rng: np.random.Generator,
    radii: Float[np.ndarray, " U"],
    offsets: list[Float[np.ndarray, "m 2"]],
    spread: float,
    width: float,
    height: float,
    gap: float,
) -> Float[np.ndarray, "U 2"] | None:
    """Centres of discs, by alternating repulsion, scaling to the spread and projection to the canvas; None on failure.

    Args:
        radii: radii of discs, px, which contain the objects at `offsets` from the centre.
        spread: root mean square distance of all objects from their mean, px, exact up to rounding.
        gap: minimum distance between discs, px.
    """
    n = len(radii)
    members = np.repeat(np.arange(n), [len(part) for part in offsets])
    moved = np.concatenate(offsets)
    side = min(spread / EVEN, width, height)
    centres = (rng.random((n, 2)) - 0.5) * side
    box = np.array([width, height]) / 2 - radii[:, None]
    reach = radii[:, None] + radii + gap
    np.fill_diagonal(reach, 0.0)
    for _ in range(_ROUNDS):
        scaled = _to_spread(centres, members, moved, spread)
        if scaled is None:
            return None
        centres = _onto_canvas(scaled, box)
        difference = centres[:, None] - centres
        distance = np.hypot(difference[..., 0], difference[..., 1])
        overlap = reach - distance
        np.fill_diagonal(overlap, 0.0)
        points = centres[members] + moved
        off = math.sqrt(float(points.var(0).sum())) / spread - 1
        if overlap.max() <= 1e-9 and abs(off) < 1e-9:
            return _anywhere(rng, centres, box) + np.array([width, height]) / 2
        push = np.clip(overlap, 0, None)[..., None] * difference / np.maximum(distance, 1e-9)[..., None]
        centres = centres + 0.55 * push.sum(1)
    return None


def _to_spread(
    centres: Float[np.ndarray, "U 2"], members: np.ndarray, moved: Float[np.ndarray, "n 2"], spread: float
) -> Float[np.ndarray, "U 2"] | None:
    """Centres scaled about the objects' mean to match the objects' spread; None if no scale does."""
    anchors = centres[members] - centres[members].mean(0)
    free = moved - moved.mean(0)
    a, b, c = (anchors**2).sum(), (anchors * free).sum(), (free**2).sum() - len(members) * spread**2
    inside = b * b - a * c
    if a <= 0 or inside < 0:
        return None
    return (centres - centres[members].mean(0)) * ((-b + math.sqrt(inside)) / a)


def _onto_canvas(centres: Float[np.ndarray, "U 2"], box: Float[np.ndarray, "U 2"]) -> Float[np.ndarray, "U 2"]:
    """Translate all discs onto the canvas together; then move those that still exceed it individually."""
    low, high = (-box - centres).max(0), (box - centres).min(0)
    shift = np.where(low <= high, np.clip(0, low, high), (low + high) / 2)
    return np.clip(centres + shift, -box, box)


def _anywhere(
    rng: np.random.Generator, centres: Float[np.ndarray, "U 2"], box: Float[np.ndarray, "U 2"]
) -> Float[np.ndarray, "U 2"]:
    """Translate all discs together to a random place on the canvas."""
    low, high = (-box - centres).max(0), (box - centres).min(0)
    return centres + low + rng.random(2) * np.maximum(high - low, 0)
