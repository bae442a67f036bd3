"""Tokens of a box are those whose pixels, as the family's own processor makes them, hold the box."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from orchestrator.errors import ModelError
from orchestrator.models.box_tokens import box_tokens, object_and_background, tile_windows
from orchestrator.models.fitting import fit_picture
from tests.models.processors import processed_adapter

adapter = cache(processed_adapter)
TILED = ("llava", "paligemma", "gemma3", "internvl", "idefics3", "smolvlm", "mllama", "llava_next", "llava_onevision")


def bright(model, picture: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
    """How much of each visual token's cell is white in the processor's pixels, and the token's place."""
    example = model.prepare(picture, "a?")
    blank = model.prepare(np.zeros_like(picture), "a?")
    pixels = (example["pixel_values"] - blank["pixel_values"]).abs().flatten(0, -4)  # (tiles, 3, H, W)
    grid = model.vision_grid(example)[0]
    found = np.zeros(len(grid))
    for number, (row, col, tile) in enumerate(grid.tolist()):
        if row < 0:
            continue
        rows, cols = (grid[grid[:, 2] == tile][:, :2].max(0).values + 1).tolist()
        one = pixels[tile].mean(0)
        high, wide = one.shape[0] / rows, one.shape[1] / cols
        cell = one[round(row * high) : round((row + 1) * high), round(col * wide) : round((col + 1) * wide)]
        found[number] = float(cell.mean() / pixels.max())
    return found, grid


@pytest.mark.parametrize("family", TILED)
@pytest.mark.parametrize("size", [(32, 32), (24, 60), (70, 30)])
def test_tokens_of_a_box_are_those_whose_pixels_show_it(family: str, size: tuple[int, int]) -> None:
    model, (height, width) = adapter(family), size
    edges = (0.5, 0.25, 0.9, 0.6)
    x0, y0, x1, y1 = (round(e * s) for e, s in zip(edges, (width, height, width, height), strict=True))
    picture = np.zeros((height, width, 3), np.uint8)
    picture[y0:y1, x0:x1] = 255
    share, grid = bright(model, picture)
    boxes = torch.tensor([[x0 / width, y0 / height, x1 / width, y1 / height]])
    shown = box_tokens(model, grid, boxes, size).numpy()
    if family in ("llava_next", "llava_onevision"):  # of several crops the thumbnail alone has pixels of its own grid
        first = grid[:, 2].numpy() == 0
        share, shown = share[first], shown[first]
    assert shown.any()
    assert shown[share > 0.3].all(), "what is bright is in the box"
    assert (share[~shown] < 0.3).all()
    assert (share[shown] > 0.02).mean() > 0.6, "and what is in the box is bright but at its rim"


def packed(model, change: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Change of each patch's pixels, carried to visual tokens by the model's own packing of thumbnail and crops.

    Args:
        change: (1 + crops, H, W) of the processor's pixels.
    """
    side = model.config.vision_config.patch_size
    patches = change.unfold(1, side, side).unfold(2, side, side).mean((-1, -2)).flatten(1)[..., None]
    pack = model.model.model.pack_image_features
    sizes, newline = torch.tensor([size]), torch.full((1,), -1.0)
    if model.family == "llava_next":
        tokens = pack([patches], sizes, "default", image_newline=newline)[0]
    else:
        tokens = pack([patches], sizes, image_newline=newline)[0]
    values = torch.cat(list(tokens))[:, 0]
    return values[values >= 0]


def merged(model, change: torch.Tensor) -> torch.Tensor:
    """Change of each visual token's pixels: a token is made of as many consecutive rows of patches as are merged."""
    return change.mean(1).view(-1, model.config.vision_config.spatial_merge_size**2).mean(1)


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("size", [(32, 32), (24, 60), (70, 30)])
def test_tokens_of_crops_and_native_grids_are_those_whose_pixels_change(family: str, size: tuple[int, int]) -> None:
    model, (height, width) = adapter(family), size
    picture = np.zeros((height, width, 3), np.uint8)
    x0, y0, x1, y1 = width // 2, height // 4, round(0.9 * width), round(0.6 * height)
    blank = model.prepare(picture, "a?")
    picture[y0:y1, x0:x1] = 255
    example = model.prepare(picture, "a?")
    change = (example["pixel_values"] - blank["pixel_values"]).abs()
    if "image_grid_thw" in example:
        share = merged(model, change) / change.max()
    else:
        share = packed(model, change[0].mean(1) / change.max(), size)
    grid = model.vision_grid(example)[0]
    shown = box_tokens(model, grid, torch.tensor([[x0 / width, y0 / height, x1 / width, y1 / height]]), size)
    assert len(share) == len(grid)
    for tile in grid[:, 2].unique():
        own = grid[:, 2] == tile
        assert shown[own].any()
        assert shown[own & (share > 0.3)].all(), "what changes is in the box"
        assert (share[own & ~shown] < 0.3).all()
        assert (share[own & shown] > 0.02).float().mean() > 0.6, "and what is in the box changes but at its rim"


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("size", [(40, 80), (90, 30)])
def test_a_processor_that_cuts_sees_the_part_that_the_window_says(fit: str, size: tuple[int, int]) -> None:
    images = SimpleNamespace(do_center_crop=True, crop_size={"height": 30, "width": 30}, image_mean=(0.0, 0.0, 0.0))
    model = SimpleNamespace(family="llava", fit=fit, processor=SimpleNamespace(image_processor=images))
    grid = np.array([[0, 0, 0]])
    x0, y0, x1, y1 = tile_windows(model, grid, size)[0]
    ramp = np.zeros((*size, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.linspace(50, 250, size[1])[None], np.linspace(50, 250, size[0])[:, None]
    made = fit_picture(ramp, fit, model.processor)
    side = min(made.shape[:2])
    top, left = (made.shape[0] - side) // 2, (made.shape[1] - side) // 2
    square = made[top : top + side, left : left + side].astype(float)
    seen = [(square[side // 2, at, 0] - 50) / 200 for at in (0, -1)] + [
        (square[at, side // 2, 1] - 50) / 200 for at in (0, -1)
    ]
    inside = [max(x0, 0.0), min(x1, 1.0), max(y0, 0.0), min(y1, 1.0)]
    for value, edge, padded in zip(seen, inside, (x0 < 0, x1 > 1, y0 < 0, y1 > 1), strict=True):
        assert value < 0 if padded else abs(value - edge) < 0.03, (fit, seen, inside)


def test_tiles_of_an_unknown_order_are_refused() -> None:
    model = SimpleNamespace(family="gemma3", fit="pad", processor=None)
    with pytest.raises(ModelError, match="not known where its 2 tiles lie"):
        tile_windows(model, np.array([[0, 0, 0], [0, 0, 1]]), (10, 10))


def test_padding_and_class_tokens_show_neither_object_nor_background() -> None:
    """Of a picture four times as wide as high, padded to a square, only the middle rows of a grid show anything."""
    images = SimpleNamespace(do_center_crop=True, crop_size={"height": 32, "width": 32}, image_mean=(0.0, 0.0, 0.0))
    model = SimpleNamespace(family="llava", fit="pad", processor=SimpleNamespace(image_processor=images))
    rows, cols = np.divmod(np.arange(64), 8)
    grid = torch.from_numpy(np.stack([rows, cols, np.zeros(64, int)], 1))
    objects, background = object_and_background(model, grid, torch.tensor([[0.0, 0.0, 0.25, 1.0]]), (32, 128))
    middle = (grid[:, 0] == 3) | (grid[:, 0] == 4)
    assert torch.equal(objects, middle & (grid[:, 1] < 2))
    assert torch.equal(background, middle & (grid[:, 1] >= 2))
    objects, background = object_and_background(model, grid, torch.zeros(0, 4), (32, 128))
    assert not objects.any()
    assert torch.equal(background, middle)
    across = adapter("mllama")
    grid = across.vision_grid(across.prepare(np.zeros((32, 32, 3), np.uint8), "a?"))[0]
    assert not object_and_background(across, grid, torch.tensor([[0.0, 0.0, 0.5, 1.0]]), (32, 32))[:, 0].any()
