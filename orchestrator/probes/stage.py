"""The probe stage: a capture's kept features in, the table `probes` out, one shard a (tap, layer).

`fit_block` is the unit of work and of resume. It runs in any process: here one after the other, or as Ray tasks
(`orchestrator.tuning_probes`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from orchestrator.config import RunConfig
from orchestrator.data.source import make_source
from orchestrator.layout import STAGE_FILE, Stage, Storage
from orchestrator.probes.features import PIXELS, Features
from orchestrator.probes.pixels import load_pixels
from orchestrator.probes.split import Split, check_leak, content_keys, make_split
from orchestrator.probes.targets import Target, make_targets
from orchestrator.progress import Progress

VERSION = 1
"""Raised whenever equal inputs would give other values; part of the digest."""
PIXEL_FILE = "pixels.npy"


def probe_stage(run: RunConfig, storage: Storage, capture: Stage) -> Stage:
    """The directory of these probes, without work."""
    settings = run.probe.model_dump(mode="json", exclude={"search_trials"})
    return Stage(storage, "probe", {"version": VERSION, "probe": settings}, {"capture": capture.digest})


def open_probes(run: RunConfig, stage: Stage, features: Features, *, quiet: bool = False) -> dict[str, Any]:
    """Check what is asked, find copies among the images, and write the stage's plan; on resume, return it.

    Raises:
        ConfigError: an attribute, tap, layer or position that does not exist.
        DataError: too few different images.
    """
    config, images = run.probe, features.images
    blocks = [list(block) for block in features.select(config.taps, config.layers, config.positions)]
    targets(run, features)
    if stage.store.exists(STAGE_FILE):
        return stage.open()
    if "pixels" in config.controls:
        blocks.append([PIXELS, 0, [PIXELS]])
        with Progress("probe: pixels", images.height, "images", quiet=quiet) as progress:
            pixels, keys = load_pixels(make_source(run.data), images["index"].to_list(), progress.advance)
        stage.store.write_array(PIXEL_FILE, pixels)
    else:
        tap, layer, _ = blocks[0]
        keys = content_keys(features.slice(tap, layer))
    first: dict[str, int] = {}
    plan = {"blocks": blocks, "copy_of": [first.setdefault(key, i) for i, key in enumerate(keys)]}
    split_images(run, plan)
    return stage.open(plan)


def targets(run: RunConfig, features: Features) -> list[Target]:
    """Labels of the attributes asked for, on the features' images."""
    kinds = make_source(run.data).attribute_kinds
    return make_targets(features.images, kinds, run.probe.attributes, run.probe.min_class_count)


def split_images(run: RunConfig, plan: dict[str, Any]) -> Split:
    """The stage's one split: by image, copies left out."""
    split = make_split(plan["copy_of"], run.probe.test_fraction, run.probe.n_folds, run.probe.seed)
    check_leak(split, plan["copy_of"])
    return split


def fit_block(run: RunConfig, stage: Stage, features: Features, plan: dict[str, Any], index: int, device: str) -> int:
    """Fit every probe of block `index` and write its shard; returns the number of rows."""
    from orchestrator.probes.grid import fit_grid

    tap, layer, positions = plan["blocks"][index]
    if tap == PIXELS:
        pixels = stage.store.read_array(PIXEL_FILE)
        block = np.asarray(pixels, np.float32).reshape(len(pixels), 1, -1) / 255.0
    else:
        block = features.slice(tap, layer, positions)
    table = fit_grid(
        block,
        targets(run, features),
        run.probe,
        split_images(run, plan),
        tap=tap,
        layer=layer,
        positions=positions,
        device=device,
    )
    stage.write_shard(index, {"probes": table})
    return table.height


def finish(stage: Stage, plan: dict[str, Any]) -> Stage:
    """Mark the stage done once every block is whole, with the count of probes and of each reason for a missing score.

    Raises:
        AssertionError: a block is missing.
    """
    assert set(stage.finished_shards()) == set(range(len(plan["blocks"]))), "a block was not written"
    table = stage.scan("probes").select("score", "reason").collect()
    reasons = table.drop_nulls("reason")["reason"].value_counts(sort=True).head(20)
    summary = {
        "probes": int(table["score"].is_not_null().sum()),
        "skipped": {row["reason"]: row["count"] for row in reasons.iter_rows(named=True)},
        "copies_left_out": sum(i != c for i, c in enumerate(plan["copy_of"])),
    }
    stage.mark_done(summary)
    return stage


def run_probes(run: RunConfig, storage: Storage, capture: Stage, *, quiet: bool = False) -> Stage:
    """Fit all blocks in this process, skipping finished ones; does nothing when the stage is done."""
    stage = probe_stage(run, storage, capture)
    if stage.is_done():
        return stage
    import torch

    if run.how.torch_threads:
        torch.set_num_threads(run.how.torch_threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    features = Features(capture)
    plan = open_probes(run, stage, features, quiet=quiet)
    n, done = len(plan["blocks"]), set(stage.finished_shards())
    with Progress(f"probe {run.model.name} on {run.data.source}", n, "blocks", done=len(done), quiet=quiet) as progress:
        for index in range(n):
            if index not in done:
                fit_block(run, stage, features, plan, index, device)
                tap, layer, _ = plan["blocks"][index]
                progress.advance(note=f"{tap} {layer}")
    return finish(stage, plan)
