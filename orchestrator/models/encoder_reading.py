"""Attention of the vision encoder, carried from its patches to the visual tokens made of them.

A token made of several patches has the mean of their attention and of their keys.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from orchestrator.errors import ModelError
from orchestrator.models.adapter import Adapter
from orchestrator.models.batching import Batch
from orchestrator.models.cross_attention import CrossAttentionAdapter
from orchestrator.models.reading import Heads, Reader, attention_module
from orchestrator.models.sequence import SequenceAdapter
from orchestrator.models.several import by_row

Found = list[tuple[Tensor, Tensor]]
"""Of each image: attention (V,) and keys (V, E) of its tokens."""


class EncoderReading:
    """Reads one block of the vision encoder during a pass; `found` gives what it saw, by image.

    Args:
        last: the last block; else the one whose output is projected.
    """

    def __init__(self, adapter: Adapter, batch: Batch, *, last: bool) -> None:
        self.adapter, self.batch = adapter, batch
        blocks = adapter.encoder_layers
        self.module = attention_module(blocks[-1 if last else projected_block(adapter.config, len(blocks))])
        self._calls: list[Tensor] = []
        self.seconds = 0.0
        """Time of reading, s."""

    def readers(self) -> dict[nn.Module, Reader]:
        """Return what `attention_read` takes."""
        self._calls, self.seconds = [], 0.0
        return {self.module: self._read}

    def _read(self, heads: Heads) -> None:
        started = time.perf_counter()
        if isinstance(self.adapter, CrossAttentionAdapter):
            attention = self._tile_classes(heads)
        elif has_class_token(self.adapter):
            first = torch.zeros(len(heads.query), 1, dtype=torch.long)
            attention = heads.weights(first)[:, 0]
        else:
            attention = heads.weights().mean(dim=1)
        self._calls.append(torch.cat([attention[..., None], heads.mean_keys.float()], dim=-1).cpu())
        self.seconds += time.perf_counter() - started

    def _tile_classes(self, heads: Heads) -> Float[Tensor, "B S"]:
        """Mean attention of the class tokens of an image's real tiles."""
        tiles = self.batch["aspect_ratio_mask"].flatten(1).bool()
        stride = heads.query.shape[2] // tiles.shape[1]
        rows = (torch.arange(tiles.shape[1]) * stride).expand(len(tiles), -1)
        weights = heads.weights(rows)
        share = (tiles / tiles.sum(dim=1, keepdim=True)).to(weights.device)
        return torch.einsum("brs,br->bs", weights, share)

    def found(self) -> Found:
        """Return attention and keys of each image's visual tokens, in the order of `vision_grid`."""
        if isinstance(self.adapter, CrossAttentionAdapter):
            rows = self._across(self._calls[0], self.adapter)
        else:
            rows = self._by_image()
        return [(row[:, 0], row[:, 1:]) for row in rows]

    def _across(self, values: Tensor, adapter: CrossAttentionAdapter) -> list[Tensor]:
        tiles = self.batch["aspect_ratio_mask"].flatten(1).bool()
        per_tile = values.reshape(*tiles.shape, -1, values.shape[-1])[:, :, : adapter.tokens_per_tile].clone()
        per_tile[:, :, 0, 0] = float("inf")  # a tile's class token is one of its visual tokens
        return [row[real].flatten(0, 1) for row, real in zip(per_tile, tiles, strict=True)]

    def _by_image(self) -> list[Tensor]:
        adapter, batch = self.adapter, self.batch
        assert isinstance(adapter, SequenceAdapter)
        if "image_grid_thw" in batch:  # one call an image or window, of one packed row
            values = torch.cat([call.flatten(0, 1) for call in self._calls])
            sizes = by_row(batch, batch["image_grid_thw"].prod(dim=1).tolist())
        else:
            values = torch.cat(self._calls)[:, int(has_class_token(adapter)) :]
            sizes = adapter.encoder_rows(batch, len(values))
        grids = adapter.vision_grid(batch)
        rows = []
        for row, (part, grid) in enumerate(zip(values.split(sizes), grids, strict=True)):
            rows.append(
                to_tokens(adapter.config, part, grid, {k: v[row] for k, v in batch.items() if k == "image_sizes"})
            )
        return rows


def has_class_token(adapter: Adapter) -> bool:
    """Return whether the vision encoder puts a class token before its patches."""
    names = {name.rsplit(".", 1)[-1] for name, _ in adapter.model.get_encoder("image").named_parameters()}
    return bool(names & {"class_embedding", "cls_token"})


def projected_block(config: Any, n_blocks: int) -> int:
    """Return the number of the encoder's block whose output is projected; of several, the last.

    >>> from types import SimpleNamespace
    >>> projected_block(SimpleNamespace(vision_feature_layer=-2), 24)
    22
    """
    layer = getattr(config, "vision_feature_layer", None)
    if isinstance(layer, (list, tuple)):
        layer = max(i % (n_blocks + 1) for i in layer)
    if layer is None or config.model_type == "mllama":
        return n_blocks - 1
    return max(0, layer % (n_blocks + 1) - 1)


def to_tokens(config: Any, values: Tensor, grid: Int[Tensor, "V 3"], sizes: dict[str, Tensor]) -> Float[Tensor, "V C"]:
    """Return the mean value of the patches that each visual token is made of.

    Args:
        values: (tiles, patches, C), or (patches, C) of a model whose tiles are packed.
        grid: (row, column, tile) of each token.
    """
    n_tokens = len(grid)
    rule: Callable[..., Tensor] = _UNPACKED.get(config.model_type, _square_blocks)
    found = rule(config, values, grid, sizes)
    if len(found) != n_tokens:
        raise ModelError(
            f"{config.model_type}: {tuple(values.shape[:-1])} patches do not make {n_tokens} visual tokens in a way"
            " that is known here; choose a method that does not read the vision encoder's attention."
        )
    return found


def _square_blocks(_: Any, values: Tensor, grid: Tensor, __: Any) -> Tensor:
    """Tiles in order, each token one square block of its tile's patches, row by row."""
    tiles, patches, width = values.shape
    per_tile, left = divmod(len(grid), tiles)
    side, wanted = math.isqrt(patches), math.isqrt(per_tile)
    if left or side * side != patches or not wanted or wanted * wanted != per_tile or side % wanted:
        return values[:0, 0]
    step = side // wanted
    blocks = values.reshape(tiles, wanted, step, wanted, step, width)
    return blocks.mean(dim=(2, 4)).reshape(-1, width)


def _consecutive(config: Any, values: Tensor, *_: Any) -> Tensor:
    """Patches in the order in which the merger joins them."""
    return values.unflatten(0, (-1, config.vision_config.spatial_merge_size**2)).mean(dim=1)


def _unpadded(config: Any, values: Tensor, grid: Tensor, sizes: dict[str, Tensor]) -> Tensor:
    """LLaVA-NeXT: a base tile, then the tiles of a larger picture, of which the padding is cut off."""
    from transformers.image_processing_utils import select_best_resolution

    side = config.vision_config.image_size // config.vision_config.patch_size
    height, width = select_best_resolution(tuple(sizes["image_sizes"].tolist()), config.image_grid_pinpoints)
    rows, cols = height // config.vision_config.image_size * side, width // config.vision_config.image_size * side
    inside = grid[:, 2] > 0
    shown = (grid[inside, :2].max(dim=0).values + 1).tolist()
    row, col = grid[:, 0] + (rows - shown[0]) // 2 * inside, grid[:, 1] + (cols - shown[1]) // 2 * inside
    tile = inside * (1 + row // side * (cols // side) + col // side)
    return values[tile, row % side * side + col % side]


_UNPACKED: dict[str, Callable[..., Tensor]] = {"qwen3_vl": _consecutive, "llava_next": _unpadded}
