"""Which visual tokens show a box of the picture, however the model cuts, pads, stretches or tiles it.

A token shows a box where its cell and the box overlap. Coordinates are shares of the picture, (x0, y0, x1, y1) from the
top left; a window beyond 0 and 1 is padding. Shapes: V visual tokens, K boxes.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from orchestrator.errors import ModelError
from orchestrator.models.adapter import Adapter
from orchestrator.models.fitting import WHOLE, Window, shown_window
from orchestrator.models.geometry import Grid

STRETCHED = ("llava_next", "llava_onevision", "qwen2_5_vl", "qwen3_vl", "molmo2")
"""Families each of whose grids (thumbnail, crops, frames) covers the whole picture."""
EDGE = 1e-6
"""Overlap, in shares of the picture, below which a box only touches a cell."""


def box_tokens(
    adapter: Adapter, grid: Int[Tensor, "V 3"], boxes: Float[Tensor, "K 4"], size: tuple[int, int]
) -> Bool[Tensor, " V"]:
    """Return which visual tokens show any of the boxes; a token without a place of its own (a class token) shows none.

    Args:
        grid: (row, column, tile) of each token, from `adapter.vision_grid`.
        size: (height, width) of the picture before the processor, px.

    Raises:
        ModelError: it is not known where the family puts this many tiles.
    """
    shown = torch.zeros(len(grid), dtype=torch.bool)
    placed = grid[:, 0] >= 0
    if not len(boxes) or not bool(placed.any()):
        return shown
    for tile, (x0, y0, x1, y1) in tile_windows(adapter, grid.numpy(), size).items():
        here = placed & (grid[:, 2] == tile)
        rows, cols = (grid[here, :2].max(dim=0).values + 1).tolist()
        wide, high = (x1 - x0) / cols, (y1 - y0) / rows
        left, top = x0 + grid[here, 1].double() * wide, y0 + grid[here, 0].double() * high
        edges = boxes.double()
        across = torch.minimum(left[:, None] + wide, edges[:, 2]) - torch.maximum(left[:, None], edges[:, 0])
        down = torch.minimum(top[:, None] + high, edges[:, 3]) - torch.maximum(top[:, None], edges[:, 1])
        shown[here] = ((across > EDGE) & (down > EDGE)).any(dim=1)
    return shown


def object_and_background(
    adapter: Adapter, grid: Int[Tensor, "V 3"], boxes: Float[Tensor, "K 4"], size: tuple[int, int]
) -> Bool[Tensor, "2 V"]:
    """Return which visual tokens show a box, and which show the picture and no box; padding and class tokens: neither.

    Arguments and errors as of `box_tokens`.
    """
    shown = box_tokens(adapter, grid, boxes, size)
    return torch.stack([shown, box_tokens(adapter, grid, torch.tensor([WHOLE]), size) & ~shown])


def tile_windows(adapter: Adapter, grid: Grid, size: tuple[int, int]) -> dict[int, Window]:
    """Return what part of the picture each tile of a grid covers.

    Raises:
        ModelError: it is not known where the family puts this many tiles.
    """
    tiles, family = sorted(set(grid[grid[:, 0] >= 0, 2].tolist())), adapter.family
    if family == "mllama":
        return _tiles_padded_at_the_end(adapter.config.vision_config, tiles, size)
    if family == "molmo":
        return {tile: _padded(grid[grid[:, 2] == tile], size) for tile in tiles}
    if family in STRETCHED:
        return dict.fromkeys(tiles, WHOLE)
    if len(tiles) == 1:
        return {tiles[0]: shown_window(adapter.processor, adapter.fit, *size)}
    if family == "internvl":
        shape = _internvl_tiles(adapter.processor, size)
    elif family in ("idefics3", "smolvlm"):
        shape = _idefics_tiles(adapter.processor, size)
    else:
        shape = (0, 0)
    rows, cols = shape
    if rows * cols != len(tiles) - 1:
        raise ModelError(f"{family}: it is not known where its {len(tiles)} tiles lie on a picture of {size} px.")
    return {**_mosaic(tiles[:-1], rows, cols), tiles[-1]: WHOLE}  # a thumbnail comes last


def _mosaic(tiles: list[int], rows: int, cols: int) -> dict[int, Window]:
    return {
        tile: (number % cols / cols, number // cols / rows, (number % cols + 1) / cols, (number // cols + 1) / rows)
        for number, tile in enumerate(tiles)
    }


def _padded(grid: Grid, size: tuple[int, int]) -> Window:
    """A picture in the middle of a grid of square cells, as large as it fits."""
    rows, cols = (grid[:, :2].max(axis=0) + 1).tolist()
    scale = min(rows / size[0], cols / size[1])
    high, wide = rows / (size[0] * scale), cols / (size[1] * scale)
    return (0.5 - wide / 2, 0.5 - high / 2, 0.5 + wide / 2, 0.5 + high / 2)


def _tiles_padded_at_the_end(vision: Any, tiles: list[int], size: tuple[int, int]) -> dict[int, Window]:
    """Tiles of mllama's canvas, which a picture fills from the top left."""
    from transformers.models.mllama.image_processing_pil_mllama import (
        get_image_size_fit_to_canvas,
        get_optimal_tiled_canvas,
    )

    side, (height, width) = int(vision.image_size), size
    canvas = get_optimal_tiled_canvas(height, width, int(vision.max_num_tiles), side)
    new = get_image_size_fit_to_canvas(height, width, *canvas, side)
    rows, cols = canvas[0] // side, canvas[1] // side
    if rows * cols != len(tiles):
        raise ModelError(f"mllama: {len(tiles)} tiles; a picture of {size} px is cut into {rows} x {cols}.")
    wide, high = side / int(new[1]), side / int(new[0])
    windows = {}
    for number, tile in enumerate(tiles):
        x, y = number % cols * wide, number // cols * high
        windows[tile] = (x, y, x + wide, y + high)
    return windows


def _internvl_tiles(processor: Any, size: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of InternVL's crops."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    images = processor.image_processor
    side = dict(images.size)
    cols, rows = get_optimal_tiled_canvas(
        size, (int(side["height"]), int(side["width"])), int(images.min_patches), int(images.max_patches)
    )
    return int(rows), int(cols)


def _idefics_tiles(processor: Any, size: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of the crops of Idefics3 and SmolVLM: the longest edge first, then whole tiles."""
    images = processor.image_processor
    longest, tile = int(dict(images.size)["longest_edge"]), int(dict(images.max_image_size)["longest_edge"])
    long, short = max(size), min(size)
    resized = int(longest / (long / short))
    resized += resized % 2
    n_long = -(-longest // tile)
    n_short = max(1, -(-int(n_long * tile / (longest / max(1, resized))) // tile))
    return (n_short, n_long) if size[1] >= size[0] else (n_long, n_short)
