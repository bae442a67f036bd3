"""Several images in one prompt: which families take them, and whose each visual token is.

The vision group of such a prompt is the tokens of all its images, in their order. Tiles count on from one image to the
next, so that every token keeps a place of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from orchestrator.errors import ModelError
from orchestrator.models.batching import Batch
from orchestrator.models.catalogue import TAKES_SEVERAL
from orchestrator.models.geometry import NOWHERE, Grid, placeholder_grid, tile_grid

_TILED_RUNS = ("idefics3", "smolvlm")
"""Families of one run of image tokens a tile; an image has as many tiles as its size asks for."""


def check_several(family: str) -> None:
    """Refuse a family that takes one image a prompt.

    Raises:
        ModelError: which names those that take several.
    """
    if family not in TAKES_SEVERAL:
        raise ModelError(
            f"{family}: this family is shown one image a question; several are taken by {', '.join(TAKES_SEVERAL)}"
        )


def images_of_rows(batch: Batch) -> list[int]:
    """Return the number of images of each row of a batch; a row without an image counts as one."""
    return batch["n_images"].tolist() if "n_images" in batch else [1] * len(batch["input_ids"])


def by_row(batch: Batch, sizes: Sequence[int]) -> list[int]:
    """Return the sums over each row's images of numbers that are known by image."""
    ends = np.cumsum([0, *images_of_rows(batch)])
    return [sum(sizes[start:end]) for start, end in pairwise(ends.tolist())]


def grid_of_row(config: Any, batch: Batch, row: int, positions: Int[Tensor, " P"]) -> Int[Tensor, "P 3"]:
    """Return (row, column, tile) of each placeholder of one row, -1 for separators.

    Args:
        positions: the placeholders' places in the sequence.
    """
    counts = images_of_rows(batch)
    first = sum(counts[:row])
    sizes = [_sizes(batch, first + i) for i in range(counts[row])]
    if len(sizes) == 1:
        return torch.from_numpy(placeholder_grid(config, len(positions), sizes[0]))
    parts, tile = [], 0
    for n, size in zip(tokens_of_images(config, batch, row, positions, sizes), sizes, strict=True):
        grid = _grid(config, n, size)
        parts.append(np.where(grid >= 0, grid + np.array([0, 0, tile]), grid))
        tile = int(parts[-1][:, 2].max()) + 1
    return torch.from_numpy(np.concatenate(parts))


def image_of_tokens(config: Any, batch: Batch, row: int, positions: Int[Tensor, " P"]) -> Int[Tensor, " V"]:
    """Return which of a row's images, from 0, each of its visual tokens is of, in the order of `vision_grid`."""
    counts = images_of_rows(batch)
    sizes = [_sizes(batch, sum(counts[:row]) + i) for i in range(counts[row])]
    if len(sizes) == 1:
        return torch.zeros(int((grid_of_row(config, batch, row, positions)[:, 0] >= 0).sum()), dtype=torch.long)
    found = []
    for i, n in enumerate(tokens_of_images(config, batch, row, positions, sizes)):
        found.append(np.full(int((_grid(config, n, sizes[i])[:, 0] >= 0).sum()), i))
    return torch.from_numpy(np.concatenate(found))


def tokens_of_images(
    config: Any, batch: Batch, row: int, positions: Int[Tensor, " P"], sizes: Sequence[Mapping[str, Any]]
) -> list[int]:
    """Return how many placeholders each of a row's images has, newlines included.

    Raises:
        ModelError: they do not add up to those of the prompt.
    """
    family, n = config.model_type, len(positions)
    if "image_grid_thw" in sizes[0]:
        merge = config.vision_config.spatial_merge_size**2
        counts = [int(np.prod(size["image_grid_thw"])) // merge for size in sizes]
    elif family in ("internvl", *_TILED_RUNS):
        runs = _runs(positions)
        if family in _TILED_RUNS:  # the whole image comes last, and between it and the next stands no line break
            runs = _joined(runs, _starts(batch["input_ids"][row], positions, runs), len(sizes))
        counts = runs
    else:
        counts = [n // len(sizes)] * len(sizes)
    if len(counts) != len(sizes) or sum(counts) != n:
        raise ModelError(f"{family}: {n} image tokens do not divide among {len(sizes)} images as {counts}.")
    return counts


def _runs(positions: Tensor) -> list[int]:
    """Lengths of the runs of neighbouring positions."""
    breaks = (positions[1:] != positions[:-1] + 1).nonzero()[:, 0] + 1
    return [b - a for a, b in pairwise([0, *breaks.tolist(), len(positions)])]


def _starts(ids: Tensor, positions: Tensor, runs: Sequence[int]) -> list[int]:
    """The token before each run."""
    firsts = np.cumsum([0, *runs[:-1]])
    return [int(ids[int(positions[i]) - 1]) for i in firsts.tolist()]


def _joined(runs: Sequence[int], before: Sequence[int], n_images: int) -> list[int]:
    """Tokens of each image whose tiles are runs: the last run of the prompt is a whole image, and so are its like."""
    ends = [i + 1 for i, token in enumerate(before) if token == before[-1]]
    if len(ends) != n_images:
        return []
    return [sum(runs[a:b]) for a, b in pairwise([0, *ends])]


def _grid(config: Any, n: int, size: Mapping[str, Any]) -> Grid:
    """Places of one of several images' tokens on it."""
    if config.model_type == "llava_onevision":  # one tile each, and a newline
        side = config.vision_config.image_size // config.vision_config.patch_size
        return np.concatenate([tile_grid(side, side), np.full((1, 3), NOWHERE)])
    return placeholder_grid(config, n, size)


def _sizes(batch: Batch, image: int) -> dict[str, Any]:
    """What a processor reports of one image's size."""
    keys = ("image_sizes", "image_grid_thw", "image_grids")
    return {key: batch[key][image].tolist() for key in keys if key in batch and image < len(batch[key])}
