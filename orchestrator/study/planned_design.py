"""Designed scenes in `plan`: factors, impossible cells, and correlations of the scenes' attributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.config import DataConfig, ScenesConfig
from orchestrator.data.associations import Pair, associations, roles_of
from orchestrator.data.design import DesignSummary, check_design
from orchestrator.data.source import ScenesSource

MAX_SCENES = 400
"""Number of scenes examined (the first ones)."""


@dataclass(frozen=True)
class PlannedDesign:
    """One design, and statistics of its first scenes."""

    summary: DesignSummary
    n_images: int
    """Number of scenes examined."""
    among_factors: list[Pair]
    """Achieved rank correlations of two factors, strongest first."""
    derived: list[Pair]
    """Rank correlations of a derived attribute and a factor."""


def planned_designs(sources: Sequence[DataConfig]) -> list[PlannedDesign]:
    """Every distinct design among the data of a study's points."""
    designs = []
    for config in dict.fromkeys(data for data in sources if isinstance(data, ScenesConfig) and data.design):
        source = ScenesSource(config)
        n = min(len(source), MAX_SCENES)
        rows = [source.attributes(index) for index in range(n)]
        names = [name for name, kind in source.attribute_kinds.items() if kind != "categorical"]
        pairs = associations({name: [row[name] for row in rows] for name in names}, roles_of(source))
        designs.append(
            PlannedDesign(
                check_design(config),
                n,
                [p for p in pairs if (p.first_role, p.second_role) == ("factor", "factor")],
                [p for p in pairs if {p.first_role, p.second_role} == {"factor", "derived"}],
            )
        )
    return designs
