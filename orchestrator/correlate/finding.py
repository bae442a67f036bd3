"""One statement about one model on one source, with its verdict and what it rests on."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.stats.verdict import Verdict


@dataclass(frozen=True)
class Finding:
    """One statement about one model on one source. `effect` has the unit named in `effect_name`."""

    claim: str
    """`depth`, `objects`, `coco_drivers` (the paper's), or `attribute`."""
    statement: str
    holds: Verdict
    group: str
    where: str
    """all of the depth."""
    attribute: str | None
    effect_name: str
    effect: float | None
    ci_low: float | None
    ci_high: float | None
    smallest: float | None
    """Smallest effect of interest, in the effect's unit."""
    n: int
    agreement: float | None
    """Share of the family's (metric, layer) pairs that are significant (q < 0.05) with the effect's sign, if any."""
    family: str | None = None
    """Family of metrics that the statement is about; None for several."""
    given: str = ""
    """Attributes held fixed, comma-separated; empty where nothing was."""
