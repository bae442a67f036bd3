"""What a study would do, computed without starting anything: points, digests, what is done, estimates, what fits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from orchestrator.ablate.selectors.price import Price, prices
from orchestrator.config import RunConfig, StageName
from orchestrator.config.search_space import check_search
from orchestrator.config.sweep import Sweep
from orchestrator.data.source import make_source
from orchestrator.data.summary import MAX_LOOKED_AT, AttributeSummary, summarise_attributes
from orchestrator.errors import DataError, ModelError, ResourceError, VtsweepError
from orchestrator.models.identity import UNKNOWN
from orchestrator.models.planning import Footprint, footprint
from orchestrator.stats.intervals import MIN_SEEDS
from orchestrator.stats.power import REFERENCE_EFFECT, detectable_effect, paired_power
from orchestrator.store.filesystem import Storage
from orchestrator.store.resolved_point import ResolvedPoint
from orchestrator.store.stage_folder import Stage, canonical_json
from orchestrator.store.study_record import describe_run
from orchestrator.study.cards import Card, CardPlan, card_plan, card_seconds, find_card
from orchestrator.study.estimate import START_SECONDS, stage_seconds, this_machine
from orchestrator.study.planned_design import PlannedDesign, planned_designs
from orchestrator.study.preflight import by_questions, check_file_questions, check_models, check_names
from orchestrator.study.resolve import Resolver
from orchestrator.study.resources import describe_resources
from orchestrator.study.stage_kinds import with_inputs
from orchestrator.study.versions import version_name


@dataclass(frozen=True)
class PlannedStage:
    """One distinct stage directory and the number of points that share it."""

    stage: str
    label: str
    digest: str
    points: int
    done: str
    seconds: float | None = None
    """Estimated seconds of what is left to do; None where the model's sizes are not known here."""


@dataclass(frozen=True)
class PlannedModel:
    """What capturing one model on one data source takes."""

    model: str
    source: str
    images: int | None
    layers: int
    vision_tokens: int
    width: int
    actor_memory_gb: float
    tflop_per_image: float
    bytes_per_image: int
    total_gb: float | None


@dataclass(frozen=True)
class Plan:
    name: str
    storage: str
    stages: list[PlannedStage]
    models: list[PlannedModel]
    pools: str
    problems: list[str]
    attributes: list[AttributeSummary]
    designs: Sequence[PlannedDesign] = ()
    """Designed scenes: factors, impossible cells and how attributes go together."""
    power: str = ""
    """What contrasts over seeds can show; empty without fine-tuning at several ratios."""
    axes: dict[str, list[Any]] = field(default_factory=dict)
    """Values of each axis."""
    points: int = 1
    machine: str = ""
    seconds: float | None = None
    """Estimated seconds of everything left to do on this machine; None where something is not known here."""
    gpu_hours: float | None = None
    too_large: list[str] = field(default_factory=list)
    """Workers whose models this machine's memory cannot hold: a run here would be refused."""
    kept_as: str = ""
    """Name of the record: another than the study's where that holds other settings."""
    selection: Sequence[Price] = ()
    """Operations of choosing visual tokens in an ablation, beside those saved."""
    card: CardPlan | None = None
    """The same on GPUs that are asked about, wherever this runs."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def make_plan(sweep: Sweep, gpu: str | None = None, n_gpus: int = 1) -> Plan:
    """Expand, digest and estimate a study; with `gpu`, also on `n_gpus` of these (`cards.CARDS`).

    Weights, GPUs and data need not be at hand: what cannot be known here is listed under `problems`. A set-up whose
    actors would wait for ever is refused.

    Raises:
        ResourceError: the actor pools do not fit this machine (only where no cluster address is named).
        ConfigError: a name is unknown.
        ModelError: a model that is at hand is not whole, or does not take what it will be asked.
    """
    card = find_card(gpu) if gpu else None
    storage = Storage(sweep.study.storage)
    problems: list[str] = []
    stages: dict[tuple[StageName, str], PlannedStage] = {}
    wanted = with_inputs(sweep.study.stages)
    check_search(sweep)
    runs = [point.run for point in sweep.points]
    for run in runs:
        check_names(run, wanted, None)
    for run in by_questions(runs):
        try:
            check_file_questions(run, wanted)
        except DataError as error:
            problems.append(str(error))
    problems += check_models([point.run for point in sweep.points], wanted)
    points = _resolved(sweep, wanted, problems)
    for point in points:
        if point.model["prompt"] == UNKNOWN:
            problems.append(f"{point.run.model.label}: the prompt of its template; digests of a run will be others")
    for name in wanted:
        for point in points:
            stage = point.stages[name]
            seen = stages.get((name, stage.digest))
            label = point.label if name == "finetune" else describe_run(point.run)
            n_points = seen.points + 1 if seen else 1
            stages[name, stage.digest] = PlannedStage(name, label, stage.digest, n_points, _progress(stage))
    models = _models([point.run for point in sweep.points], problems)
    pools, too_large = describe_resources(sweep, wanted)
    timed = _timed(sweep, stages, points, partial(stage_seconds, machine=this_machine()))
    machine = this_machine()
    left = [stage.seconds for stage in timed if stage.done != "done"]
    total = None if None in left else START_SECONDS * bool(left) + sum(s or 0.0 for s in left)
    attributes = _attributes([point.run for point in sweep.points])
    return Plan(
        sweep.study.name, storage.uri, timed, models, pools, list(dict.fromkeys(problems)), attributes,
        planned_designs([point.run.data for point in sweep.points]),
        power_of_seeds([point.run for point in sweep.points]) if "finetune" in wanted else "",
        axes=_axes(sweep), points=len(sweep.points), machine=machine.words, seconds=total,
        gpu_hours=None if total is None else total * machine.gpus / 3600, too_large=too_large,
        kept_as=version_name(sweep, storage)[0],
        selection=_selection([point.run for point in sweep.points]) if "ablate" in wanted else (),
        card=_on_cards(sweep, stages, points, card, n_gpus) if card else None,
    )  # fmt: skip


def _selection(runs: Sequence[RunConfig]) -> list[Price]:
    """What choosing tokens takes in each distinct ablation; a model not known here is among the problems already."""
    found: list[Price] = []
    parts = {"model", "ablate", "data"}
    for run in {canonical_json(run.model_dump(mode="json", include=parts)): run for run in runs}.values():
        with contextlib.suppress(ModelError):
            found += prices(run)
    return list(dict.fromkeys(found))


def _axes(sweep: Sweep) -> dict[str, list[Any]]:
    """Each axis and its values, in the order of the points."""
    values: dict[str, list[Any]] = {}
    for point in sweep.points:
        for key, value in point.axes.items():
            there = values.setdefault(key, [])
            if value not in there:
                there.append(value)
    return values


def _on_cards(
    sweep: Sweep, stages: Mapping[tuple[StageName, str], PlannedStage], points: Sequence[ResolvedPoint],
    card: Card, n: int,
) -> CardPlan:  # fmt: skip
    timed = _timed(sweep, stages, points, partial(card_seconds, card=card, n=n))
    models = []
    distinct = {canonical_json([p.run.model_dump(mode="json")[k] for k in ("model", "data", "capture")]): p.run
                for p in sweep.points}  # fmt: skip
    for run in distinct.values():
        with contextlib.suppress(ModelError):
            models.append((run, footprint(run)))
    return card_plan(card, n, models, [stage.seconds for stage in timed if stage.done != "done"])


def _timed(
    sweep: Sweep,
    stages: Mapping[tuple[StageName, str], PlannedStage],
    points: Sequence[ResolvedPoint],
    seconds_of: Callable[[StageName, RunConfig, int, Footprint], float],
) -> list[PlannedStage]:
    """The stages with the seconds that each is estimated to take; finished ones take none."""
    first = {(name, stage.digest): point for point in reversed(points) for name, stage in point.stages.items()}
    timed = []
    for (name, key), stage in stages.items():
        seconds: float | None = 0.0
        if stage.done != "done":
            seconds = None
            with contextlib.suppress(VtsweepError):
                run = first[name, key].run
                images = first[name, key].n_images if name in ("capture", "correlate", "probe") else 0
                seconds = seconds_of(name, run, images, footprint(run))
                seconds *= _samples(sweep, name, run)
        timed.append(replace(stage, seconds=seconds))
    return timed


def _samples(sweep: Sweep, name: StageName, run: RunConfig) -> int:
    """How often a stage is done for the search of its hyperparameters."""
    if not any(key.startswith(f"{name}.") for key in sweep.study.search):
        return 1
    return run.finetune.search_trials if name == "finetune" else run.probe.search_trials


def _resolved(sweep: Sweep, wanted: Sequence[StageName], problems: list[str]) -> list[ResolvedPoint]:
    """The points that can be resolved here; why others cannot is added to `problems`."""
    resolver, points = Resolver(Storage(sweep.study.storage), wanted), []
    for point in sweep.points:
        try:
            points.append(resolver.point(point))
        except (DataError, ModelError, ResourceError) as error:
            problems.append(str(error))
    return points


def power_of_seeds(runs: Sequence[RunConfig]) -> str:
    """What contrasts between complexity ratios can show at the fewest seeds of any ratio; empty for one ratio."""
    seeds: dict[float, set[int]] = {}
    for run in runs:
        seeds.setdefault(run.finetune.complexity_ratio, set()).add(run.finetune.seed)
    if len(seeds) < 2:
        return ""
    n = min(map(len, seeds.values()))
    if n < MIN_SEEDS:
        return f"{n} of {MIN_SEEDS} seeds a ratio that an interval needs: no interval and no verdict"
    return (
        f"{n} seeds a ratio see an effect of one deviation of the paired differences with"
        f" {100 * paired_power(REFERENCE_EFFECT, n):.0f} % power, one of {detectable_effect(n):.1f} with 80 %"
    )


def _attributes(runs: Sequence[RunConfig]) -> list[AttributeSummary]:
    """Attributes of every distinct data set; one that cannot be read is among the problems already."""
    found: list[AttributeSummary] = []
    for run in {canonical_json(run.data.model_dump(mode="json")): run for run in runs}.values():
        with contextlib.suppress(VtsweepError):
            source = make_source(run.data)
            found += summarise_attributes(source, 200 if source.name == "scenes" else MAX_LOOKED_AT)
    return found


def _progress(stage: Stage) -> str:
    if stage.is_done():
        return "done"
    finished = len(stage.finished_shards())
    return f"{finished} shards done" if finished else "-"


def _models(runs: Sequence[RunConfig], problems: list[str]) -> list[PlannedModel]:
    distinct = {
        canonical_json([run.model_dump(mode="json")[k] for k in ("model", "data", "capture")]): run for run in runs
    }
    rows = []
    for run in distinct.values():
        try:
            found: Footprint = footprint(run)
        except ModelError as error:
            problems.append(str(error))
            continue
        try:
            images: int | None = len(make_source(run.data))
        except VtsweepError as error:
            problems.append(str(error))
            images = run.data.n_images
        total = None if images is None else images * found.bytes_per_image / 1e9
        rows.append(
            PlannedModel(
                run.model.label,
                run.data.source,
                images,
                found.layers,
                found.vision_tokens,
                found.width,
                round(found.memory_gb, 2),
                found.tflop_per_image,
                found.bytes_per_image,
                total,
            )
        )
    return rows
