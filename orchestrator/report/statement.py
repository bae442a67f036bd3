"""A statement of the report, and numbers as it writes them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Statement:
    """`verdict` is one of `stats.verdict.VERDICTS` for a tested claim, empty for a measurement."""

    text: str
    evidence: str
    verdict: str = ""
    topic: str = ""


def number(value: float | None, digits: int = 2) -> str:
    """`0.4567` -> `0.46`, with a true minus sign; `n/a` for None and NaN."""
    return "n/a" if value is None or math.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def percent(value: float | None) -> str:
    """`0.4567` -> `46 %`; `n/a` for None and NaN."""
    return "n/a" if value is None or math.isnan(value) else f"{100 * value:.0f} %".replace("-", "−")


def interval(low: float | None, high: float | None, shown: Any = number) -> str:
    """`[0.31, 0.52]`, or `no interval` where there is none."""
    return "no interval" if low is None or high is None else f"[{shown(low)}, {shown(high)}]"
