"""Search spaces of a study: limits and sampling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from orchestrator.config import RunConfig, SearchAxis
from orchestrator.config.probe_search import SETTINGS, configured
from orchestrator.config.sweep import Sweep, set_key, validate
from orchestrator.errors import ConfigError, did_you_mean


def draw(axis: SearchAxis, rng: Any) -> Any:
    """One value of a search space, from a numpy generator."""
    if axis.kind == "choice":
        return (axis.values or ())[int(rng.integers(len(axis.values or ())))]
    low, high = bounds(axis)
    if axis.kind == "randint":
        return int(rng.integers(int(low), int(high)))
    if axis.kind == "loguniform":
        return math.exp(rng.uniform(math.log(low), math.log(high)))
    return float(rng.uniform(low, high))


def bounds(axis: SearchAxis) -> tuple[float, float]:
    """Both ends of a numeric space; validation guarantees that they exist."""
    assert axis.low is not None
    assert axis.high is not None
    return axis.low, axis.high


def sampled(run: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """The point with sampled values.

    Raises:
        ConfigError: a sampled value is not valid for its key.
    """
    tree = run.model_dump(mode="json")
    for key, value in values.items():
        tree = set_key(tree, key, value, where="search")
    return validate(RunConfig, tree, "search")


def check_search(sweep: Sweep) -> None:
    """Check before work starts that searched keys exist and that spaces are within the keys' limits.

    Raises:
        ConfigError: an unknown key or a value outside its limits.
    """
    for key, axis in sweep.study.search.items():
        section, _, name = key.partition(".")
        if section == "probe":
            if name not in SETTINGS:
                raise ConfigError(f"search: unknown probe setting {name!r}.{did_you_mean(name, SETTINGS)}")
            for value in extremes(axis):
                configured(sweep.points[0].run.probe, {name: value})
        elif section == "finetune":
            for point in sweep.points:
                for value in extremes(axis):
                    sampled(point.run, {key: value})
        else:
            raise ConfigError(f"search.{key}: only keys of finetune and probe can be searched")


def extremes(axis: SearchAxis) -> list[Any]:
    """All choices, or both ends of a range."""
    if axis.kind == "choice":
        return list(axis.values or ())
    low, high = bounds(axis)
    return [int(low), int(high) - 1] if axis.kind == "randint" else [low, high]
