"""What a Tune trial carries: its kind, configuration, storage, and the driver's folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.config import RunConfig
from orchestrator.config.search_space import sampled
from orchestrator.store.stage_folder import Storage


def read_entry(config: Mapping[str, Any]) -> tuple[str, RunConfig, Storage]:
    """Kind, configuration and storage of a Tune trial."""
    entry = json.loads(config["entry"])
    values = {key.removeprefix("search/"): value for key, value in config.items() if key.startswith("search/")}
    return entry["kind"], sampled(RunConfig.model_validate(entry["run"]), values), Storage(entry["storage"])


def enter_folder(config: Mapping[str, Any]) -> None:
    """Make relative paths of models and data mean what they meant to the driver."""
    folder = json.loads(config["entry"])["folder"]
    if Path(folder).is_dir():
        os.chdir(folder)
