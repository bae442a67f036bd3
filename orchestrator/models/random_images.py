"""Placeholder ids and pixel tensors of one random image, in the format of each family's processor; see
`random_models`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from orchestrator.models.batching import Batch
from orchestrator.models.geometry import anyres_grid
from orchestrator.models.random_configs import IMAGE, SEPARATOR

_Image = tuple[list[int], Batch]


def _pixels(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


def _side(config: Any) -> int:
    side = config.vision_config.image_size
    return side[0] if isinstance(side, list | tuple) else side


def one_tile(config: Any, _: tuple[int, int], generator: torch.Generator) -> _Image:
    side = _side(config)
    n = (side // config.vision_config.patch_size) ** 2
    return [IMAGE] * n, {"pixel_values": _pixels(generator, 1, 3, side, side)}


def _anyres(config: Any, tiles: tuple[int, int], generator: torch.Generator) -> _Image:
    side = _side(config)
    rows, cols = tiles
    # Slightly narrower than its tiles, so that a column of padding is removed if there is one.
    height, width = rows * side, cols * side - (side // 2 if cols > 1 else 0)
    max_tiles = 9 if config.model_type == "llava_onevision" else None
    n = len(anyres_grid(config, height, width, max_tiles))
    pixels = _pixels(generator, 1, 1 + rows * cols, 3, side, side)
    return [IMAGE] * n, {"pixel_values": pixels, "image_sizes": torch.tensor([[height, width]])}


def _qwen(config: Any, tiles: tuple[int, int], generator: torch.Generator) -> _Image:
    patch = config.vision_config.patch_size
    rows, cols = (4 * n for n in tiles)
    side = getattr(config, "tile_side", None) or 2
    rows, cols = rows * side // 2, cols * side // 2
    pixels = _pixels(generator, rows * cols, 3 * 2 * patch * patch)
    return [IMAGE] * (rows * cols // 4), {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, rows, cols]])}


def _separated(config: Any, tiles: tuple[int, int], generator: torch.Generator) -> _Image:
    """Tiles with a separator token before each: Idefics3 and SmolVLM (tiles stacked), Gemma3 (tiles in a row)."""
    side, n_tiles = _side(config), tiles[0] * tiles[1]
    if config.model_type == "gemma3":
        each, lead = config.mm_tokens_per_image, [n_tiles]
    else:
        each, lead = (side // config.vision_config.patch_size // config.scale_factor) ** 2, [1, n_tiles]
    return ([SEPARATOR] + [IMAGE] * each) * n_tiles, {"pixel_values": _pixels(generator, *lead, 3, side, side)}


def _joined(config: Any, tiles: tuple[int, int], generator: torch.Generator) -> _Image:
    side, n_tiles = _side(config), tiles[0] * tiles[1]
    pixels = _pixels(generator, n_tiles, 3, side, side)
    return [IMAGE] * (n_tiles * config.image_seq_length), {"pixel_values": pixels}


def _molmo2_image(config: Any, tiles: tuple[int, int], generator: torch.Generator) -> _Image:
    """A low-resolution crop, then `tiles` crops; each token pools 2 x 2 patches; every row ends in a column token."""
    patches = _side(config) // config.vision_config.patch_size
    rows, cols = tiles
    crops = torch.arange(patches * patches * (1 + rows * cols)).view(1 + rows * cols, patches, patches)
    high = crops[1:].view(rows, cols, patches, patches).transpose(1, 2).reshape(rows * patches, cols * patches)
    pooling, ids, grid = [], [], []
    for view in (crops[0], high):
        windows = view.unfold(0, 2, 2).unfold(1, 2, 2)
        pooling.append(windows.reshape(-1, 4))
        grid += [windows.shape[0], windows.shape[1]]
        ids += ([IMAGE] * windows.shape[1] + [SEPARATOR]) * windows.shape[0]
    pixels = _pixels(generator, 1 + rows * cols, patches * patches, 3 * config.vision_config.patch_size**2)
    return ids, {
        "pixel_values": pixels,
        "image_token_pooling": torch.cat(pooling),
        "image_grids": torch.tensor([grid]),
        "image_num_crops": torch.tensor([1 + rows * cols]),
    }


def _mllama_image(config: Any, tiles: tuple[int, int], generator: torch.Generator) -> _Image:
    side, n_tiles, most = _side(config), tiles[0] * tiles[1], config.vision_config.max_num_tiles
    pixels = torch.zeros(1, 1, most, 3, side, side)
    pixels[:, :, :n_tiles] = _pixels(generator, n_tiles, 3, side, side)
    ratio = config.vision_config.supported_aspect_ratios.index(list(tiles)) + 1
    mask = (torch.arange(most) < n_tiles).long()[None, None]
    return [IMAGE], {
        "pixel_values": pixels,
        "aspect_ratio_ids": torch.tensor([[ratio]]),
        "aspect_ratio_mask": mask,
    }


IMAGES: dict[str, Callable[[Any, tuple[int, int], torch.Generator], _Image]] = {
    "llava": one_tile,
    "llava_next": _anyres,
    "llava_onevision": _anyres,
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen,
    "smolvlm": _separated,
    "idefics3": _separated,
    "internvl": _joined,
    "paligemma": one_tile,
    "gemma3": _separated,
    "molmo2": _molmo2_image,
    "mllama": _mllama_image,
}
"""Family -> function from (rows, columns) of tiles to ids and tensors; `one_tile` for other families."""
