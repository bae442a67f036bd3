"""Stages from a configuration alone, resolved as a study's preflight does: `run_capture(run, storage)` and the like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.ablate import ablate_stage as ablation
from orchestrator.ablate import ray as ablation_on_ray
from orchestrator.capture import capture_stage as capturing
from orchestrator.config import RunConfig, StageName
from orchestrator.finetune import trial
from orchestrator.finetune.ray import trials
from orchestrator.probes import probe_stage as probing
from orchestrator.probes import ray as probes_on_ray
from orchestrator.store.filesystem import Storage
from orchestrator.store.resolved_point import ResolvedPoint
from orchestrator.store.stage_folder import Stage
from orchestrator.study.resolve import resolve_run


def stage_of(run: RunConfig, storage: Storage, name: StageName) -> Stage:
    return resolve_run(run, storage, name).stages[name]


def capture_stage(run: RunConfig, storage: Storage) -> Stage:
    return stage_of(run, storage, "capture")


def run_capture(run: RunConfig, storage: Storage, **options: Any) -> Stage:
    return capturing.run_capture(resolve_run(run, storage, "capture"), **options)


def ablate_stage(run: RunConfig, storage: Storage) -> Stage:
    return stage_of(run, storage, "ablate")


def run_ablate(run: RunConfig, storage: Storage, **options: Any) -> Stage:
    return ablation.run_ablate(resolve_run(run, storage, "ablate"), **options)


def run_ablate_stage(run: RunConfig, storage: Storage, **options: Any) -> Stage:
    return ablation_on_ray.run_ablate_stage(resolve_run(run, storage, "ablate"), **options)


def trial_point(run: RunConfig, storage: Storage) -> ResolvedPoint:
    return resolve_run(run, storage, "finetune")


def trial_stage(run: RunConfig, storage: Storage) -> Stage:
    return trial_point(run, storage).stages["finetune"]


def baseline_stage(run: RunConfig, storage: Storage) -> Stage:
    return trial_point(run, storage).stages["baseline"]


def run_baseline(run: RunConfig, storage: Storage) -> Stage:
    return trial.run_baseline(trial_point(run, storage))


def run_trial(run: RunConfig, storage: Storage, *report: Any) -> Stage:
    return trial.run_trial(trial_point(run, storage), *report)


def run_trials(runs: Sequence[RunConfig], storage: Storage, **options: Any) -> list[RunConfig]:
    done = trials.run_trials([trial_point(run, storage) for run in runs], **options)
    return [point.run for point in done]


def probe_point(run: RunConfig, storage: Storage, capture: Stage) -> ResolvedPoint:
    """A point whose capture was made by hand."""
    point = resolve_run(run, storage).with_stages(capture)
    return point.with_stages(probing.probe_stage(point))


def probe_stage(run: RunConfig, storage: Storage, capture: Stage) -> Stage:
    return probe_point(run, storage, capture).stages["probe"]


def open_probes(run: RunConfig, storage: Storage, capture: Stage, **options: Any) -> probing.Work:
    return probing.open_probes(probe_point(run, storage, capture), **options)


def run_probes(run: RunConfig, storage: Storage, capture: Stage, **options: Any) -> Stage:
    return probing.run_probes(probe_point(run, storage, capture), **options)


def run_probe_stage(run: RunConfig, storage: Storage, capture: Stage, **options: Any) -> Stage:
    return probes_on_ray.run_probe_stage(probe_point(run, storage, capture), **options)
