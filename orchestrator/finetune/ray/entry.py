"""The work of a Tune trial: its kind, resolved point, sample of a search, and the driver's working directory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config import RunConfig
from orchestrator.finetune.finetune_stage import sampled_point
from orchestrator.store.resolved_point import ResolvedPoint
from orchestrator.store.stage_folder import digest


def describe(run: RunConfig) -> str:
    """`ratio=0.5 seed=1 (3fa9c2)`: the last part is unique among settings."""
    settings = run.finetune
    unique = digest(settings.model_dump(mode="json"))[:6]
    return f"ratio={settings.complexity_ratio:g} seed={settings.seed} ({unique})"


@dataclass(frozen=True)
class Entry:
    """The work of a Tune trial, parsed from its configuration."""

    kind: str
    resolved: ResolvedPoint
    """The point with the sample's values."""
    point: str
    """Digest of the searched point's own trial; empty outside a search."""
    number: int
    values: dict[str, Any]

    @property
    def name(self) -> str:
        """Name for messages."""
        if self.kind == "baseline":
            return "base model"
        if not self.point:
            return describe(self.resolved.run)
        return f"sample {self.number} of point {self.point[:6]} {describe(self.resolved.run)}"


def read_entry(config: Mapping[str, Any]) -> Entry:
    """Parse a Tune trial's configuration."""
    entry = json.loads(config["entry"])
    chosen = {key.removeprefix("search/"): value for key, value in config.items() if key.startswith("search/")}
    values = {**entry["values"], **chosen}
    resolved = sampled_point(ResolvedPoint.from_json(entry["resolved"]), values)
    return Entry(entry["kind"], resolved, entry["point"], entry["number"], values)


def enter_folder(config: Mapping[str, Any]) -> None:
    """Change to the driver's working directory, so that relative paths of models and data are valid."""
    folder = json.loads(config["entry"])["folder"]
    if Path(folder).is_dir():
        os.chdir(folder)
