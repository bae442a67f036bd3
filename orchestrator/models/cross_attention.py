"""`mllama` (Llama-3.2-Vision): vision tokens are not part of the sequence; some decoder layers cross-attend to them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor, nn

from orchestrator.models.adapter import Adapter
from orchestrator.models.batching import Batch
from orchestrator.models.geometry import NOWHERE, tile_grid
from orchestrator.models.groups import PADDING
from orchestrator.models.reduce_across import AcrossReduction
from orchestrator.models.reduction import reduction_of
from orchestrator.models.shortening import Shortening, shortening


class CrossAttentionAdapter(Adapter):
    """Cross-attention from text to vision states, which are the same for every cross-attention layer.

    An image's vision tokens are those of its real tiles: for each tile its class token, then its patches.
    """

    vision_kind: ClassVar[Literal["residual", "cross_kv"]] = "cross_kv"

    @property
    def cross_layers(self) -> list[int]:
        """Indices of the decoder layers that attend to the image."""
        return list(self.config.text_config.cross_attention_layers)

    @property
    def tokens_per_tile(self) -> int:
        """Vision tokens of one tile, its class token included."""
        vision = self.config.vision_config
        return int((vision.image_size // vision.patch_size) ** 2 + 1)

    def vision_mask(self, batch: Batch) -> Bool[Tensor, "B N"]:
        """Return a mask of visual content (not padding) over the N = images x tiles x tokens cross-attended states."""
        tiles = batch["aspect_ratio_mask"].bool().flatten(1)
        return tiles.repeat_interleave(self.tokens_per_tile, dim=1)

    def vision_mask_at(self, batch: Batch, layer: int) -> Bool[Tensor, "B N"]:
        """Return a mask of visual content over the states that a cross-attention layer reads, after any deletion."""
        cut, vision = self.cut_at(batch, layer), self.vision_mask(batch)
        return vision if cut is None else cut.tokens(vision) & cut.real

    @property
    def projector(self) -> nn.Module:
        """The module from the vision encoder's width to the decoder's."""
        return self.model.model.multi_modal_projector

    def encoder_states(self, hidden: Tensor, batch: Batch) -> tuple[Float[Tensor, "B N D"], Bool[Tensor, "B N"]]:
        """Return a vision block's states by image; patches are those of real tiles, class tokens left out."""
        tiles = batch["aspect_ratio_mask"].bool().flatten(1).to(hidden.device)
        states = hidden.reshape(*tiles.shape, -1, hidden.shape[-1])
        # Blocks see each tile as class token, patches, then padding to a multiple of eight.
        place = torch.arange(states.shape[2], device=hidden.device)
        patch = (place > 0) & (place < self.tokens_per_tile)
        return states.flatten(1, 2), (tiles[:, :, None] & patch).flatten(1)

    def groups(self, batch: Batch) -> Int8[Tensor, "B S"]:
        """Return the groups; no position of the sequence is visual content."""
        return self.full_groups(batch)

    def groups_at(self, batch: Batch, layer: int) -> Int8[Tensor, "B S"]:
        """Return the groups at the input of a decoder layer: the same everywhere."""
        return self.full_groups(batch)

    def key_mask(self, batch: Batch) -> Bool[Tensor, "B S"]:
        """Return a mask of the prompt's tokens that are no padding."""
        return self.full_groups(batch) != PADDING

    def _vision_positions(self, batch: Batch) -> list[Int[Tensor, " V"]]:
        return [torch.zeros(0, dtype=torch.long) for _ in batch["input_ids"]]

    def vision_grid(self, batch: Batch) -> list[Int[Tensor, "V 3"]]:
        """Return (row, column, tile) of each image's vision tokens; a tile's class token has row and column -1."""
        if "aspect_ratio_mask" not in batch:
            return [torch.zeros(0, 3, dtype=torch.long) for _ in batch["input_ids"]]
        vision = self.config.vision_config
        side = vision.image_size // vision.patch_size
        grids = []
        for tiles in batch["aspect_ratio_mask"].flatten(1).sum(dim=1).tolist():
            parts = [np.zeros((0, 3), dtype=np.int64)]
            for tile in range(int(tiles)):
                parts += [np.array([[NOWHERE, NOWHERE, tile]]), tile_grid(side, side, tile)]
            grids.append(torch.from_numpy(np.concatenate(parts)))
        return grids

    def step_inputs(self, batch: Batch) -> dict[str, Any]:
        """Return the row of the cross-attention mask that generated tokens inherit from the prompt's last."""
        if "cross_attention_mask" not in batch:
            return {}
        return {"cross_attention_mask": self.model_inputs(batch)["cross_attention_mask"][:, -1:]}

    def cut_at(self, batch: Batch, layer: int) -> Shortening | None:
        """Return a mask of the cross-attended states that remain for a layer, on the CPU; `None` for all."""
        if (reduction := reduction_of(batch)) is not None:
            return reduction.cut_at(layer)
        return self.cut(batch) if "keep" in batch and layer >= int(batch["keep_layer"]) else None

    def cut(self, batch: Batch) -> Shortening | None:
        """Return a mask of the cross-attended states that `drop` keeps, on the CPU; `None` if nothing was dropped.

        Padding tiles are kept: tokens before the image, which see no tile, attend uniformly to all states, padding
        included.
        """
        if "keep" not in batch:
            return None
        vision = self.vision_mask(batch)
        kept = torch.ones_like(vision)
        for row, keep in enumerate(batch["keep"]):
            places = vision[row].nonzero()[:, 0]
            kept[row, places[~keep[: len(places)]]] = False
        return shortening(kept)

    @contextlib.contextmanager
    def deleting(self, batch: Batch) -> Iterator[None]:
        """Restrict the cross-attention layers (from `keep_layer` on) to the kept vision tokens."""
        if (reduction := reduction_of(batch)) is not None:
            vision = self.vision_mask(batch)
            hooks = AcrossReduction(reduction, self.full_groups(batch), vision, self.layers, self.cross_layers)
            with hooks.active(reduction.encoder_reading(self, batch)):
                yield
            return
        cut = self.cut(batch)
        if cut is None:
            yield
            return
        cut = cut.to(self.device)
        sees = batch["keep"].any(dim=1).to(self.device)
        with contextlib.ExitStack() as stack:
            for i in self.cross_layers:
                if i >= int(batch["keep_layer"]):
                    block = self.layers[i]
                    stack.callback(block.register_forward_pre_hook(_CrossHook(cut), with_kwargs=True).remove)
                    stack.callback(block.register_forward_hook(_SkipBlindRows(sees), with_kwargs=True).remove)
            yield


class _CrossHook:
    """Pass only the kept states, and a matching mask, to a cross-attention layer."""

    def __init__(self, cut: Shortening) -> None:
        self.cut = cut

    def __call__(self, block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        kwargs = dict(kwargs)
        states = kwargs.get("cross_attention_states")
        self.cut = self.cut.to((args[0] if args else kwargs["hidden_states"]).device)
        rows = self.cut.index.shape[0]
        if states is not None:
            kwargs["cross_attention_states"] = self.cut.tokens(states.reshape(rows, -1, states.shape[-1]))
        mask = kwargs.get("cross_attention_mask")
        if mask is None:
            hidden = args[0] if args else kwargs["hidden_states"]
            mask = hidden.new_zeros(rows, 1, hidden.shape[1], self.cut.index.shape[1])
        else:
            index = self.cut.index[:, None, None, :].expand(-1, 1, mask.shape[2], -1)
            mask = mask.gather(3, index)
        lowest = torch.finfo(mask.dtype).min
        kwargs["cross_attention_mask"] = mask.masked_fill(~self.cut.real[:, None, None, :], lowest)
        return args, kwargs


class _SkipBlindRows:
    """Undo a cross-attention layer for rows that keep no vision token: it is skipped for a prompt without an image."""

    def __init__(self, sees: Bool[Tensor, " B"]) -> None:
        self.sees = sees[:, None, None]

    def __call__(self, block: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return torch.where(self.sees.to(output.device), output, hidden)
