"""Input of a report: `StudyResults`, filled from finished stages and rendered by `report.build`.

L: decoder layers; N: visual tokens; tables are polars frames with the columns of `orchestrator.store.tables.core`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from orchestrator.store.tables.core import TABLES, check_table

POINT_TABLES = (
    "images",
    "layer_metrics",
    "correlations",
    "probes",
    "trials",
    "deletion",
    "rivals",
    "knockout",
    "routes",
    "replacing",
    "lens",
    "attention",
    "patching",
)
"""Tables of a point that the report draws; each is optional."""


@dataclass(frozen=True)
class TokenMap:
    """The norms of one image's visual tokens on the token grid.

    Args:
        image_id: id of the image.
        thumbnail: uint8 (height, width, 3), at most about 200 px wide, embedded in the page.
        layers: tap points of the decoder, ascending.
        norms: float32 (len(layers), rows, columns), token norms on the grid; NaN where the grid has no token.
        view: which part of the image the grid covers, for models that see it in several tiles.
    """

    image_id: str
    thumbnail: np.ndarray
    layers: tuple[int, ...]
    norms: np.ndarray
    view: str = "whole image"

    def __post_init__(self) -> None:
        assert self.thumbnail.dtype == np.uint8, self.thumbnail.dtype
        assert self.thumbnail.ndim == 3, self.thumbnail.shape
        assert self.norms.ndim == 3, self.norms.shape
        assert self.norms.shape[0] == len(self.layers), (self.norms.shape, self.layers)

    @cached_property
    def energy_share(self) -> np.ndarray:
        """float32 like `norms`: each token's share of its layer's energy (squared norm); sums to 1 over the grid."""
        energy = np.square(self.norms.astype(np.float64))
        return (energy / np.nansum(energy, axis=(1, 2), keepdims=True)).astype(np.float32)


@dataclass(frozen=True)
class AttentionMap:
    """Attention from one question to its image, on the token grid.

    Args:
        words: question and right answer.
        target: tokens that attend, `question` or `last`.
        thumbnail: uint8 (height, width, 3), at most about 200 px wide.
        layers: decoder layers, ascending.
        shares: float32 (len(layers), rows, columns), share of the attention to the image; NaN where there is no token.
        view: which part of the image the grid covers, for models that see it in several tiles.
    """

    words: str
    target: str
    thumbnail: np.ndarray
    layers: tuple[int, ...]
    shares: np.ndarray
    view: str = "whole image"

    @cached_property
    def relative(self) -> np.ndarray:
        """`shares` times the number of tokens: 1 is uniform."""
        return np.asarray(self.shares * np.isfinite(self.shares).sum(axis=(1, 2), keepdims=True), np.float32)


@dataclass(frozen=True)
class PointResults:
    """Results of one point of a study: one model on one data source with one set of settings.

    Args:
        label: short and unique within the study, e.g. `reference-joint, coco`.
        model: catalogue name of the model.
        source: scenes, coco, folder or questions.
        n_layers: L, decoder layers; the decoder's tap points are 0 .. L.
        attribute_kinds: attribute -> count, continuous or categorical.
        digests: stage name -> digest.
        n_rejected: number of broken images.
        prompt: the prompt with chat template; `{question}` stands for varying questions.
        population: model, images and prompt that statements about images apply to.
        training: trials that statements apply to, and alternative explanations that the design excludes.
        planned_trials: digests of all trials of the study, finished or not.
        findings: ranked statements (any columns; `statement` and `holds` are shown first).
        sweep: result of `finetune.sweep_summary.summarise_sweep`; without it intervals are over seeds alone.
        further: other tables, shown unchanged (policy, link, ...), name -> frame.
        token_maps: images for the contact sheets.
        attention_maps: attention of single questions.
        places: kept vision position (`vision_03`) -> its (row, column) on the grid of visual tokens.
        grid: (rows, columns) of that grid; None if it varies with the image.
    """

    label: str
    model: str
    source: str
    n_layers: int
    attribute_kinds: Mapping[str, str]
    digests: Mapping[str, str] = field(default_factory=dict)
    n_rejected: int = 0
    prompt: str = ""
    population: str = ""
    training: tuple[str, str] = ("", "")
    planned_trials: tuple[str, ...] = ()
    images: pl.DataFrame | None = None
    layer_metrics: pl.DataFrame | None = None
    correlations: pl.DataFrame | None = None
    probes: pl.DataFrame | None = None
    trials: pl.DataFrame | None = None
    deletion: pl.DataFrame | None = None
    rivals: pl.DataFrame | None = None
    knockout: pl.DataFrame | None = None
    routes: pl.DataFrame | None = None
    replacing: pl.DataFrame | None = None
    lens: pl.DataFrame | None = None
    attention: pl.DataFrame | None = None
    patching: pl.DataFrame | None = None
    findings: pl.DataFrame | None = None
    sweep: Mapping[str, Any] = field(default_factory=dict)
    further: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    token_maps: tuple[TokenMap, ...] = ()
    attention_maps: tuple[AttentionMap, ...] = ()
    places: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name in POINT_TABLES:
            table = getattr(self, name)
            if table is not None:
                object.__setattr__(self, name, check_table(table, name) if name in TABLES else table)

    @property
    def slug(self) -> str:
        """`label` as a folder name."""
        return slugify(self.label)

    @property
    def metrics(self) -> list[str]:
        """Compression metrics of `layer_metrics`, in column order."""
        if self.layer_metrics is None:
            return []
        return [c for c in self.layer_metrics.columns if c not in TABLES["layer_metrics"].columns]


@dataclass(frozen=True)
class StudyResults:
    """A finished or partly finished study.

    Args:
        name: name of the study.
        description: its question in one sentence.
        created: time of the report, ISO 8601 with offset.
        command: the command that reproduces these results.
        versions: package -> version.
        hardware: e.g. cpu, cores, memory, gpu -> text.
        points: results of each point.
        config: the resolved study as YAML.
        stages: one row per stage (any columns: stage, point, digest, seconds, images, ...).
        next_steps: (command, description), shown at the end.
    """

    name: str
    description: str
    created: str
    command: str
    versions: Mapping[str, str]
    hardware: Mapping[str, str]
    points: tuple[PointResults, ...]
    config: str = ""
    stages: pl.DataFrame | None = None
    next_steps: tuple[tuple[str, str], ...] = ()


def slugify(text: str) -> str:
    """`text` in lower case with everything but letters, digits, dots and dashes replaced by a dash."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "point"


def distinct_points(points: tuple[PointResults, ...]) -> list[PointResults]:
    """Points with different measurements: of those that share a capture (trials of one model) only the first."""
    by_capture: dict[str, PointResults] = {}
    for point in points:
        by_capture.setdefault(point.digests.get("capture", point.label), point)
    return list(by_capture.values())


def merged_trials(points: tuple[PointResults, ...]) -> dict[str, pl.DataFrame]:
    """All trials of all points by base model, without duplicates."""
    tables = [p.trials for p in points if p.trials is not None and p.trials.height]
    if not tables:
        return {}
    together = pl.concat(tables, how="diagonal_relaxed").unique("trial", keep="first", maintain_order=True)
    return {str(model): part for (model,), part in together.group_by("model", maintain_order=True)}


def missing_trials(points: tuple[PointResults, ...]) -> dict[str, tuple[int, int]]:
    """Base model -> (finished trials, all trials), for models with unfinished trials."""
    counts = {}
    for model in dict.fromkeys(p.model for p in points if p.planned_trials):
        planned = {digest for p in points if p.model == model for digest in p.planned_trials}
        tables = [p.trials for p in points if p.model == model and p.trials is not None]
        completed = {d for t in tables for d in t.filter(pl.col("status") == "done")["trial"].to_list()} & planned
        if len(completed) < len(planned):
            counts[model] = len(completed), len(planned)
    return counts
