"""How many vision tokens an image of a given size makes, by family: arithmetic alone, as each processor resizes.

Sizes are in px. The rules are those of the published processors at their default settings; where a checkpoint ships
other settings (pixel limits, tiles), `vtsweep doctor MODEL` runs its own processor and reports what it really makes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import ModelError
from orchestrator.models.geometry import anyres_grid


@dataclass(frozen=True)
class VisionLoad:
    """What one image costs: `tokens` the decoder sees as visual content, and what the encoder runs on.

    `placeholders` counts the tokens' places in the prompt, separators on the same id included. The encoder sees
    `sequences` runs of `length` patches each (class tokens included).
    """

    tokens: int
    placeholders: int
    sequences: int
    length: int


def visual_load(config: Any, height: int, width: int) -> VisionLoad:
    """Return the vision tokens of one image of `height` x `width` px.

    Args:
        config: a transformers config; of `molmo` only its `model_type` matters.

    Raises:
        ModelError: for a family without a rule here.
    """
    family = config.model_type
    if family == "molmo":
        return _molmo(height, width)
    vision = config.vision_config
    if family == "molmo2":
        side = vision.image_size[0] if isinstance(vision.image_size, list | tuple) else vision.image_size
        return _overlapping_crops(height, width, patch=vision.patch_size, patches=side // vision.patch_size, most=8)
    if family in ("qwen2_5_vl", "qwen3_vl"):
        return _qwen(vision, family, height, width)
    side = vision.image_size[0] if isinstance(vision.image_size, list | tuple) else vision.image_size
    patch = vision.patch_size[0] if isinstance(vision.patch_size, list | tuple) else vision.patch_size
    patches = (side // patch) ** 2
    if family in ("llava", "paligemma"):
        with_class = patches + 1 if family == "llava" and vision.model_type == "clip_vision_model" else patches
        return VisionLoad(patches, patches, 1, with_class)
    if family == "gemma3":
        return VisionLoad(config.mm_tokens_per_image, config.mm_tokens_per_image, 1, patches)
    if family in ("llava_next", "llava_onevision"):
        grid = anyres_grid(config, height, width, 9 if family == "llava_onevision" else None)
        best = best_resolution(height, width, config.image_grid_pinpoints)
        tiles = 1 + best[0] // side * (best[1] // side)
        length = patches + (family == "llava_next")
        return VisionLoad(int((grid[:, 0] >= 0).sum()), len(grid), tiles, length)
    if family in ("idefics3", "smolvlm"):
        tiles = idefics_tiles(side, 4, height, width)
        tokens = tiles * (side // patch // config.scale_factor) ** 2
        return VisionLoad(tokens, tokens, tiles, patches)
    if family == "internvl":
        rows, cols = closest_grid(height, width, side, 12)
        tiles = rows * cols + (rows * cols > 1)
        return VisionLoad(tiles * config.image_seq_length, tiles * config.image_seq_length, tiles, patches + 1)
    if family == "mllama":
        rows, cols = canvas_grid(height, width, side, vision.supported_aspect_ratios, vision.max_num_tiles)
        # The encoder runs on all tiles, padding included, each padded to a multiple of eight.
        length = vision.max_num_tiles * -(-(patches + 1) // 8) * 8
        return VisionLoad(rows * cols * (patches + 1), 1, 1, length)
    raise ModelError(f"No rule for the vision tokens of family {family!r} without weights; run `vtsweep doctor`.")


def best_resolution(height: int, width: int, candidates: list[list[int]]) -> tuple[int, int]:
    """Return the (height, width) candidate that keeps most of the image and wastes least (LLaVA-NeXT)."""

    def fit(candidate: list[int]) -> tuple[int, int]:
        scale = min(candidate[1] / width, candidate[0] / height)
        used = min(int(width * scale) * int(height * scale), width * height)
        return used, used - candidate[0] * candidate[1]

    best = max(candidates, key=fit)
    return best[0], best[1]


def _qwen(vision: Any, family: str, height: int, width: int) -> VisionLoad:
    factor = vision.patch_size * vision.spatial_merge_size
    limits = (56 * 56, 12_845_056) if family == "qwen2_5_vl" else (65_536, 16_777_216)
    height, width = qwen_resize(height, width, factor, *limits)
    tokens = height // factor * (width // factor)
    return VisionLoad(tokens, tokens, 1, tokens * vision.spatial_merge_size**2)


def qwen_resize(height: int, width: int, factor: int, least: int, most: int) -> tuple[int, int]:
    """Return the size to which the Qwen processors bring an image: multiples of `factor`, area within the limits."""
    h, w = max(factor, round(height / factor) * factor), max(factor, round(width / factor) * factor)
    if h * w > most:
        beta = math.sqrt(height * width / most)
        h = max(factor, math.floor(height / beta / factor) * factor)
        w = max(factor, math.floor(width / beta / factor) * factor)
    elif h * w < least:
        beta = math.sqrt(least / (height * width))
        h, w = math.ceil(height * beta / factor) * factor, math.ceil(width * beta / factor) * factor
    return h, w


def idefics_tiles(side: int, longest_in_tiles: int, height: int, width: int) -> int:
    """Return the tiles of Idefics3 and SmolVLM: the longer edge is always scaled to `longest_in_tiles` tiles."""
    aspect = width / height
    if width >= height:
        w = longest_in_tiles * side
        h = int(w / aspect)
        h += h % 2
    else:
        h = longest_in_tiles * side
        w = int(h * aspect)
        w += w % 2
    # Then both to whole tiles, and one more for the whole image.
    return math.ceil(h / side) * math.ceil(w / side) + 1


def closest_grid(height: int, width: int, tile: int, most: int) -> tuple[int, int]:
    """Return the (rows, columns) of tiles whose aspect ratio is nearest the image's (InternVL), at most `most`."""
    grids = sorted({(r, c) for r in range(1, most + 1) for c in range(1, most + 1) if r * c <= most}, key=math.prod)
    best, smallest = (1, 1), math.inf
    for rows, cols in grids:
        difference = abs(width / height - cols / rows)
        larger = difference == smallest and width * height > 0.5 * tile**2 * rows * cols
        if difference < smallest or larger:
            best, smallest = (rows, cols), difference
    return best


def canvas_grid(height: int, width: int, tile: int, ratios: list[list[int]], most: int) -> tuple[int, int]:
    """Return the (rows, columns) of tiles that hold the image with least scaling up, or least down (mllama)."""
    grids = [(rows, cols) for rows, cols in ratios if rows * cols <= most]
    scale = {grid: min(grid[0] * tile / height, grid[1] * tile / width) for grid in grids}
    up = [s for s in scale.values() if s >= 1]
    chosen = min(up) if up else max(scale.values())
    return min((grid for grid in grids if scale[grid] == chosen), key=math.prod)


def _molmo(height: int, width: int) -> VisionLoad:
    return _overlapping_crops(height, width, patch=14, patches=24, most=12, class_token=1)


def _overlapping_crops(
    height: int, width: int, *, patch: int, patches: int, most: int, class_token: int = 0
) -> VisionLoad:
    """Return Molmo's tokens: a low-resolution view, and overlapping crops pooled 2 x 2 without their overlap.

    Args:
        patch: side of a patch, px.
        patches: patches of a crop's side.
        most: crops at most.
        class_token: class tokens of a run of the encoder.
    """
    overlap, pool = 8, 2  # patches shared with neighbours, if there are so many; pooling
    overlap = overlap if patches > overlap else 0
    window, margin = patches - overlap, overlap * patch
    rows, cols = molmo_tiling(height - margin, width - margin, window * patch, most=most)
    high = math.ceil((rows * window + overlap) / pool) * math.ceil((cols * window + overlap) / pool)
    tokens = math.ceil(patches / pool) ** 2 + high
    return VisionLoad(tokens, tokens, 1 + rows * cols, patches**2 + class_token)


def molmo_tiling(height: int, width: int, window: int, most: int) -> tuple[int, int]:
    """Return Molmo's (rows, columns) of crop windows: least scaling up, else least scaling down."""
    grids = [(r, c) for r in range(1, most + 1) for c in range(1, most + 1) if r * c <= most]
    grids.sort(key=lambda grid: (math.prod(grid), grid[0]))
    # A side of nothing beside the margin fits any grid, as in the processor's own floating-point division.
    scales = [
        min(n * window / side if side else math.inf for n, side in ((rows, height), (cols, width)))
        for rows, cols in grids
    ]
    if all(scale < 1 for scale in scales):
        return grids[max(range(len(grids)), key=lambda i: scales[i])]
    return grids[min(range(len(grids)), key=lambda i: scales[i] if scales[i] >= 1 else math.inf)]
