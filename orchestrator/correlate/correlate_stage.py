"""The correlate stage: a capture's tables in, the table `correlations` out."""

from __future__ import annotations

from orchestrator.config import RunConfig
from orchestrator.correlate.correlation import correlate
from orchestrator.data.source import make_source
from orchestrator.progress import Progress
from orchestrator.store.filesystem import Storage
from orchestrator.store.stage_folder import Stage
from orchestrator.store.tables.core import check_table

VERSION = 3
"""Raised whenever equal inputs would give other values; part of the digest."""


def correlate_stage(run: RunConfig, storage: Storage, capture: Stage) -> Stage:
    """The directory of this correlation, without work."""
    what = {"version": VERSION, "correlate": run.correlate.model_dump(mode="json", exclude={"smallest_rho"})}
    return Stage(storage, "correlate", what, {"capture": capture.digest})


def run_correlate(run: RunConfig, storage: Storage, capture: Stage, *, quiet: bool = False) -> Stage:
    """Correlate every metric with every attribute, by tap, layer and group; does nothing when that is done."""
    stage = correlate_stage(run, storage, capture)
    if stage.is_done():
        return stage
    stage.open()
    images = capture.scan("images").collect()
    metrics = capture.scan("layer_metrics").collect()
    with Progress(f"correlate {run.model.name} on {run.data.source}", None, "rows", quiet=quiet) as progress:
        table = correlate(images, metrics, dict(make_source(run.data).attribute_kinds), run.correlate)
        progress.advance(table.height)
    stage.write_shard(0, {"correlations": check_table(table, "correlations")})
    stage.mark_done({"rows": table.height, "images": images.height})
    return stage
