"""The units of work of an ablation: one setting, asked of all its questions. Pure; nothing is imported to list them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.config import AblateConfig

UNSEEDED = -1
"""Seed of cells that draw nothing."""


@dataclass(frozen=True)
class Cell:
    """One setting. `check` is deletion, knockout or patching; a shard of the stage holds one cell's rows."""

    check: str
    method: str = ""
    layer: int = 0
    seed: int = UNSEEDED
    deleted_share: float = 0.0
    last_layer: int = -1
    attribute: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def list_cells(config: AblateConfig, n_layers: int, cross_layers: Sequence[int] = ()) -> list[Cell]:
    """Every cell of an ablation, in a fixed order.

    Args:
        n_layers: decoder layers.
        cross_layers: cross-attention layers of a `cross_kv` model; they are switched off one by one, and patched.
    """
    cells: list[Cell] = []
    if {"deletion", "policy", "link"} & set(config.checks):
        cells += _deletions(config, [0])
    if "inside" in config.checks:
        layers = config.inside_layers if config.inside_layers is not None else range(2, n_layers, 2)
        methods = [m for m in config.methods if m not in ("downsample", "attention")]
        cells += [cell for cell in _deletions(config, list(layers), methods) if cell.deleted_share > 0]
    if "knockout" in config.checks:
        cells.append(Cell("knockout"))
        if cross_layers:
            windows = [(layer, layer) for layer in cross_layers]
        else:
            width = min(config.window, n_layers)
            windows = [(first, first + width - 1) for first in range(n_layers - width + 1)]
        windows.append((0, n_layers - 1))
        cells += [Cell("knockout", layer=first, last_layer=last) for first, last in dict.fromkeys(windows)]
    if "patching" in config.checks:
        points = cross_layers or range(n_layers)
        attributes = ("colour", "shape", "count", "relation")
        cells += [Cell("patching", layer=layer, attribute=name) for name in attributes for layer in points]
    return cells


def _deletions(config: AblateConfig, layers: Sequence[int], methods: Sequence[str] | None = None) -> list[Cell]:
    cells = []
    for method in methods or config.methods:
        for seed in config.seeds if method == "random" else (UNSEEDED,):
            for layer in layers:
                cells += [Cell("deletion", method, layer, seed, share) for share in config.deleted_shares]
    return cells
