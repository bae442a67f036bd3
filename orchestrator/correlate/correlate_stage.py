"""The correlate stage: a capture's tables in, the tables `correlations` and `attribute_correlations` out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import polars as pl

from orchestrator.correlate.correlation import correlate
from orchestrator.data.associations import associations, roles_of
from orchestrator.data.source import make_source
from orchestrator.progress import Progress
from orchestrator.store.resolved_point import ResolvedPoint
from orchestrator.store.stage_folder import Stage
from orchestrator.store.tables.core import TABLES, check_table

VERSION = 7
"""Raised whenever equal inputs would give other values; part of the digest."""


def correlate_stage(point: ResolvedPoint) -> Stage:
    """The directory of this correlation, without work."""
    what = {"version": VERSION, "correlate": point.run.correlate.model_dump(mode="json", exclude={"smallest_rho"})}
    return Stage(point.storage, "correlate", what, {"capture": point.stages["capture"].digest})


def run_correlate(point: ResolvedPoint, *, quiet: bool = False) -> Stage:
    """Correlate every metric with every attribute, by tap, layer and group; does nothing when that is done."""
    run, stage, capture = point.run, point.stages["correlate"], point.stages["capture"]
    if stage.is_done():
        return stage
    stage.open()
    images = capture.scan("images").collect()
    metrics = capture.scan("layer_metrics").collect()
    with Progress(f"correlate {run.model.label} on {run.data.source}", None, "rows", quiet=quiet) as progress:
        kinds = dict(point.attribute_kinds)
        table = correlate(images, metrics, kinds, run.correlate)
        progress.advance(table.height)
    among = attribute_correlations(images, kinds, roles_of(make_source(run.data)))
    stage.write_shard(0, {"correlations": check_table(table, "correlations"), "attribute_correlations": among})
    stage.mark_done({"rows": table.height, "images": images.height})
    return stage


def attribute_correlations(images: pl.DataFrame, kinds: Mapping[str, str], roles: Mapping[str, str]) -> pl.DataFrame:
    """Table `attribute_correlations`: how the attributes of the captured images go together, strongest first."""
    numeric = {name: images[name].to_list() for name, kind in kinds.items() if kind != "categorical"}
    schema = {name: column.dtype for name, column in TABLES["attribute_correlations"].columns.items()}
    rows = pl.DataFrame([asdict(pair) for pair in associations(numeric, roles)], schema=schema)
    return check_table(rows, "attribute_correlations")
