"""Models whose vision tokens stand in the decoder's sequence: all native classes but `mllama`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor, nn

from orchestrator.errors import ModelError
from orchestrator.models.adapter import Adapter
from orchestrator.models.batching import Batch
from orchestrator.models.block_shortening import BlockHook, late_deepstack
from orchestrator.models.groups import PADDING, VISION
from orchestrator.models.reduce_sequence import SequenceReduction
from orchestrator.models.reduction import reduction_of
from orchestrator.models.several import by_row, grid_of_row, image_of_tokens
from orchestrator.models.shortening import Shortening, shorten_decoder_inputs, shortening


class SequenceAdapter(Adapter):
    """Joint attention over image and text: the vision tokens' states are part of the residual stream."""

    vision_kind: ClassVar[Literal["residual", "cross_kv"]] = "residual"
    mask_name: ClassVar[str] = "attention_mask"
    """The keyword by which a decoder block is given its mask."""

    @property
    def entry(self) -> nn.Module:
        """The module that vision tokens enter merged with the text: as `inputs_embeds`, or as its first argument."""
        return self.decoder

    def cached_length(self, kwargs: dict[str, Any], layer: int) -> int:
        """Return how many tokens a block's cache holds, from the keywords it is called with."""
        cache = kwargs["cache"] if "cache" in kwargs else kwargs["past_key_values"]  # its name before transformers 5.24
        return int(cache.get_seq_length(layer))

    def groups(self, batch: Batch) -> Int8[Tensor, "B S"]:
        """Return the group of each position that enters the decoder, fillers as padding."""
        return self.groups_at(batch, 0)

    def groups_at(self, batch: Batch, layer: int) -> Int8[Tensor, "B S"]:
        """Return the groups at the input of a decoder layer, before which tokens may have left."""
        cut = self.cut_at(batch, layer)
        if cut is None:
            return self.full_groups(batch)
        return cut.tokens(self.full_groups(batch)).masked_fill(~cut.real, PADDING)

    def cut_at(self, batch: Batch, layer: int) -> Shortening | None:
        """Return which positions are left at the input of a decoder layer, on the CPU; `None` for all."""
        if (reduction := reduction_of(batch)) is not None:
            return reduction.cut_at(layer)
        return self.cut(batch) if "keep" in batch and layer >= int(batch["keep_layer"]) else None

    def cut(self, batch: Batch) -> Shortening | None:
        """Return which positions `drop` lets stay, on the CPU; `None` if nothing was dropped."""
        if "keep" not in batch:
            return None
        groups = self.full_groups(batch)
        kept = groups != PADDING
        for row, keep in enumerate(batch["keep"]):
            vision = (groups[row] == VISION).nonzero()[:, 0]
            kept[row, vision[~keep[: len(vision)]]] = False
        return shortening(kept)

    def key_mask(self, batch: Batch) -> Bool[Tensor, "B S"]:
        """Return which positions of the (shortened) prompt are real tokens."""
        return self.groups(batch) != PADDING

    def vision_grid(self, batch: Batch) -> list[Int[Tensor, "V 3"]]:
        """Return each image's vision tokens in sequence order as (row, column, tile)."""
        if "vision_grid" in batch:
            return [grid[grid[:, 0] >= 0] for grid in batch["vision_grid"]]
        return self._vision_grid(batch)

    def _vision_grid(self, batch: Batch) -> list[Int[Tensor, "V 3"]]:
        """The same of a batch as it was prepared, with no token deleted yet."""
        return [grid[grid[:, 0] >= 0] for _, grid in self._rows(batch)]

    def _vision_positions(self, batch: Batch) -> list[Int[Tensor, " V"]]:
        return [positions[grid[:, 0] >= 0] for positions, grid in self._rows(batch)]

    def _rows(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each row's placeholder positions and their places on the image."""
        for row, mask in enumerate(self.placeholders(batch)):
            positions = mask.nonzero()[:, 0]
            yield positions, grid_of_row(self.config, batch, row, positions)

    def image_of_tokens(self, batch: Batch) -> list[Int[Tensor, " V"]]:
        """Return which of its row's images, from 0, each vision token is of, in the order of `vision_grid`."""
        masks = self.placeholders(batch)
        return [image_of_tokens(self.config, batch, row, mask.nonzero()[:, 0]) for row, mask in enumerate(masks)]

    def encoder_states(self, hidden: Tensor, batch: Batch) -> tuple[Float[Tensor, "B N D"], Bool[Tensor, "B N"]]:
        """Return a vision block's states by image, in the encoder's own token order, and which are patches.

        Blocks see tiles (T, P, D), perhaps with a class token in front, or all patches in one row.
        """
        if hidden.ndim == 3 and hidden.shape[0] == 1 and "image_grid_thw" in batch:
            hidden = hidden[0]
        patches = torch.ones(hidden.shape[:-1], dtype=torch.bool, device=hidden.device)
        if hidden.ndim == 3:
            hidden, patches = self._tile_patches(hidden, patches, batch)
        sizes = self.encoder_rows(batch, hidden.shape[0])
        rows = [part.reshape(-1, hidden.shape[-1]) for part in hidden.split(sizes)]
        masks = [part.reshape(-1) for part in patches.split(sizes)]
        return nn.utils.rnn.pad_sequence(rows, True), nn.utils.rnn.pad_sequence(masks, True)

    def _tile_patches(self, hidden: Tensor, patches: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return tiles without their class token, and which of their patches are image rather than padding."""
        names = {name.rsplit(".", 1)[-1] for name, _ in self.model.get_encoder("image").named_parameters()}
        if names & {"class_embedding", "cls_token"}:
            hidden, patches = hidden[:, 1:], patches[:, 1:]
        if "pixel_attention_mask" in batch:
            size = self.config.vision_config.patch_size
            pixels = batch["pixel_attention_mask"].flatten(0, 1).to(hidden.device)
            pixels = pixels[batch["pixel_values"].flatten(0, 1).to(hidden.device).ne(0).any(dim=(1, 2, 3))]
            patches = pixels.unfold(1, size, size).unfold(2, size, size).flatten(-2).sum(-1).gt(0).flatten(1)
        return hidden, patches

    def encoder_rows(self, batch: Batch, n: int) -> list[int]:
        """Return how many of the encoder's `n` leading-axis rows each image has."""
        if "n_encoder_rows" in batch:
            return batch["n_encoder_rows"].tolist()
        if "image_grid_thw" in batch:
            return by_row(batch, batch["image_grid_thw"].prod(dim=1).tolist())
        if "image_num_crops" in batch:
            return batch["image_num_crops"].tolist()
        rows = batch["input_ids"].shape[0]
        if n % rows:
            raise ModelError(f"{n} vision tiles do not divide among {rows} images; make the batch with `collate`.")
        return [n // rows] * rows

    def forward_inputs(self, batch: Batch) -> dict[str, Any]:
        """Return the model's inputs, labels shortened like the logits will be."""
        inputs = super().forward_inputs(batch)
        cut = self.cut(batch)
        if cut is not None and "labels" in inputs:
            labels = cut.tokens(batch["labels"]).masked_fill(~cut.real, -100)
            inputs["labels"] = labels.to(self.device)
        return inputs

    @contextlib.contextmanager
    def deleting(self, batch: Batch) -> Iterator[None]:
        """Drop tokens at the decoder input, or at the input of later layers, inside the context."""
        if (reduction := reduction_of(batch)) is not None:
            groups, counts = self.full_groups(batch), self.n_vision(batch)
            door = self.entry is self.decoder
            hooks = SequenceReduction(reduction, groups, counts, self.layers, self.mask_name, door=door)
            with hooks.active(self.decoder, reduction.encoder_reading(self, batch)):
                yield
            return
        cut = self.cut(batch)
        if cut is None:
            yield
            return
        cut = cut.to(self.device)
        length, layer = batch["input_ids"].shape[1], int(batch["keep_layer"])
        with contextlib.ExitStack() as stack:
            if layer == 0:
                hook = _DoorHook(cut, length)
                stack.callback(self.decoder.register_forward_pre_hook(hook, with_kwargs=True).remove)
            else:
                self.shorten_blocks(stack, cut, length, layer)
                stack.enter_context(late_deepstack(self.decoder, lambda: cut))
            yield

    def shorten_blocks(self, stack: contextlib.ExitStack, cut: Shortening, length: int, layer: int) -> None:
        """Shorten what the decoder blocks from `layer` on are called with, until `stack` closes."""
        for i, module in enumerate(self.layers[layer:]):
            hook = BlockHook(cut, length, self.mask_name, entry=i == 0, first=layer == 0)
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)


class _DoorHook:
    """Shorten all the decoder is called with; decoding steps pass through unchanged."""

    def __init__(self, cut: Shortening, length: int) -> None:
        self.cut, self.length = cut, length

    def __call__(self, decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        if kwargs["inputs_embeds"].shape[1] != self.length:
            return None
        return args, shorten_decoder_inputs(kwargs, self.cut)
