"""Position in the image of each placeholder token of a prompt: (row, column, tile), or none for a separator.

Several families use the same placeholder id for learned newline embeddings and visual content; only geometry separates
them. One image per prompt. Rows and columns count from the top left of the tile, tiles in the order in which the
model sees them. A token without a position (a newline) has (-1, -1, -1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from orchestrator.errors import ModelError

Grid = Int[np.ndarray, "N 3"]

NOWHERE = -1


def tile_grid(height: int, width: int, tile: int = 0) -> Grid:
    """Return the tokens of one tile, row by row: (row, column, tile), int64."""
    rows, cols = np.divmod(np.arange(height * width), width)
    return np.stack([rows, cols, np.full_like(rows, tile)], axis=1)


def square_tiles(n_tokens: int, n_per_tile: int) -> Grid:
    """Return `n_tokens` as consecutive square tiles of `n_per_tile` tokens each."""
    side = math.isqrt(n_per_tile)
    if side * side != n_per_tile or n_tokens % n_per_tile:
        return tile_grid(1, n_tokens)
    return np.concatenate([tile_grid(side, side, tile) for tile in range(n_tokens // n_per_tile)])


def unpadded_shape(rows: int, cols: int, image_height: int, image_width: int) -> tuple[int, int]:
    """Return (rows, columns) of a padded feature grid after removal of the aspect-ratio padding.

    As `unpad_image` of LLaVA-NeXT, whose rounding determines the number of tokens.
    """
    if image_width / image_height > cols / rows:
        kept = int(round(image_height * (cols / image_width), 7))
        return rows - 2 * ((rows - kept) // 2), cols
    kept = int(round(image_width * (rows / image_height), 7))
    return rows, cols - 2 * ((cols - kept) // 2)


def anyres_grid(config: Any, image_height: int, image_width: int, max_tiles: int | None = None) -> Grid:
    """Return the packed tokens of LLaVA-NeXT and LLaVA-OneVision: a base tile, then one grid with a newline per row.

    Args:
        config: the model's config, with `vision_config` and `image_grid_pinpoints`.
        max_tiles: tiles after which OneVision shrinks the grid; `None` for LLaVA-NeXT, which never does.
    """
    from transformers.image_processing_utils import select_best_resolution

    size = config.vision_config.image_size
    side = size // config.vision_config.patch_size
    pinpoints = [list(point) for point in config.image_grid_pinpoints]
    best_height, best_width = select_best_resolution((image_height, image_width), pinpoints)
    rows, cols = unpadded_shape(best_height // size * side, best_width // size * side, image_height, image_width)
    if max_tiles is not None:
        ratio = math.sqrt(rows * cols / (max_tiles * side**2))
        if ratio > 1.1:
            rows, cols = int(rows // ratio), int(cols // ratio)
    grid = tile_grid(rows, cols, 1).reshape(rows, cols, 3)
    newline = np.full((rows, 1, 3), NOWHERE)
    return np.concatenate([tile_grid(side, side), np.concatenate([grid, newline], axis=1).reshape(-1, 3)])


def placeholder_grid(config: Any, n_tokens: int, sizes: Mapping[str, Any]) -> Grid:
    """Return (row, column, tile) of each of the `n_tokens` placeholder tokens of one prompt with one image.

    Args:
        config: the model's config.
        n_tokens: placeholder tokens in the prompt; 0 for a prompt without an image.
        sizes: this prompt's row of the processor's outputs about the image: `image_sizes` (height, width),
            `image_grid_thw` (frames, rows, columns in patches), `image_grids` (rows, columns of the low-resolution
            view, then of the crops); as the family provides.

    Raises:
        ModelError: if the geometry does not explain the number of tokens.
    """
    if n_tokens == 0:
        return np.zeros((0, 3), dtype=np.int64)
    family = config.model_type
    if family == "llava_next" and "image_sizes" in sizes:
        height, width = map(int, sizes["image_sizes"])
        grid = anyres_grid(config, height, width)
    elif family == "llava_onevision" and "image_sizes" in sizes:
        max_tiles = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
        height, width = map(int, sizes["image_sizes"])
        grid = anyres_grid(config, height, width, max_tiles)
    elif "image_grid_thw" in sizes:
        merge = config.vision_config.spatial_merge_size
        frames, rows, cols = map(int, sizes["image_grid_thw"])
        grid = np.concatenate([tile_grid(rows // merge, cols // merge, frame) for frame in range(frames)])
    elif "image_grids" in sizes:
        low_rows, low_cols, rows, cols = map(int, sizes["image_grids"])
        grid = np.concatenate([tile_grid(low_rows, low_cols), tile_grid(rows, cols, 1)])
    else:
        grid = square_tiles(n_tokens, tokens_per_tile(config, n_tokens))
    if len(grid) != n_tokens:
        raise ModelError(
            f"{family}: the prompt has {n_tokens} image tokens, but its image sizes explain {len(grid)}."
            " One image per prompt is supported."
        )
    return grid


def tokens_per_tile(config: Any, n_tokens: int) -> int:
    """Return the number of placeholder tokens per tile of a fixed-size family; all of them if it has one tile."""
    family = config.model_type
    if family == "gemma3":
        return int(config.mm_tokens_per_image)
    if family == "internvl":
        return int(config.image_seq_length)
    if family in ("idefics3", "smolvlm"):
        vision = config.vision_config
        return int((vision.image_size // vision.patch_size // config.scale_factor) ** 2)
    return n_tokens
