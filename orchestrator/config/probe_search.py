"""Probe settings that a hyperparameter search may sample, and a probe's configuration with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.config.probe import ProbeConfig
from orchestrator.errors import ConfigError, did_you_mean

SOLVERS = {"linear": ("ridge", "logistic"), "mlp": ("mlp",)}
SETTINGS = ("solver", "positions", "penalty", "standardise", "width", "depth", "learning_rate")


def configured(config: ProbeConfig, settings: Mapping[str, Any]) -> ProbeConfig:
    """`config` with a trial's settings; all other settings, such as penalties, stay the study's.

    Raises:
        ConfigError: an unknown setting, or an invalid value.
    """
    for name in settings:
        if name not in SETTINGS:
            raise ConfigError(f"search: unknown probe setting {name!r}.{did_you_mean(name, SETTINGS)}")
    change: dict[str, Any] = {"engine": "batched", "controls": (), "n_bootstrap": 0}
    if (solver := settings.get("solver")) is not None:
        if solver not in SOLVERS:
            raise ConfigError(f"search: probe.solver: found {solver!r}, expected {' or '.join(SOLVERS)}")
        change["solvers"] = SOLVERS[solver]
    if "penalty" in settings:
        change |= {"penalties": (settings["penalty"],), "mlp_penalties": (settings["penalty"],)}
    if "standardise" in settings:
        change["standardise"] = settings["standardise"]
    change |= {f"mlp_{name}": settings[name] for name in ("width", "depth", "learning_rate") if name in settings}
    try:
        return ProbeConfig.model_validate({**config.model_dump(), **change})
    except ValueError as error:
        raise ConfigError(f"search: probe settings {dict(settings)}: {error}") from error
