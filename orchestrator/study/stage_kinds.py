"""The stages of a study: naming of directories, and execution. Heavy imports are deferred until a stage runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.ablate.ablate_stage import ablate_stage
from orchestrator.capture.capture_stage import capture_stage, run_capture
from orchestrator.config import SearchAxis, StageName
from orchestrator.correlate.correlate_stage import correlate_stage, run_correlate
from orchestrator.finetune.finetune_stage import trial_stages
from orchestrator.finetune.ray.search import is_searched
from orchestrator.probes.probe_stage import probe_stage
from orchestrator.store.resolved_point import ResolvedPoint
from orchestrator.store.stage_folder import Stage

Watch = Callable[[ResolvedPoint, str], None]
"""Called with the point of a search's sample, and `running` or how it ended."""
Search = Mapping[str, SearchAxis]
"""Dotted key -> space: the searched keys of one stage."""


@dataclass(frozen=True)
class StageKind:
    """One kind of stage.

    `name_stages` gives the stages of a point whose inputs are resolved, without work; the kind's own stage is last.
    `run` executes several distinct points and skips finished work; it may be called again after any interruption. It
    returns the executed points, including those that a search added; `Watch` is told of these while they run.
    """

    name_stages: Callable[[ResolvedPoint], Sequence[Stage]]
    run: Callable[[Sequence[ResolvedPoint], Search, bool, Watch], Sequence[ResolvedPoint]]
    inputs: tuple[StageName, ...] = ()
    uses_ray: bool = True
    is_searched: Callable[[Sequence[ResolvedPoint], Search], bool] | None = None
    """Whether a search is complete that runs samples instead of the points' own stages."""


def _each(run: Callable[..., Any], points: Sequence[ResolvedPoint], **options: Any) -> Sequence[ResolvedPoint]:
    for point in points:
        run(point, **options)
    return points


def _run_capture(points: Sequence[ResolvedPoint], _: Search, quiet: bool, __: Watch) -> Sequence[ResolvedPoint]:
    return _each(run_capture, points, quiet=quiet)


def _run_correlate(points: Sequence[ResolvedPoint], _: Search, quiet: bool, __: Watch) -> Sequence[ResolvedPoint]:
    return _each(run_correlate, points, quiet=quiet)


def _run_probe(points: Sequence[ResolvedPoint], search: Search, quiet: bool, _: Watch) -> Sequence[ResolvedPoint]:
    from orchestrator.probes.ray import run_probe_stage

    return _each(run_probe_stage, points, search=search, quiet=quiet)


def _run_finetune(
    points: Sequence[ResolvedPoint], search: Search, quiet: bool, watch: Watch
) -> Sequence[ResolvedPoint]:
    from orchestrator.finetune.ray.trials import run_trials

    return run_trials(points, search=search, quiet=quiet, watch=watch)


def _run_ablate(points: Sequence[ResolvedPoint], _: Search, quiet: bool, __: Watch) -> Sequence[ResolvedPoint]:
    from orchestrator.ablate.ray import run_ablate_stage

    return _each(run_ablate_stage, points, quiet=quiet)


STAGE_KINDS: dict[StageName, StageKind] = {
    "capture": StageKind(lambda point: [capture_stage(point)], _run_capture),
    "correlate": StageKind(lambda point: [correlate_stage(point)], _run_correlate, ("capture",), uses_ray=False),
    "probe": StageKind(lambda point: [probe_stage(point)], _run_probe, ("capture",)),
    "finetune": StageKind(trial_stages, _run_finetune, is_searched=is_searched),
    "ablate": StageKind(lambda point: [ablate_stage(point)], _run_ablate),
}


def with_inputs(stages: Sequence[StageName]) -> list[StageName]:
    """`stages` in order of execution, with the stages that they read."""
    needed = set(stages)
    for name in stages:
        needed.update(STAGE_KINDS[name].inputs)
    return [name for name in STAGE_KINDS if name in needed]
