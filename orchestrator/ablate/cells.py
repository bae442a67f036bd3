"""Cells, the units of work of an ablation: one setting, applied to all questions. This module does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.ablate.selectors.entries import DOWNSAMPLE
from orchestrator.ablate.selectors.registry import get_selector
from orchestrator.ablate.selectors.schedules import schedule_for
from orchestrator.config import AblateConfig
from orchestrator.errors import ConfigError

ALL_TOKENS = "all tokens"
UNSEEDED = -1
"""Seed of cells without randomness."""


@dataclass(frozen=True)
class Cell:
    """One setting; a shard of the stage holds one cell's rows.

    `check` is `deletion` (`layer` 0: after the projector, k: after k decoder layers), `knockout` (layers `layer` to
    `last_layer`; none where that is -1), `routes` (the route `method` in those layers), `patching` (of `attribute` at
    `layer`), `rivals` (a method at an average share `budget` of the tokens; all of them at 1), `replacing` (by `method`
    at `layer`), `lens`, `attention` or `metrics`.
    """

    check: str
    method: str = ""
    layer: int = 0
    seed: int = UNSEEDED
    deleted_share: float = 0.0
    last_layer: int = -1
    attribute: str = ""
    budget: float = 1.0
    place: str = "image"
    """Tokens whose states are replaced or patched (`ablate.replaced_places`, `ablate.patched_places`)."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def label(self) -> str:
        """`norm 50 %`, `knock-out 2-3`, `colour at layer 4`: for the progress line."""
        if self.check == "deletion":
            return f"{self.method} {self.deleted_share:.0%}" + (f" after layer {self.layer}" if self.layer else "")
        if self.check == "knockout":
            return f"knock-out {self.layer}-{self.last_layer}" if self.last_layer >= 0 else "no knock-out"
        if self.check == "replacing":
            return f"{self.method} at layer {self.layer}{self._of_place}"
        if self.check == "routes":
            return f"{self.method} in layers {self.layer}-{self.last_layer}"
        if self.check == "rivals":
            return f"{self.method} at {self.budget:.1%}" if self.budget < 1 else ALL_TOKENS
        return f"{self.attribute} at layer {self.layer}{self._of_place}" if self.check == "patching" else self.check

    @property
    def _of_place(self) -> str:
        return "" if self.place == "image" else f", {self.place}"


def list_cells(config: AblateConfig, n_layers: int, cross_layers: Sequence[int] = ()) -> list[Cell]:
    """Every cell of an ablation, in a fixed order, grouped by method.

    Args:
        n_layers: decoder layers.
        cross_layers: cross-attention layers of a `cross_kv` model; each is knocked out and patched.
    """
    cells: list[Cell] = []
    shares = sorted({0.0, *config.deleted_shares})
    if {"deletion", "policy", "link"} & set(config.checks):
        for method in config.methods:
            cells += _deletions(config, method, 0, shares)
    if "inside" in config.checks:
        for method in config.inside_methods:
            for layer in _inside(config, n_layers, cross_layers):
                reads = get_selector(method).needs_at(layer) & {"attention"}
                if not reads or not cross_layers or layer > cross_layers[0]:
                    cells += _deletions(config, method, layer, [s for s in shares if s > 0])
    if "rivals" in config.checks:
        cells += _rivals(config, n_layers, cross_layers)
    if "link" in config.checks:
        cells.append(Cell("metrics"))
    if "knockout" in config.checks:
        width = min(config.window, n_layers)
        windows = [(first, first + width - 1) for first in range(n_layers - width + 1)]
        windows = [(layer, layer) for layer in cross_layers] or windows
        windows.append((0, n_layers - 1))
        cells.append(Cell("knockout"))
        cells += [Cell("knockout", layer=first, last_layer=last) for first, last in dict.fromkeys(windows)]
    if "routes" in config.checks:
        width = min(config.window, n_layers)
        spans = [(first, first + width - 1) for first in range(n_layers - width + 1)]
        spans = list(dict.fromkeys([*spans, (0, n_layers - 1)]))
        cells += [Cell("routes", name, layer=a, last_layer=b) for name in config.routes for a, b in spans]
    if "replacing" in config.checks:
        points = list(cross_layers) or list(range(n_layers))
        seeds = {"noise": config.seeds}
        cells += [
            Cell("replacing", kind, layer=layer, seed=seed, place=place)
            for place in config.replaced_places
            for kind in config.replaced
            for layer in points
            for seed in seeds.get(kind, (UNSEEDED,))
        ]
    cells += [Cell(check) for check in ("lens", "attention") if check in config.checks]
    if "patching" in config.checks:
        for place in config.patched_places:
            in_every_layer = place in ("question", "last") or not cross_layers  # text is in the sequence of every layer
            points = list(range(n_layers)) if in_every_layer else list(cross_layers)
            cells += [
                Cell("patching", layer=layer, attribute=name, place=place)
                for name in config.patched
                for layer in points
            ]
    return cells


def _rivals(config: AblateConfig, n_layers: int, cross_layers: Sequence[int]) -> list[Cell]:
    """A cell with all tokens, then one per method, seed and budget that the method can meet."""
    cells = [Cell("rivals", ALL_TOKENS)]
    for method in config.rivals:
        seeds = config.seeds if method != DOWNSAMPLE and get_selector(method).draws else (UNSEEDED,)
        for budget in config.budgets:
            if not unmet(method, n_layers, cross_layers, budget):
                cells += [Cell("rivals", method, seed=seed, budget=budget) for seed in seeds]
    return cells


def unmet(method: str, n_layers: int, cross_layers: Sequence[int], budget: float) -> str:
    """Why a method cannot meet a budget; empty if it can."""
    if method == DOWNSAMPLE:
        return ""
    try:
        schedule_for(get_selector(method), n_layers, cross_layers, budget)
    except ConfigError as error:
        return str(error)
    return ""


def _inside(config: AblateConfig, n_layers: int, cross_layers: Sequence[int]) -> list[int]:
    """Layers of deletion inside the decoder; of layers between the same two that read the image only the first."""
    reading = list(cross_layers) or list(range(n_layers))
    chosen = config.inside_layers if config.inside_layers is not None else range(2, n_layers, 2)
    first_layers: dict[int, int] = {}
    for layer in sorted(chosen):
        first_layers.setdefault(sum(i >= layer for i in reading), layer)
    return [
        layer for n, layer in first_layers.items() if n > 0
    ]  # after the last reading layer deletion changes nothing


def _deletions(config: AblateConfig, method: str, layer: int, shares: Sequence[float]) -> list[Cell]:
    draws = method != DOWNSAMPLE and get_selector(method).draws
    seeds = config.seeds if draws else (UNSEEDED,)
    return [Cell("deletion", method, layer, seed, share) for seed in seeds for share in shares]
