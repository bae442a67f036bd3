"""The stages of a study: how each one's directory is named, and how it is run. Heavy imports happen when it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.config import RunConfig, SearchAxis, StageName
from orchestrator.store.filesystem import Storage
from orchestrator.store.stage_folder import Stage

Search = Mapping[str, SearchAxis]
"""Dotted key -> space: the study's `search` section."""


@dataclass(frozen=True)
class StageKind:
    """One kind of stage.

    `make` returns the stage's directory without doing work (no torch, no ray). `run` does the work of several distinct
    runs, skipping what is finished; it may be called again after any interruption. It returns the runs it did, those
    that a search added included.
    """

    make: Callable[[RunConfig, Storage], Stage]
    run: Callable[[Sequence[RunConfig], Storage, Search, bool], Sequence[RunConfig]]
    inputs: tuple[StageName, ...] = ()
    uses_ray: bool = True


def _of(section: str, search: Search) -> Search:
    """The searched keys of one section."""
    return {key: axis for key, axis in search.items() if key.startswith(f"{section}.")}


def _capture(run: RunConfig, storage: Storage) -> Stage:
    from orchestrator.capture.capture_stage import capture_stage

    return capture_stage(run, storage)


def _run_capture(runs: Sequence[RunConfig], storage: Storage, _: Search, quiet: bool) -> Sequence[RunConfig]:
    from orchestrator.capture.capture_stage import run_capture

    for run in runs:
        run_capture(run, storage, quiet=quiet)
    return runs


def _correlate(run: RunConfig, storage: Storage) -> Stage:
    from orchestrator.correlate.correlate_stage import correlate_stage

    return correlate_stage(run, storage, _capture(run, storage))


def _run_correlate(runs: Sequence[RunConfig], storage: Storage, _: Search, quiet: bool) -> Sequence[RunConfig]:
    from orchestrator.correlate.correlate_stage import run_correlate

    for run in runs:
        run_correlate(run, storage, _capture(run, storage), quiet=quiet)
    return runs


def _probe(run: RunConfig, storage: Storage) -> Stage:
    from orchestrator.probes.probe_stage import probe_stage

    return probe_stage(run, storage, _capture(run, storage))


def _run_probe(runs: Sequence[RunConfig], storage: Storage, search: Search, quiet: bool) -> Sequence[RunConfig]:
    from orchestrator.probes.ray import run_probe_stage

    for run in runs:
        run_probe_stage(run, storage, _capture(run, storage), search=_of("probe", search) or None, quiet=quiet)
    return runs


def _finetune(run: RunConfig, storage: Storage) -> Stage:
    from orchestrator.finetune.finetune_stage import trial_stage

    return trial_stage(run, storage)


def _run_finetune(runs: Sequence[RunConfig], storage: Storage, search: Search, quiet: bool) -> Sequence[RunConfig]:
    from orchestrator.finetune.ray.trials import run_trials

    return run_trials(runs, storage, search=_of("finetune", search) or None, quiet=quiet)


def _ablate(run: RunConfig, storage: Storage) -> Stage:
    from orchestrator.ablate.ablate_stage import ablate_stage

    return ablate_stage(run, storage)


def _run_ablate(runs: Sequence[RunConfig], storage: Storage, _: Search, quiet: bool) -> Sequence[RunConfig]:
    from orchestrator.ablate.ray import run_ablate_stage

    for run in runs:
        run_ablate_stage(run, storage, quiet=quiet)
    return runs


STAGE_KINDS: dict[StageName, StageKind] = {
    "capture": StageKind(_capture, _run_capture),
    "correlate": StageKind(_correlate, _run_correlate, inputs=("capture",), uses_ray=False),
    "probe": StageKind(_probe, _run_probe, inputs=("capture",)),
    "finetune": StageKind(_finetune, _run_finetune),
    "ablate": StageKind(_ablate, _run_ablate),
}


def with_inputs(stages: Sequence[StageName]) -> list[StageName]:
    """`stages` in running order, preceded by the stages they read."""
    wanted = set(stages)
    for name in stages:
        wanted.update(STAGE_KINDS[name].inputs)
    return [name for name in STAGE_KINDS if name in wanted]
