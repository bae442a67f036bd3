"""One point of a study, and the sweep file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from orchestrator.config.ablate import AblateConfig
from orchestrator.config.capture import CaptureConfig, CorrelateConfig, ModelConfig
from orchestrator.config.data import DataConfig, ScenesConfig
from orchestrator.config.finetune import FinetuneConfig
from orchestrator.config.how import HowConfig, TrackConfig
from orchestrator.config.probe import ProbeConfig
from orchestrator.config.section import Float, Section, StageName


class SearchAxis(Section):
    """One searched hyperparameter; samples are drawn from seeds, or proposed by Optuna."""

    kind: Literal["uniform", "loguniform", "randint", "choice"]
    low: Float | None = None
    high: Float | None = None
    values: tuple[Any, ...] | None = None

    @model_validator(mode="after")
    def _complete(self) -> SearchAxis:
        if self.kind == "choice":
            if not self.values:
                raise ValueError("choice needs a non-empty `values`")
        elif self.low is None or self.high is None or self.low >= self.high:
            raise ValueError(f"{self.kind} needs `low` < `high`")
        elif self.kind == "loguniform" and self.low <= 0:
            raise ValueError("loguniform needs `low` > 0")
        elif self.kind == "randint" and (self.low % 1 or self.high % 1):
            raise ValueError("randint needs whole numbers")
        return self


class RunConfig(Section):
    """One point of a study."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = ScenesConfig()
    capture: CaptureConfig = CaptureConfig()
    correlate: CorrelateConfig = CorrelateConfig()
    probe: ProbeConfig = ProbeConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    ablate: AblateConfig = AblateConfig()
    how: HowConfig = HowConfig()
    search: dict[str, SearchAxis] = Field(default_factory=dict)
    """The probes' part of the study's `search` section; set when the study is expanded."""

    @model_validator(mode="after")
    def _boxes_are_known(self) -> RunConfig:
        if self.capture.object_positions and self.data.source not in ("scenes", "coco"):
            raise ValueError(
                f"capture.object_positions: where all objects of an image lie is known of the sources scenes and coco; "
                f"found data.source {self.data.source!r}"
            )
        if self.capture.object_positions and not self.capture.keep_features:
            raise ValueError("capture.object_positions: nothing is kept for probes with keep_features: false")
        return self


class StudyConfig(Section):
    """A sweep file: shared settings, axes, and stages."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """Name of the study, of its folder and of its MLflow experiment."""
    description: str = ""
    """The research question, in one sentence."""
    storage: Annotated[str, Field(min_length=1)] = "results"
    """Folder or URI of all results."""
    stages: Annotated[tuple[StageName, ...], Field(min_length=1)] = ("capture", "correlate")
    """Stages in order of execution; a report and MLflow runs follow."""
    base: dict[str, Any] = Field(default_factory=dict)
    """Settings shared by all points."""
    axes: dict[str, list[Any]] = Field(default_factory=dict)
    """Dotted key -> values; the grid is their Cartesian product."""
    zip: dict[str, list[Any]] = Field(default_factory=dict)
    """Dotted key -> values taken in lockstep (all lists equally long)."""
    search: dict[str, SearchAxis] = Field(default_factory=dict)
    """Dotted key -> search space."""
    track: TrackConfig = TrackConfig()
