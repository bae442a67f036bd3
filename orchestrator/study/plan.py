"""Dry run of a study: points, digests, finished stages, estimates, and whether workers fit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from orchestrator.ablate.selectors.price import Price, prices
from orchestrator.config import RunConfig, StageName
from orchestrator.config.search_space import check_search
from orchestrator.config.sweep import Sweep
from orchestrator.data.presence import is_here
from orchestrator.data.source import make_source
from orchestrator.data.summary import MAX_LOOKED_AT, AttributeSummary, summarise_attributes
from orchestrator.errors import DataError, ModelError, ResourceError, VtsweepError
from orchestrator.models.identity import UNKNOWN
from orchestrator.models.planning import Footprint
from orchestrator.stats.intervals import MIN_SEEDS
from orchestrator.stats.power import REFERENCE_EFFECT, detectable_effect, paired_power
from orchestrator.store.filesystem import Storage
from orchestrator.store.resolved_point import ResolvedPoint, distinct
from orchestrator.store.stage_folder import Stage, canonical_json
from orchestrator.store.study_record import describe_run
from orchestrator.store.verify import check_unread
from orchestrator.study.across import across_words
from orchestrator.study.cards import Card, CardPlan, card_plan, card_seconds, find_card
from orchestrator.study.estimate import START_SECONDS, probe_placement, stage_seconds, this_machine
from orchestrator.study.planned import Plan, PlannedModel, PlannedStage
from orchestrator.study.planned_design import planned_designs
from orchestrator.study.planned_pictures import planned_pictures
from orchestrator.study.preflight import by_questions, check_file_questions, check_models, check_names
from orchestrator.study.resolve import Resolver
from orchestrator.study.resources import describe_resources
from orchestrator.study.row_pictures import row_footprint, rows_without_image
from orchestrator.study.stage_kinds import with_inputs
from orchestrator.study.versions import version_name


def make_plan(sweep: Sweep, gpu: str | None = None, n_gpus: int = 1) -> Plan:
    """Expand, digest and estimate a study; with `gpu`, also for `n_gpus` of this model (`cards.CARDS`).

    Weights, GPUs and data need not be available: what cannot be determined is listed in `problems`. What is available
    is checked as `run` checks it.

    Raises:
        ResourceError: the actor pools do not fit this machine (only where no cluster address is named).
        ConfigError: a name is unknown.
        DataError: data of this machine are malformed.
        DamagedError: a finished stage's records or files are not what was written.
        ModelError: an available model is incomplete, or does not support the settings.
    """
    card = find_card(gpu) if gpu else None
    storage = Storage(sweep.study.storage)
    problems: list[str] = []
    stages: dict[tuple[StageName, str], PlannedStage] = {}
    stage_names = with_inputs(sweep.study.stages)
    check_search(sweep)
    runs = [point.run for point in sweep.points]
    for run in runs:
        check_names(run, stage_names, None)
    for run in by_questions(runs):
        try:
            check_file_questions(run, stage_names)
        except DataError as error:
            if is_here(run.data):
                raise
            problems.append(str(error))
    problems += check_models(runs, stage_names)
    points = _resolved(sweep, stage_names, problems)
    for point in points:
        if point.model["prompt"] == UNKNOWN:
            problems.append(f"{point.run.model.label}: the prompt of its template; digests of a run will differ")
    for name in stage_names:
        for point in points:
            stage = point.stages[name]
            earlier = stages.get((name, stage.digest))
            label = point.label if name == "finetune" else describe_run(point.run)
            n_points = earlier.points + 1 if earlier else 1
            stages[name, stage.digest] = PlannedStage(name, label, stage.digest, n_points, _progress(stage))
    models = _models(runs, problems)
    pools, too_large = describe_resources(sweep, stage_names)
    timed = _timed(sweep, stages, points, partial(stage_seconds, machine=this_machine()))
    machine = this_machine()
    left = [stage.seconds for stage in timed if stage.done != "done"]
    total = None if None in left else START_SECONDS * bool(left) + sum(s or 0.0 for s in left)
    attributes = _attributes(runs)
    return Plan(
        sweep.study.name, storage.uri, timed, models, pools, list(dict.fromkeys(problems)), attributes,
        planned_designs([run.data for run in runs]),
        power_of_seeds(runs) if "finetune" in stage_names else "",
        pictures=planned_pictures(runs),
        axes=_axes(sweep), points=len(sweep.points), machine=machine.words, seconds=total,
        gpu_hours=None if total is None else total * machine.gpus / 3600, too_large=too_large,
        kept_as=version_name(sweep, storage)[0],
        selection=_selection(runs) if "ablate" in stage_names else (),
        probes=_probes_on(points) if "probe" in stage_names else "",
        without_image=rows_without_image(by_questions(runs), stage_names),
        across=across_words(runs, stage_names),
        card=_on_cards(sweep, stages, points, card, n_gpus) if card else None,
    )  # fmt: skip


def _distinct(runs: Sequence[RunConfig], *sections: str) -> list[RunConfig]:
    """Runs that differ in any of these sections."""
    return list({canonical_json(run.model_dump(mode="json", include=set(sections))): run for run in runs}.values())


def _selection(runs: Sequence[RunConfig]) -> list[Price]:
    """Cost of token selection in each distinct ablation; unknown models are already listed as problems."""
    result: list[Price] = []
    for run in _distinct(runs, "model", "ablate", "data"):
        with contextlib.suppress(ModelError):
            result += prices(run)
    return list(dict.fromkeys(result))


def _axes(sweep: Sweep) -> dict[str, list[Any]]:
    """Each axis and its values, in order of the points."""
    values: dict[str, list[Any]] = {}
    for point in sweep.points:
        for key, value in point.axes.items():
            axis_values = values.setdefault(key, [])
            if value not in axis_values:
                axis_values.append(value)
    return values


def _on_cards(
    sweep: Sweep, stages: Mapping[tuple[StageName, str], PlannedStage], points: Sequence[ResolvedPoint],
    card: Card, n: int,
) -> CardPlan:  # fmt: skip
    timed = _timed(sweep, stages, points, partial(card_seconds, card=card, n=n))
    models = []
    for run in _distinct([point.run for point in sweep.points], "model", "data", "capture"):
        with contextlib.suppress(ModelError):
            models.append((run, row_footprint(run)))
    return card_plan(card, n, models, [stage.seconds for stage in timed if stage.done != "done"])


def _timed(
    sweep: Sweep,
    stages: Mapping[tuple[StageName, str], PlannedStage],
    points: Sequence[ResolvedPoint],
    seconds_of: Callable[[StageName, RunConfig, int, Footprint], float],
) -> list[PlannedStage]:
    """The stages with their estimated seconds; finished ones take none."""
    first = {(name, stage.digest): point for point in reversed(points) for name, stage in point.stages.items()}
    timed = []
    for (name, key), stage in stages.items():
        seconds: float | None = 0.0
        if stage.done != "done":
            seconds = None
            with contextlib.suppress(VtsweepError):
                run = first[name, key].run
                images = first[name, key].n_images if name in ("capture", "correlate", "probe") else 0
                seconds = seconds_of(name, run, images, row_footprint(run))
                seconds *= _samples(sweep, name, run)
        timed.append(replace(stage, seconds=seconds))
    return timed


def _probes_on(points: Sequence[ResolvedPoint]) -> str:
    """Device for each model's probes on this machine; models of unknown size are omitted."""
    words = []
    for point in distinct(points, "probe"):
        with contextlib.suppress(VtsweepError):
            chosen = probe_placement(point.run, point.n_images, row_footprint(point.run), this_machine())
            words.append(f"{point.run.model.name}: {chosen.words}")
    return "; ".join(dict.fromkeys(words))


def _samples(sweep: Sweep, name: StageName, run: RunConfig) -> int:
    """Number of runs of a stage for its hyperparameter search."""
    if not any(key.startswith(f"{name}.") for key in sweep.study.search):
        return 1
    return run.finetune.search_trials if name == "finetune" else run.probe.search_trials


def _resolved(sweep: Sweep, stages: Sequence[StageName], problems: list[str]) -> list[ResolvedPoint]:
    """The points that can be resolved here; reasons for the others are appended to `problems`."""
    resolver, points = Resolver(Storage(sweep.study.storage), stages), []
    for point in sweep.points:
        try:
            points.append(resolver.point(point))
        except (DataError, ModelError, ResourceError) as error:
            if isinstance(error, DataError) and is_here(point.run.data):
                raise
            problems.append(str(error))
    return points


def power_of_seeds(runs: Sequence[RunConfig]) -> str:
    """Power of contrasts between complexity ratios, at the smallest number of seeds of any ratio; empty for one
    ratio."""
    seeds: dict[float, set[int]] = {}
    for run in runs:
        seeds.setdefault(run.finetune.complexity_ratio, set()).add(run.finetune.seed)
    if len(seeds) < 2:
        return ""
    n = min(map(len, seeds.values()))
    if n < MIN_SEEDS:
        return f"{n} of {MIN_SEEDS} seeds per ratio, the minimum for an interval: no interval and no verdict"
    return (
        f"{n} seeds per ratio detect an effect of one standard deviation of the paired differences with"
        f" {100 * paired_power(REFERENCE_EFFECT, n):.0f} % power, one of {detectable_effect(n):.1f} with 80 %"
    )


def _attributes(runs: Sequence[RunConfig]) -> list[AttributeSummary]:
    """Attributes of every distinct data set; unreadable ones are already listed as problems."""
    summaries: list[AttributeSummary] = []
    for run in _distinct(runs, "data"):
        with contextlib.suppress(VtsweepError):
            source = make_source(run.data)
            summaries += summarise_attributes(source, 200 if source.name == "scenes" else MAX_LOOKED_AT)
    return summaries


def _progress(stage: Stage) -> str:
    check_unread(stage)
    if stage.is_done():
        return "done"
    finished = len(stage.finished_shards())
    return f"{finished} shards done" if finished else "-"


def _models(runs: Sequence[RunConfig], problems: list[str]) -> list[PlannedModel]:
    rows = []
    for run in _distinct(runs, "model", "data", "capture"):
        try:
            size: Footprint = row_footprint(run)
        except ModelError as error:
            problems.append(str(error))
            continue
        try:
            images: int | None = len(make_source(run.data))
        except VtsweepError as error:
            problems.append(str(error))
            images = run.data.n_images
        total = None if images is None else images * size.bytes_per_image / 1e9
        rows.append(
            PlannedModel(
                run.model.label,
                run.data.source,
                images,
                size.layers,
                size.vision_tokens,
                size.width,
                round(size.memory_gb, 2),
                size.tflop_per_image,
                size.bytes_per_image,
                total,
            )
        )
    return rows
