"""One point of a study, and the sweep file."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from orchestrator.config.ablate import AblateConfig
from orchestrator.config.capture import CaptureConfig, CorrelateConfig, ModelConfig
from orchestrator.config.data import DataConfig, ScenesConfig
from orchestrator.config.finetune import FinetuneConfig
from orchestrator.config.how import HowConfig, TrackConfig
from orchestrator.config.probe import ProbeConfig
from orchestrator.config.section import Float, Section, StageName

LONGEST_NAME = 120
"""Characters of a study's name, so that a record's (`record_format.Name`) holds the number of a version as well."""


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

    name: str
    """Name of the study, of its folder and of its MLflow experiment: letters, digits, `_`, `.` and `-`."""
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

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{LONGEST_NAME - 1}}}", name):
            usable = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("._-")[:LONGEST_NAME]
            found = repr(name) if len(name) <= LONGEST_NAME else f"{name[:20]!r}... of {len(name)} characters"
            raise ValueError(
                f"found {found}; expected 1 to {LONGEST_NAME} letters, digits, '_', '.' and '-', a letter or digit"
                f" first" + (f". Use {usable!r}" if 0 < len(usable) <= 40 else "")
            )
        return name

    @field_validator("storage")
    @classmethod
    def _is_no_half_uri(cls, storage: str) -> str:
        half = re.match(r"([a-z][a-z0-9+.-]+):/(?!/)(.*)", storage)
        if half and half[1] not in ("file", "local"):
            raise ValueError(
                f"found {storage!r}; expected {half[1]}://{half[2]} for an object store, or ./{storage} for a folder of"
                " that name"
            )
        return storage
