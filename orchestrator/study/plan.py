"""What a study would do, computed without starting anything: points, digests, what is done, estimates, what fits."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.cluster.placement import (
    capture_pool,
    check_pools,
    cluster_address,
    describe_pools,
    local_node,
    n_cores,
    reader_pool,
)
from orchestrator.config import RunConfig, StageName
from orchestrator.config.search_space import check_search
from orchestrator.config.sweep import Sweep
from orchestrator.data.source import make_source
from orchestrator.data.summary import MAX_LOOKED_AT, AttributeSummary, summarise_attributes
from orchestrator.errors import DataError, ModelError, VtsweepError
from orchestrator.finetune.ray.trials import trial_pool
from orchestrator.models.planning import Footprint, footprint
from orchestrator.stats.intervals import MIN_SEEDS
from orchestrator.stats.power import REFERENCE_EFFECT, detectable_effect, paired_power
from orchestrator.store.filesystem import Storage
from orchestrator.store.stage_folder import Stage, canonical_json, digest
from orchestrator.study.preflight import check_models, check_names
from orchestrator.study.stage_kinds import STAGE_KINDS, with_inputs


@dataclass(frozen=True)
class PlannedStage:
    """One distinct stage directory and the number of points that share it."""

    stage: str
    label: str
    digest: str
    points: int
    done: str


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
    power: str = ""
    """What contrasts over seeds can show; empty without fine-tuning at several ratios."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def make_plan(sweep: Sweep) -> Plan:
    """Expand, digest and estimate a study.

    Weights, GPUs and data need not be at hand: what cannot be known here is listed under `problems`. A set-up whose
    actors would wait for ever is refused.

    Raises:
        ResourceError: the actor pools do not fit this machine (only where no cluster address is named).
        ConfigError: a name is unknown.
        ModelError: a model that is at hand is not whole, or does not take what it will be asked.
    """
    storage = Storage(sweep.study.storage)
    problems: list[str] = []
    stages: dict[tuple[StageName, str], PlannedStage] = {}
    wanted = with_inputs(sweep.study.stages)
    check_search(sweep)
    for point in sweep.points:
        check_names(point.run, wanted, None)
    problems += check_models([point.run for point in sweep.points], wanted)
    for name in wanted:
        for point in sweep.points:
            try:
                stage = STAGE_KINDS[name].make(point.run, storage)
            except (DataError, ModelError) as error:
                problems.append(str(error))
                continue
            seen = stages.get((name, stage.digest))
            label = point.label if name == "finetune" else f"{point.run.model.name} on {point.run.data.source}"
            points = seen.points + 1 if seen else 1
            stages[name, stage.digest] = PlannedStage(name, label, stage.digest, points, _progress(stage))
    models = _models([point.run for point in sweep.points], problems)
    pools = _pools(sweep, wanted)
    attributes = _attributes([point.run for point in sweep.points])
    return Plan(
        sweep.study.name, storage.uri, list(stages.values()), models, pools, list(dict.fromkeys(problems)), attributes,
        power_of_seeds([point.run for point in sweep.points]) if "finetune" in wanted else "",
    )  # fmt: skip


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
                run.model.name,
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


def _pools(sweep: Sweep, wanted: Sequence[StageName]) -> str:
    """Whether the workers of every distinct `how` fit, in words; stages follow one another, so each has all the room.

    The trials of a study run on the first point's `how`, as does the Ray that the study starts.
    """
    runs = [point.run for point in sweep.points]
    said = []
    for how in dict.fromkeys(run.how for run in runs):
        if how.backend == "local":
            said.append("runs in this process")
            continue
        if address := cluster_address(how):
            said.append(f"checked when it joins the cluster at {address}")
            continue
        nodes = [local_node()]
        pools = []
        if "capture" in wanted:
            pools.append([capture_pool(how, nodes), reader_pool()])
        if "finetune" in wanted and how == runs[0].how:
            search = {key: axis for key, axis in sweep.study.search.items() if key.startswith("finetune.")}
            trials = list(
                {
                    digest(run.model_dump(mode="json", include={"model", "data", "finetune"})): run for run in runs
                }.values()
            )
            pools.append([trial_pool(trials, n_cores(), nodes[0].gpus, search)[1]])
        for together in pools:
            check_pools(nodes, together)
        held = ", ".join(describe_pools(together[:1]) for together in pools) or "one worker"
        said.append(f"{held} fit a local Ray of {nodes[0].cpus:g} logical CPUs")
    return "; ".join(said)
