"""Summary of a source's attributes for `plan` and `data`: kind, missing values and range."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from orchestrator.data.pixels import PIXEL_ATTRIBUTES
from orchestrator.data.sample import Source

MAX_LOOKED_AT = 2_000
"""Number of images whose attributes are examined; evenly spaced in larger sources."""


@dataclass(frozen=True)
class AttributeSummary:
    """One attribute over the examined images."""

    source: str
    attribute: str
    kind: str
    """count, continuous or categorical."""
    n_images: int
    """Number of examined images."""
    n_missing: int
    """Number of these images without a value."""
    range: str
    """Smallest and largest number, or the number of categories and the most frequent ones."""
    spellings: dict[str, int] = field(default_factory=dict)
    """Spellings of missing values in the whole table and how often each occurs; the empty text is an empty cell."""


def summarise_attributes(source: Source, limit: int = MAX_LOOKED_AT) -> list[AttributeSummary]:
    """Summarise every attribute without opening an image file.

    Scenes are drawn in blocks that are alike: the first ones tell as much as any, and cost one block instead of many.
    """
    n = min(len(source), limit)
    indices = np.arange(n) if source.name == "scenes" else np.linspace(0, len(source) - 1, n).round()
    rows = [source.attributes(int(index)) for index in indices]
    spellings: dict[str, dict[str, int]] = getattr(source, "missing_spellings", {})
    return [
        AttributeSummary(
            source.name,
            name,
            kind,
            n,
            sum(row[name] is None for row in rows if name in row),
            describe_range([row[name] for row in rows if row.get(name) is not None], kind)
            if name not in PIXEL_ATTRIBUTES or any(name in row for row in rows)
            else "from the pixels",
            spellings.get(name, {}),
        )
        for name, kind in source.attribute_kinds.items()
    ]


def describe_range(values: list[Any], kind: str) -> str:
    """Range of numbers, or categories with the most frequent first; a dash if there is no value."""
    if not values:
        return "-"
    if kind != "categorical":
        return f"{min(values):.4g} to {max(values):.4g}"
    names, counts = np.unique(np.array(values, dtype=str), return_counts=True)
    order = np.argsort(-counts, kind="stable")[:3]
    shown = ", ".join(str(names[i])[:24] for i in order)
    return f"{len(names)}: {shown}" + (", ..." if len(names) > 3 else "")
