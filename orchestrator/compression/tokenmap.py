"""Norms of vision tokens laid back on the image: which places a layer's energy lies on.

`L` layers, `N` vision tokens in the model's order. A model that sees an image in several tiles (a thumbnail and crops)
has one map a tile; tokens that are no place in the image (row separators, tile markers) are no vision tokens and have
no entry in the grid.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from orchestrator.errors import DataError


def lay_on_grid(
    norms: Float[np.ndarray, "L N"], grid: Int[np.ndarray, "N 3"]
) -> dict[int, Float[np.ndarray, "L rows columns"]]:
    """Token norms of each tile on its own grid, by tile number; NaN where a grid has no token.

    Args:
        norms: norm of each vision token at each layer.
        grid: row, column and tile of each token (an adapter's `vision_grid`); a negative row marks padding, left out.

    Raises:
        DataError: norms and grid differ in tokens, or two tokens share a place.
    """
    if norms.shape[1] != len(grid):
        raise DataError(f"token map: {norms.shape[1]} norms for a grid of {len(grid)} tokens")
    found = {}
    for tile in np.unique(grid[grid[:, 0] >= 0, 2]).tolist():
        here = (grid[:, 2] == tile) & (grid[:, 0] >= 0)
        rows, columns = grid[here, 0], grid[here, 1]
        places = {*zip(rows.tolist(), columns.tolist(), strict=True)}
        if len(places) < here.sum():
            raise DataError(f"token map: tile {tile} has {here.sum()} tokens on {len(places)} places")
        laid = np.full((len(norms), rows.max() + 1, columns.max() + 1), np.nan, np.float32)
        laid[:, rows, columns] = norms[:, here]
        found[int(tile)] = laid
    return found
