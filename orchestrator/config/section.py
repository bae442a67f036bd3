"""Base class of all settings sections, and constrained number types."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

Int = Annotated[int, Field(strict=True)]
PositiveInt = Annotated[int, Field(strict=True, ge=1)]
Count = Annotated[int, Field(strict=True, ge=0)]
Float = Annotated[float, Field(strict=True)]
Share = Annotated[float, Field(strict=True, ge=0.0, le=1.0)]
PositiveFloat = Annotated[float, Field(strict=True, gt=0.0)]

StageName = Literal["capture", "correlate", "probe", "finetune", "ablate"]
STAGES: tuple[StageName, ...] = get_args(StageName)


class Section(BaseModel):
    """Base of every section: immutable, no unknown keys, field docstrings shown by `--help` and in errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
