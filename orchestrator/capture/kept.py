"""Results of single images of a shard until its tables are made; arrays for maps over the image.

Shapes: P positions, D width, V vision tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from orchestrator.capture.tables import PictureKey
from orchestrator.errors import ModelError


@dataclass
class Kept:
    """Results of one image: (tap, layer, group) -> (n_tokens, values); tap -> layer -> float32 (P, D)."""

    metrics: dict[tuple[str, int, str], tuple[int, np.ndarray]] = field(default_factory=dict)
    features: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    token_norms: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    """tap -> layer -> float32 (V,)."""
    apart: dict[PictureKey, tuple[int, np.ndarray]] = field(default_factory=dict)
    """Metrics of each image alone, of a question about several."""
    grid: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.int16))
    """int16 (V, 3): row, column and tile of each vision token."""


def token_maps(kept: Sequence[Kept]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays for maps over the image, and the names of their axes; both empty if no tap has vision tokens.

    `token_norms`: float32 (images, layers, V), NaN as padding. `token_grid`: int16 (images, V, 3), row, column and
    tile of each vision token, -1 as padding.
    """
    taps = list(kept[0].token_norms) if kept else []
    if not taps:
        return {}, {}
    layers = sorted(kept[0].token_norms[taps[0]])
    max_tokens = max(len(image.grid) for image in kept)
    norms = np.full((len(kept), len(layers), max_tokens), np.nan, np.float32)
    grid = np.full((len(kept), max_tokens, 3), -1, np.int16)
    for i, image in enumerate(kept):
        n = len(image.grid)
        n_norms = int(np.isfinite(image.token_norms[taps[0]][layers[0]]).sum())
        if n_norms != n:
            raise ModelError(
                f"the adapter's vision_grid gives {n} places for {n_norms} vision tokens; expected one each"
            )
        grid[i, :n] = image.grid
        for k, layer in enumerate(layers):
            norms[i, k, :n] = image.token_norms[taps[0]][layer][:n]
    return {"token_norms": norms, "token_grid": grid}, {"token_norms": {"tap": taps[0], "layers": layers}}
