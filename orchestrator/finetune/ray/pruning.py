"""ASHA per point: never prunes all samples of a point, hence never a whole complexity ratio."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

REDUCTION = 3
"""Reduction factor: one in this many samples at a rung continues."""


def rung_steps(n_steps: int) -> list[int]:
    """Rungs: steps at which a sample of `n_steps` steps is compared: an eighth of them, then three times as many
    each."""
    first = max(1, n_steps // 8)
    return [first * REDUCTION**k for k in range(20) if first * REDUCTION**k < n_steps]


class PointASHA(FIFOScheduler):
    """One asynchronous successive halving (Li et al. 2018, arXiv 1810.05934) for each point of a study.

    Training losses of different mixtures are not comparable: easy questions have a lower loss, and a common ASHA would
    prune high ratios because they are hard. Samples are therefore compared within their point only, and the last
    sample of a point always runs to its end.

    Args:
        max_steps: optimiser steps of a complete trial.
        metric: quantity to compare; smaller is better.
    """

    def __init__(self, max_steps: int, metric: str = "loss") -> None:
        super().__init__()
        self._max_steps, self._metric = max_steps, metric
        self._points: dict[str, AsyncHyperBandScheduler] = {}
        self._alive: dict[str, set[str]] = {}

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    def _point(self, trial: Any) -> tuple[AsyncHyperBandScheduler, set[str]]:
        entry = _point_of(trial.config["entry"])
        if entry not in self._points:
            self._points[entry] = AsyncHyperBandScheduler(
                time_attr="step",
                metric=self._metric,
                mode="min",
                max_t=self._max_steps + 1,  # a trial ends by itself at its last step
                grace_period=max(1, self._max_steps // 8),  # the first of `rung_steps`
                reduction_factor=REDUCTION,
            )
            self._alive[entry] = set()
        return self._points[entry], self._alive[entry]

    def replay(self, point: str, number: int, rungs: Sequence[tuple[int, float]]) -> None:
        """Add the rungs of a sample of an earlier attempt, so that new samples are compared with it."""
        entry = json.dumps({"point": point})
        trial: Any = SimpleNamespace(trial_id=f"{point}-{number}", config={"entry": entry}, stub=True)
        scheduler, _ = self._point(trial)
        nobody: Any = None  # the scheduler reads only the trial and the result
        scheduler.on_trial_add(nobody, trial)
        for step, loss in rungs:
            scheduler.on_trial_result(nobody, trial, {"step": step, self._metric: loss, "training_iteration": step})

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        scheduler, alive = self._point(trial)
        alive.add(trial.trial_id)
        scheduler.on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        scheduler, alive = self._point(trial)
        decision = scheduler.on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP:
            if alive == {trial.trial_id}:
                return str(TrialScheduler.CONTINUE)
            alive.discard(trial.trial_id)
        return str(decision)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._point(trial)[1].discard(trial.trial_id)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._point(trial)[0].on_trial_remove(tune_controller, trial)


def _point_of(entry: str) -> str:
    """The point of a trial, from its entry; shared by the samples of one point."""
    return str(json.loads(entry)["point"])
