"""The stages of a study: how each one's directory is named, and how it is run. Heavy imports happen when it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.config import RunConfig, StageName
from orchestrator.layout import Stage, Storage


@dataclass(frozen=True)
class StageKind:
    """One kind of stage.

    `make` returns the stage's directory without doing work (no torch, no ray). `run` does the work of several distinct
    runs, skipping what is finished; it may be called again after any interruption.
    """

    make: Callable[[RunConfig, Storage], Stage]
    run: Callable[[Sequence[RunConfig], Storage, bool], None]
    inputs: tuple[StageName, ...] = ()
    uses_ray: bool = True


def _capture(run: RunConfig, storage: Storage) -> Stage:
    from orchestrator.capture.pipeline import capture_stage

    return capture_stage(run, storage)


def _run_capture(runs: Sequence[RunConfig], storage: Storage, quiet: bool) -> None:
    from orchestrator.capture.pipeline import run_capture

    for run in runs:
        run_capture(run, storage, quiet=quiet)


def _correlate(run: RunConfig, storage: Storage) -> Stage:
    from orchestrator.compression.stage import correlate_stage

    return correlate_stage(run, storage, _capture(run, storage))


def _run_correlate(runs: Sequence[RunConfig], storage: Storage, quiet: bool) -> None:
    from orchestrator.compression.stage import run_correlate

    for run in runs:
        run_correlate(run, storage, _capture(run, storage), quiet=quiet)


def _probe(run: RunConfig, storage: Storage) -> Stage:
    from orchestrator.probes.stage import probe_stage

    return probe_stage(run, storage, _capture(run, storage))


def _run_probe(runs: Sequence[RunConfig], storage: Storage, quiet: bool) -> None:
    from orchestrator.tuning_probes import run_probe_stage

    for run in runs:
        run_probe_stage(run, storage, _capture(run, storage), quiet=quiet)


def _finetune(run: RunConfig, storage: Storage) -> Stage:
    from orchestrator.finetune.trial import trial_stage

    return trial_stage(run, storage)


def _run_finetune(runs: Sequence[RunConfig], storage: Storage, quiet: bool) -> None:
    from orchestrator.tuning import run_trials

    run_trials(runs, storage, quiet=quiet)


def _ablate(run: RunConfig, storage: Storage) -> Stage:
    from orchestrator.ablate.stage import ablate_stage

    return ablate_stage(run, storage)


def _run_ablate(runs: Sequence[RunConfig], storage: Storage, quiet: bool) -> None:
    from orchestrator.tuning_ablate import run_ablate_stage

    for run in runs:
        run_ablate_stage(run, storage, quiet=quiet)


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
