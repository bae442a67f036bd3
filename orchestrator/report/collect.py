"""Read a study's finished tables into `StudyResults`."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl
import yaml

from orchestrator.capture.vision_quantiles import vision_quantiles
from orchestrator.compression.tokenmap import lay_on_grid
from orchestrator.config import RunConfig, StageName
from orchestrator.correlate.findings import find
from orchestrator.data.associations import roles_of
from orchestrator.data.attributes import Kind
from orchestrator.data.sample import Source
from orchestrator.data.source import make_source
from orchestrator.errors import AbsentError, DataError, VtsweepError
from orchestrator.finetune.sweep_summary import summarise_sweep
from orchestrator.models.identity import QUESTION, example_prompt
from orchestrator.report import population
from orchestrator.report.attended import attention_maps, thumbnail_of
from orchestrator.report.model import PointResults, StudyResults, TokenMap
from orchestrator.store.stage_folder import canonical_json
from orchestrator.store.study_record import TABLE_STAGE, Study, View, describe_run
from orchestrator.store.tables.core import TABLES

_FURTHER = (
    *("attribute_correlations", "probe_search", "policy", "link", "rival_ranks", "lens_layers"),
    *("trial_rejected", "ablate_rejected"),
)
_N_TOKEN_MAPS = 6


def gather_results(study: Study) -> StudyResults:
    """Read the finished tables of a study; missing ones are omitted."""
    record = study.record
    versions = {str(k): str(v) for k, v in record["versions"].items()}
    return StudyResults(
        name=study.name,
        description=record["description"],
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=record["command"],
        versions=versions,
        hardware={k: str(v) for k, v in record["hardware"].items()},
        points=tuple(_points(study)),
        config=record["text"] or yaml.safe_dump(record["points"][0]["config"]),
        stages=stage_rows(study),
        next_steps=next_steps(study),
    )


def next_steps(study: Study) -> tuple[tuple[str, str], ...]:
    """Suggested commands after this study."""
    steps = [
        (f"vtsweep ui {shlex.quote(study.storage.uri)}", "compare runs in the MLflow UI"),
        (f"vtsweep report {shlex.quote(study.folder.uri)}", "write the report again"),
    ]
    stages = set(study.stages)
    if "finetune" not in stages:
        steps.append(("vtsweep run sweeps/complexity_ratio.yaml", "does complex training data change this?"))
    if "ablate" not in stages:
        steps.append(("vtsweep run sweeps/ablation.yaml", "which tokens does the decoder use?"))
    return tuple(steps)


def stage_rows(study: Study) -> pl.DataFrame:
    """One row per distinct stage: stage, point, digest, state."""
    rows = [
        {"stage": name, "point": view.label, "digest": view.stage.digest, "done": view.stage.is_done()}
        for name in study.stages
        for view in study.views(name)
    ]
    return pl.DataFrame(rows, schema={"stage": pl.String, "point": pl.String, "digest": pl.String, "done": pl.Boolean})


def _points(study: Study) -> Iterable[PointResults]:
    views = {stage: study.views(stage) for stage in study.stages}
    trials = planned_trials(study)
    subjects: dict[str, RunConfig] = {}
    for name in views:
        for view in views[name]:
            subjects.setdefault(_subject(view.run), view.run)
    for key, run in subjects.items():
        own_views = {stage: [v for v in stage_views if _subject(v.run) == key] for stage, stage_views in views.items()}
        planned = {digest: run_of_trial for digest, run_of_trial in trials.items() if _subject(run_of_trial) == key}
        yield _point(run, own_views, planned, label=_label(run, list(subjects.values())))


def planned_trials(study: Study) -> dict[str, RunConfig]:
    """Digest and settings of each trial of the study, started or not."""
    points = study.record["points"] if "finetune" in study.stages else []
    return {p["stages"]["finetune"]: study.run_of(p) for p in points if "finetune" in p["stages"]}


def _subject(run: RunConfig) -> str:
    """Key of a point in the report: a model on a data source, independent of trial settings."""
    config = run.model_dump(mode="json")
    return canonical_json([config["model"], config["data"], config["capture"]])


def _label(run: RunConfig, runs: Sequence[RunConfig]) -> str:
    label = describe_run(run)
    twins = [twin for twin in runs if describe_run(twin) == label]
    return label if len(twins) == 1 else f"{label} {twins.index(run) + 1}"


def _point(
    run: RunConfig, views: dict[StageName, list[View]], planned: Mapping[str, RunConfig], label: str
) -> PointResults:
    tables = {name: _read(views.get(stage, []), name) for name, stage in TABLE_STAGE.items()}
    source = _source(run) if tables["images"] is not None else None
    kinds = dict(source.attribute_kinds) if source else _kinds_of(tables["images"])
    roles = roles_of(source) if source else {}
    capture = next(iter(views.get("capture", [])), None)
    rejected = tables.pop("rejected")
    apart = tables.pop("picture_metrics")
    for unused in ("answers", "training", "asked_metrics"):
        tables.pop(unused, None)
    if (probes := tables["probes"]) is not None:  # points that differ only in probe settings share rows
        tables["probes"] = probes.unique(TABLES["probes"].key, keep="first", maintain_order=True)
    further = {name: frame for name in _FURTHER if (frame := _read(views.get(TABLE_STAGE[name], []), name)) is not None}
    if apart is not None and apart.height:
        further["picture_metrics"] = mean_of_pictures(apart)
    attended = tables.pop("attention_maps")
    ablated = next(iter(views.get("ablate", [])), None)
    images = tables["images"]
    drawn: dict[str, Any] = {k: v for k, v in tables.items() if k in PointResults.__dataclass_fields__}
    return PointResults(
        label=label,
        model=run.model.label,
        source=run.data.source,
        n_layers=_n_layers(tables["layer_metrics"]),
        attribute_kinds=kinds,
        digests={stage: stage_views[0].stage.digest for stage, stage_views in views.items() if stage_views},
        n_rejected=0 if rejected is None else rejected.height,
        prompt=_prompt(views, run),
        population=population.of_point(run, None if images is None else images.height, ablated=ablated is not None),
        training=population.of_trials(list(planned.values())) if planned else ("", ""),
        planned_trials=tuple(planned),
        findings=_findings(run, tables, [name for name, role in roles.items() if role == "derived"]),
        sweep=_sweep(tables["trials"], views.get("finetune", [])),
        further=further,
        **_places(capture, run),
        token_maps=tuple(_token_maps(capture, run)) if capture else (),
        attention_maps=tuple(attention_maps(ablated.run, attended)) if ablated and attended is not None else (),
        **drawn,
    )


def mean_of_pictures(pictures: pl.DataFrame) -> pl.DataFrame:
    """Table `picture_metrics` averaged over questions, by image position, tap and layer."""
    keys = ["picture", "tap", "layer"]
    means = pl.col(pl.Float32, pl.Float64).fill_nan(None).mean()
    return pictures.group_by(keys).agg(pl.len().alias("n_questions"), pl.col("n_tokens").mean(), means).sort(keys)


def _prompt(views: dict[StageName, list[View]], run: RunConfig) -> str:
    """The prompt of the capture, or of another stage without a capture."""
    for stage_views in views.values():
        for view in stage_views[:1]:
            if isinstance(model := view.stage.what.get("model"), Mapping):
                own_question = run.data.source == "questions" or view.stage.name != "capture"
                return example_prompt(model, QUESTION if own_question else run.capture.prompt)
    return ""


def _read(views: Sequence[View], table: str) -> pl.DataFrame | None:
    frames = []
    for view in views:
        try:
            frames.append(view.stage.scan(table).collect())
        except AbsentError:
            continue
    return pl.concat(frames, how="diagonal_relaxed") if frames else None


def _source(run: RunConfig) -> Source | None:
    """Return the images' source; None if it cannot be opened: the report does not depend on it.

    Images may have been moved, and a study's record does not contain passwords of a URI.
    """
    try:
        return make_source(run.data)
    except DataError:
        return None


def _kinds_of(images: pl.DataFrame | None) -> dict[str, Kind]:
    """Return the kinds of attributes from the types of their columns, used if the source is unavailable."""
    if images is None:
        return {}
    attributes = [name for name in images.columns if name not in TABLES["images"].columns]
    return {name: _kind(images.schema[name]) for name in attributes}


def _kind(dtype: pl.DataType) -> Kind:
    return "count" if dtype.is_integer() else "continuous" if dtype.is_numeric() else "categorical"


def _n_layers(layer_metrics: pl.DataFrame | None) -> int:
    if layer_metrics is None:
        return 0
    decoder = layer_metrics.filter(pl.col("tap") == "decoder")
    return int(decoder["layer"].max() or 0)  # type: ignore[arg-type]


def _findings(run: RunConfig, tables: dict[str, Any], derived: Sequence[str]) -> pl.DataFrame | None:
    if tables.get("layer_metrics") is None or tables.get("correlations") is None:
        return None
    findings = find(
        tables["images"], tables["layer_metrics"], tables["correlations"], source=run.data.source,
        hold_fixed=run.correlate.hold_fixed, smallest_rho=run.correlate.smallest_rho, derived=derived,
    )  # fmt: skip
    return pl.DataFrame([asdict(f) for f in findings]) if findings else None


def _sweep(trials: pl.DataFrame | None, views: Sequence[View]) -> dict[str, Any]:
    """Summary of the sweep with intervals over seeds, if its trials differ only in ratio and seed."""
    answers: dict[tuple[float, int], pl.DataFrame] = {}
    for view in views:
        table = _read([view], "answers") if view.stage.is_done() else None
        key = (view.run.finetune.complexity_ratio, view.run.finetune.seed)
        if table is None or key in answers:
            continue
        answers[key] = table
    if trials is None or len(answers) < 2 or len(answers) < trials.height:
        return {}
    try:
        return summarise_sweep(trials, answers, views[0].run.finetune.primary)
    except DataError:  # trials of different question sets: no paired intervals
        return {}


def _places(view: View | None, run: RunConfig) -> dict[str, Any]:
    """Positions of the kept vision tokens on the token grid; empty if the grid differs between images."""
    shards = view.stage.finished_shards() if view else {}
    if not view or not shards or "token_grid" not in next(iter(shards.values()))["arrays"]:
        return {}
    grids = view.stage.arrays("token_grid")
    grid = np.asarray(grids[0][0])
    grid = grid[grid[:, 0] >= 0]
    if len({shard.shape[1] for shard in grids}) > 1 or any((shard != grids[0][:1]).any() for shard in grids):
        return {}
    if len(np.unique(grid[:, 2])) > 1 or run.capture.n_vision_positions == 0:
        return {}
    n_positions = run.capture.n_vision_positions
    quantiles = vision_quantiles(len(grid) if n_positions == "all" else n_positions, run.capture.seed)
    tokens = np.floor(quantiles * len(grid)).astype(int)
    places = {f"vision_{i:02d}": (int(grid[t, 0]), int(grid[t, 1])) for i, t in enumerate(tokens)}
    return {"places": places, "grid": (int(grid[:, 0].max()) + 1, int(grid[:, 1].max()) + 1)}


def _token_maps(view: View, run: RunConfig) -> Iterable[TokenMap]:
    """Norm maps of a few images, evenly spaced over the range of `n_objects` (or over the source)."""
    shards = view.stage.finished_shards()
    if not shards or "token_norms" not in next(iter(shards.values()))["arrays"]:
        return
    images = view.stage.scan("images").collect().with_row_index("row")
    ordered = images.sort("n_objects") if "n_objects" in images.columns else images
    rows = (
        ordered["row"]
        .gather(np.linspace(0, images.height - 1, min(_N_TOKEN_MAPS, images.height)).astype(int))
        .to_list()
    )
    norms = view.stage.arrays("token_norms")
    grids = view.stage.arrays("token_grid")
    layers = tuple(next(iter(shards.values()))["extra"]["token_norms"]["layers"])
    starts = np.cumsum([0, *(len(a) for a in norms)])
    if (source := _source(run)) is None:
        return
    for row in rows:
        shard = int(np.searchsorted(starts, row, side="right")) - 1
        grid, values = grids[shard][row - starts[shard]], norms[shard][row - starts[shard]]
        try:
            image = source.load(int(images["index"][row])).image
        except VtsweepError:
            continue
        yield _token_map(str(images["image_id"][row]), image, layers, np.asarray(grid), np.asarray(values))


def _token_map(
    image_id: str, image: np.ndarray, layers: tuple[int, ...], grid: np.ndarray, norms: np.ndarray
) -> TokenMap:
    """The map of the first tile. `grid` is (N, 3) of row, column, tile (-1: no token); `norms` is (layers, N)."""
    tiles, thumbnail = lay_on_grid(norms, grid), thumbnail_of(image)
    first = min(tiles)
    view = "whole image" if len(tiles) == 1 else f"tile {first + 1} of {len(tiles)}"
    return TokenMap(image_id, thumbnail, layers, tiles[first], view)
