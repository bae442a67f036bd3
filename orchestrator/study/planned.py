"""Types of a plan: what `vtsweep plan` shows of a study, its stages and its models. See `study.plan.make_plan`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.ablate.selectors.price import Price
from orchestrator.data.summary import AttributeSummary
from orchestrator.study.cards import CardPlan
from orchestrator.study.planned_design import PlannedDesign
from orchestrator.study.planned_pictures import PlannedPictures


@dataclass(frozen=True)
class PlannedStage:
    """One distinct stage directory and the number of points that share it."""

    stage: str
    label: str
    digest: str
    points: int
    done: str
    seconds: float | None = None
    """Estimated seconds of the remaining work; None if the model's sizes are unknown."""


@dataclass(frozen=True)
class PlannedModel:
    """Cost of capturing one model on one data source."""

    model: str
    source: str
    images: int | None
    layers: int
    vision_tokens: int
    width: int
    actor_memory_gb: float
    tflop_per_image: float
    bytes_per_image: int
    total_gb: float | None


@dataclass(frozen=True)
class Plan:
    name: str
    storage: str
    stages: list[PlannedStage]
    models: list[PlannedModel]
    pools: str
    problems: list[str]
    attributes: list[AttributeSummary]
    designs: Sequence[PlannedDesign] = ()
    """Designed scenes: factors, impossible cells and correlations of attributes."""
    power: str = ""
    """Power of contrasts over seeds; empty without fine-tuning at several ratios."""
    axes: dict[str, list[Any]] = field(default_factory=dict)
    """Values of each axis."""
    points: int = 1
    machine: str = ""
    seconds: float | None = None
    """Estimated seconds of all remaining work on this machine; None if a part is unknown."""
    gpu_hours: float | None = None
    pictures: Sequence[PlannedPictures] = ()
    """What models that cut pictures do to them, and to the truths about them."""
    too_large: list[str] = field(default_factory=list)
    """Workers whose models do not fit this machine's memory; a run here would raise."""
    kept_as: str = ""
    """Name of the record; differs from the study's name if that record has other settings."""
    selection: Sequence[Price] = ()
    """Operations of token selection in an ablation, and operations saved."""
    probes: str = ""
    """Device that the probes would use on this machine, with the estimates that decide it; empty without probes."""
    without_image: Sequence[str] = ()
    """Rows of question files without an image: how many, and what each stage does with them."""
    across: Sequence[str] = ()
    """What of the causal checks does not apply to models with cross-attention."""
    card: CardPlan | None = None
    """The estimate for the requested GPU model, independent of this machine."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)
