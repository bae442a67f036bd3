"""Probes of other packages: scikit-learn estimators named by an entry point of group `vtsweep.probes`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from orchestrator.errors import ConfigError, did_you_mean

ENTRY_POINT_GROUP = "vtsweep.probes"
BUILT_IN = ("ridge", "logistic", "mlp")
TASKS = ("classification", "regression")


@dataclass(frozen=True)
class UserProbe:
    """A probe of another package: the object that its `vtsweep.probes` entry point names.

    It is evaluated like the built-in probes: penalty chosen on inner folds of the training images, score on held-out
    images, shuffled-label control.
    """

    make: Callable[[str, float], Any]
    """(task, penalty) -> an unfitted scikit-learn estimator. `task` is one of `tasks`, `penalty` one of
    `probe.penalties`; features come centred, and scaled if `probe.standardise`."""
    tasks: tuple[str, ...] = TASKS
    """`classification` (predicts integer codes), `regression` (predicts numbers), or both."""


@cache
def _points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def probe_names() -> tuple[str, ...]:
    """Names of all probes, built-in first, then those of installed packages (which are not imported)."""
    return (*BUILT_IN, *sorted(_points().keys() - set(BUILT_IN)))


def load_user_probe(name: str) -> UserProbe:
    """Import the probe `name` that another package registers.

    Raises:
        ConfigError: no such probe, or its entry point does not name a `UserProbe`.
    """
    if name not in _points():
        raise ConfigError(f"unknown probe {name!r}.{did_you_mean(name, probe_names())}")
    probe = _points()[name].load()
    if not isinstance(probe, UserProbe) or not probe.tasks or not set(probe.tasks) <= set(TASKS):
        raise ConfigError(
            f"entry point {name!r} of group {ENTRY_POINT_GROUP!r} must name a UserProbe for {' or '.join(TASKS)}; "
            f"found {probe!r}"
        )
    return probe
