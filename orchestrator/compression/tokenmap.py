"""Token maps: norms of vision tokens on their grid in the image.

`L` layers, `N` vision tokens in the model's order. A model that sees an image in several tiles (a thumbnail and crops)
has one map per tile. Tokens without a place in the image (row separators, tile markers) are no vision tokens and have
no entry in the grid.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from orchestrator.errors import DataError


def lay_on_grid(
    norms: Float[np.ndarray, "L N"], grid: Int[np.ndarray, "N 3"]
) -> dict[int, Float[np.ndarray, "L rows columns"]]:
    """Token norms of each tile on its grid, by tile number; NaN where the grid has no token.

    Args:
        norms: norm of each vision token at each layer.
        grid: row, column and tile of each token (an adapter's `vision_grid`); a negative row marks padding.

    Raises:
        DataError: norms and grid differ in number of tokens, or two tokens share a cell.
    """
    if norms.shape[1] != len(grid):
        raise DataError(f"token map: {norms.shape[1]} norms for a grid of {len(grid)} tokens")
    maps = {}
    for tile in np.unique(grid[grid[:, 0] >= 0, 2]).tolist():
        in_tile = (grid[:, 2] == tile) & (grid[:, 0] >= 0)
        rows, columns = grid[in_tile, 0], grid[in_tile, 1]
        cells = {*zip(rows.tolist(), columns.tolist(), strict=True)}
        if len(cells) < in_tile.sum():
            raise DataError(f"token map: tile {tile} has {in_tile.sum()} tokens on {len(cells)} grid cells")
        laid = np.full((len(norms), rows.max() + 1, columns.max() + 1), np.nan, np.float32)
        laid[:, rows, columns] = norms[:, in_tile]
        maps[int(tile)] = laid
    return maps
