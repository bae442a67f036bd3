"""The probe stage: reads a capture's features, writes table `probes`, one shard per (tap, layer).

`fit_block` is the unit of work and of resume. It runs in any process: sequentially here, or in Ray tasks
(`orchestrator.probes.ray`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from orchestrator.config import ProbeConfig, RunConfig
from orchestrator.data.clusters import CLUSTER, first_of_like
from orchestrator.data.source import make_source
from orchestrator.errors import StageError, StorageError
from orchestrator.probes.beyond import Covariates, covariates_of
from orchestrator.probes.features import PIXELS, Features
from orchestrator.probes.pixels import load_pixels
from orchestrator.probes.split import Split, check_leak, make_split
from orchestrator.probes.targets import Target, make_targets
from orchestrator.progress import Progress
from orchestrator.store.filesystem import checksum
from orchestrator.store.resolved_point import ResolvedPoint
from orchestrator.store.stage_folder import STAGE_FILE, Stage

VERSION = 7
"""Incremented whenever equal inputs give different values; part of the digest."""
SEARCH_VERSION = 2
"""The version of the hyperparameter search."""
PIXEL_FILE = "pixels.npy"
PIXEL_WIDTH = 3 * 16 * 16
"""Approximate width of the pixel baseline, used to estimate its time."""


def probe_stage(point: ResolvedPoint) -> Stage:
    """The stage (directory and digest) of these probes; computes nothing."""
    run = point.run
    unused = set() if run.probe.search_trials else {"search_trials"}
    settings = run.probe.model_dump(mode="json", exclude=unused)
    inputs: dict[str, Any] = {"version": VERSION, "probe": settings}
    if packages := point.packages_of("solvers", run.probe.solvers):
        inputs["solvers_of"] = packages
    if run.probe.search_trials:
        inputs["search_version"] = SEARCH_VERSION
    if run.probe.search_trials and run.search:
        inputs["search"] = {key: axis.model_dump(mode="json") for key, axis in run.search.items()}
    return Stage(point.storage, "probe", inputs, {"capture": point.stages["capture"].digest})


@dataclass(frozen=True)
class Work:
    """State shared by the blocks of a stage: all that a worker needs except the features; small.

    Args:
        stage: stage that the shards are written to.
        capture: stage of the features.
        config: the run's probe settings.
        blocks: (tap, layer, positions) of each shard.
        copy_of: for each image, the row of the first image of the same content or cluster.
        targets: labels of all images.
        pixels: size and checksum of the file of thumbnails, if the pixel baseline is on.
        covariates: covariates of `skill_beyond`, for all images.
    """

    stage: Stage
    capture: Stage
    config: ProbeConfig
    blocks: list[tuple[str, int, list[str]]]
    copy_of: list[int]
    targets: list[Target]
    pixels: Mapping[str, Any] | None = None
    covariates: Covariates | None = None

    @cached_property
    def split(self) -> Split:
        """The split of the stage: by image, without copies."""
        split = make_split(self.copy_of, self.config.test_fraction, self.config.n_folds, self.config.seed)
        check_leak(split, self.copy_of)
        return split

    def missing(self) -> list[int]:
        """Blocks without a complete shard."""
        return sorted(set(range(len(self.blocks))) - set(self.stage.finished_shards()))

    def sizes(self, indices: Sequence[int]) -> list[tuple[int, int, int]]:
        """Positions, images and width of each block."""
        features = Features(self.capture)
        widths = {tap: features.width(tap) for tap in dict.fromkeys(t for t, _, _ in self.blocks if t != PIXELS)}
        return [
            (len(names), len(self.copy_of), widths.get(tap, PIXEL_WIDTH))
            for tap, _, names in (self.blocks[i] for i in indices)
        ]

    def name(self, index: int) -> str:
        """`decoder 12`."""
        return f"{self.blocks[index][0]} {self.blocks[index][1]}"


def open_probes(point: ResolvedPoint, *, quiet: bool = False) -> Work:
    """Check the configuration, find duplicate images, and write the stage's plan; on resume, read the plan.

    Raises:
        ConfigError: an attribute, tap, layer or position that does not exist.
        DataError: too few different images, or a capture without features.
    """
    config, stage, capture = point.run.probe, point.stages["probe"], point.stages["capture"]
    features = Features(capture)
    targets = make_targets(features.images, point.attribute_kinds, config.attributes, config.min_class_count)
    covariates = covariates_of(features.images, point.attribute_kinds, config.beyond)
    blocks = features.select(config.taps, config.layers, config.positions)
    if stage.store.exists(STAGE_FILE):
        plan = stage.open()
        work = Work(stage, capture, config, plan["blocks"], plan["copy_of"], targets, plan.get("pixels"), covariates)
        if missing := work.missing():
            check_features(work)
            if any(work.blocks[i][0] == PIXELS for i in missing) and not _pixels_whole(work):
                _make_pixels_again(work, point, features, quiet)
        return work
    pixels, keys = _load(point, features, quiet)
    mark = None
    if "pixels" in config.controls:
        mark = stage.store.write_array(PIXEL_FILE, pixels)
        blocks.append((PIXELS, 0, [PIXELS]))
    clusters = features.images[CLUSTER].to_list() if CLUSTER in features.images.columns else [None] * len(keys)
    copy_of = first_of_like(keys, clusters)
    work = Work(stage, capture, config, blocks, copy_of, targets, mark, covariates)
    assert work.split.n_folds == config.n_folds  # raises for too few images, before the plan is written
    plan = {"blocks": blocks, "copy_of": work.copy_of, "pixels": mark}
    if stage.open(plan)["pixels"] != mark:  # another run wrote the plan first: valid if the images are equal
        raise StageError(f"probe: another run of this study started {stage.folder} with other images; run again")
    check_features(work)
    return work


def _load(point: ResolvedPoint, features: Features, quiet: bool) -> tuple[np.ndarray, list[str]]:
    """Small pictures of the captured images and keys of their content, from the images themselves."""
    indices = features.images["index"].to_list()
    with Progress("probe: images", len(indices), "images", quiet=quiet) as progress:
        return load_pixels(make_source(point.run.data), indices, progress.advance)


def _pixels_whole(work: Work) -> bool:
    """Whether the file of small pictures is what was written."""
    try:
        return work.pixels is None or checksum(work.stage.store.read(PIXEL_FILE)) == work.pixels["blake2b"]
    except FileNotFoundError:
        return False


def _make_pixels_again(work: Work, point: ResolvedPoint, features: Features, quiet: bool) -> None:
    """Write the file of small pictures anew.

    Raises:
        StorageError: the images are not those that the stage began with.
    """
    if work.stage.store.write_array(PIXEL_FILE, _load(point, features, quiet)[0]) != work.pixels:
        place = work.stage.storage.locate(work.stage.folder)
        raise StorageError(f"probe: the images have changed; remove the folder {place} to begin the stage again")


def check_features(work: Work) -> None:
    """Verify the checksums of the selected features once, before any block is fitted.

    Raises:
        DamagedError: a file of the capture differs from its checksum.
    """
    for tap in dict.fromkeys(tap for tap, _, _ in work.blocks if tap != PIXELS):
        for folder in (f"features/{tap}", f"feature_scales/{tap}"):
            work.capture.check_files(folder)


def fit_block(work: Work, index: int, device: str) -> None:
    """Fit every probe of block `index` and write its shard."""
    from orchestrator.probes.grid import fit_grid

    tap, layer, positions = work.blocks[index]
    kept: dict[str, bytes] = {}
    if tap == PIXELS:
        if not _pixels_whole(work):
            raise StorageError(f"{PIXEL_FILE} in {work.stage.storage.locate(work.stage.folder)} is damaged; run again")
        kept = {PIXEL_FILE: work.stage.store.read(PIXEL_FILE)}  # the block's record vouches for it
        pixels = work.stage.store.read_array(PIXEL_FILE)
        features = np.asarray(pixels, np.float32).reshape(len(pixels), 1, -1) / 255.0
    else:
        features = Features(work.capture).slice(tap, layer, positions)
    table = fit_grid(
        features, work.targets, work.config, work.split, tap=tap, layer=layer, positions=positions, device=device,
        covariates=work.covariates,
    )  # fmt: skip
    work.stage.write_shard(index, {"probes": table}, files=kept)


def finish(work: Work, further: dict[str, Any] | None = None) -> Stage:
    """Mark the stage done, with the number of probes and of each reason for a missing score, if all blocks are
    complete."""
    if missing := work.missing():
        names = ", ".join(work.name(i) for i in missing[:5])
        raise StageError(
            f"probe: {len(missing)} of {len(work.blocks)} blocks are incomplete in storage: {names}; run again"
        )
    table = work.stage.scan("probes").select("score", "reason").collect()
    reasons = table.drop_nulls("reason")["reason"].value_counts(sort=True).head(20)
    summary = {
        "probes": int(table["score"].is_not_null().sum()),
        "skipped": {row["reason"]: row["count"] for row in reasons.iter_rows(named=True)},
        "copies_left_out": sum(i != c for i, c in enumerate(work.copy_of)),
    }
    work.stage.mark_done({**summary, **(further or {})})
    return work.stage


def fit_missing(work: Work, run: RunConfig, *, quiet: bool = False) -> None:
    """Fit the missing blocks sequentially in this process."""
    import torch

    if run.how.torch_threads:
        torch.set_num_threads(run.how.torch_threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with block_progress(work, run, quiet) as progress:
        for index in work.missing():
            fit_block(work, index, device)
            progress.advance(note=work.name(index))


def block_progress(work: Work, run: RunConfig, quiet: bool) -> Progress:
    """Progress over the stage's blocks."""
    n = len(work.blocks)
    title = f"probe {run.model.label} on {run.data.source}"
    done = n - len(work.missing())
    return Progress(title, n, "blocks", done=done, quiet=quiet, about=work.stage.digest)


def run_probes(point: ResolvedPoint, *, quiet: bool = False) -> Stage:
    """Run the whole grid in this process, without a search; returns at once if the stage is done."""
    if point.stages["probe"].is_done():
        return point.stages["probe"]
    work = open_probes(point, quiet=quiet)
    fit_missing(work, point.run, quiet=quiet)
    return finish(work)
