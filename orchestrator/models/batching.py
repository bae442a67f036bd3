"""Several prepared examples in one batch, padded so that each gives what it gives alone.

An example and a batch are plain dicts of tensors with a leading batch axis, so they pickle, move and shard without
this package. Besides the model's own inputs they hold `groups` int8 (B, S) and `vision_grid` int64 (B, V, 3), padded
with -1, and `n_images` int64 (B,) where prompts have several images. Sequences are padded on the left: the last
position is then the last token of every row, which is what generation continues from; positions are relative (rotary)
in every supported decoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from orchestrator.errors import ModelError

Batch = dict[str, Tensor]

SEQUENCE_PADDING = {
    "input_ids": 0,
    "attention_mask": 0,
    "labels": -100,
    "token_type_ids": 0,
    "mm_token_type_ids": 0,
    "cross_attention_mask": 0,
    "groups": -1,
}
"""Keys whose axis 1 is the sequence, with the value that pads them."""

PADDING = {"vision_grid": -1, "images": -1, "image_masks": -1, "image_input_idx": -100}
"""Values that pad the ends of other keys; zero where none is given. Those of Molmo are its own conventions."""

NOT_MODEL_INPUTS = ("groups", "vision_grid", "n_images", "n_encoder_rows", "keep", "keep_layer", "reduction")
"""Keys of a batch that describe it and are never passed to the model."""


def collate(examples: Sequence[Batch], pad_token_id: int = 0) -> Batch:
    """Return one batch of the examples, in order.

    Pixel tensors are joined along their first axis; where the others differ (tiles, crops, height) they are padded
    with zeros at the end, which every supported class recognises as padding.

    Raises:
        ModelError: if there are no examples, or they do not have the same keys.
    """
    if not examples:
        raise ModelError("collate: no examples; expected at least one.")
    keys = list(examples[0])
    for example in examples[1:]:
        if set(example) != set(keys):
            odd = sorted(set(example) ^ set(keys))
            raise ModelError(f"collate: examples differ in {odd}; batch those with an image and with an answer alike.")
    length = max(example["input_ids"].shape[1] for example in examples)
    batch: Batch = {}
    for key in keys:
        tensors = [example[key] for example in examples]
        if key == "image_token_pooling":
            batch[key] = _join_pooling(tensors, examples)
        elif key in SEQUENCE_PADDING:
            value = pad_token_id if key == "input_ids" else SEQUENCE_PADDING[key]
            batch[key] = join_padded([pad_left(tensor, length, value) for tensor in tensors])
        elif key == "image_input_idx":
            # These are places in the sequence, which moves with its padding.
            shifts = [length - example["input_ids"].shape[1] for example in examples]
            moved = [torch.where(t >= 0, t + shift, t) for t, shift in zip(tensors, shifts, strict=True)]
            batch[key] = join_padded(moved, PADDING[key])
        else:
            batch[key] = join_padded(tensors, PADDING.get(key, 0))
    return batch


def pad_left(tensor: Tensor, length: int, value: float) -> Tensor:
    """Return a (B, S, ...) tensor padded with `value` at the start of axis 1 to `length`."""
    return pad(tensor, [0, 0] * (tensor.ndim - 2) + [length - tensor.shape[1], 0], value=value)


def join_padded(tensors: Sequence[Tensor], value: float = 0) -> Tensor:
    """Return the tensors joined along axis 0, every other axis padded at its end to the longest."""
    shape = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        missing = [longest - size for longest, size in zip(shape, tensor.shape[1:], strict=True)]
        ends = [n for gap in reversed(missing) for n in (0, gap)]
        padded.append(pad(tensor, ends, value=value) if any(missing) else tensor)
    return torch.cat(padded)


def _join_pooling(pooling: Sequence[Tensor], examples: Sequence[Batch]) -> Tensor:
    """Join Molmo2's pooling indices, which count patches through the whole batch; -1 stays "no patch"."""
    offset, shifted = 0, []
    for indices, example in zip(pooling, examples, strict=True):
        shifted.append(torch.where(indices >= 0, indices + offset, indices))
        crops, patches = example["pixel_values"].shape[:2]
        offset += crops * patches
    return join_padded(shifted, value=-1)
