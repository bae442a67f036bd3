"""Attention of the question's tokens and of the prompt's last token to each visual token, at chosen layers.

Weights are those of the model's forward pass: computed only for these queries and in the requested layers, in addition
to the kernel that computes the output. Shapes: B rows, V visual tokens, R queries, S keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from orchestrator.errors import ModelError
from orchestrator.models.adapter import Adapter
from orchestrator.models.batching import Batch
from orchestrator.models.cross_attention import CrossAttentionAdapter
from orchestrator.models.groups import TEXT
from orchestrator.models.interventions import vision_mask
from orchestrator.models.reading import Heads, attention_module, attention_read, padded_rows

TARGETS = ("question", "last")


@dataclass(frozen=True)
class LayerAttention:
    """Attention of one layer to each image, mean over heads, and over tokens where the target is `question`.

    Weights are normalised over all keys of a query: a row sums to its attention to the image.
    """

    question: Float[Tensor, "B V"]
    last: Float[Tensor, "B V"]

    def of(self, target: str) -> Float[Tensor, "B V"]:
        """Return the weights of a target, `question` or `last`."""
        return self.question if target == "question" else self.last


def reading_layers(adapter: Adapter) -> list[int]:
    """Return the decoder layers that attend to the image."""
    return adapter.cross_layers if isinstance(adapter, CrossAttentionAdapter) else list(range(adapter.n_layers))


@torch.no_grad()
def attention_maps(adapter: Adapter, batch: Batch, layers: Sequence[int]) -> dict[int, LayerAttention]:
    """Return the attention to the image at some layers, in one pass.

    Raises:
        ModelError: a layer does not attend to the image, or its attention cannot be read.
    """
    available = reading_layers(adapter)
    if wrong := [layer for layer in layers if layer not in available]:
        raise ModelError(f"attention_maps: layers {wrong}; those that attend to the image are {available}.")
    groups, is_vision = adapter.groups(batch), vision_mask(adapter, batch, 0)
    rows, real = padded_rows([(row == TEXT).nonzero()[:, 0] for row in groups])
    queries = torch.cat([rows, torch.full_like(rows[:, :1], groups.shape[1] - 1)], dim=1)
    share = real / real.sum(dim=1, keepdim=True).clamp(min=1)
    maps: dict[int, LayerAttention] = {}

    def reader(layer: int) -> None:
        def note(heads: Heads) -> None:
            weights = heads.weights(queries).cpu()
            question = torch.einsum("brs,br->bs", weights[:, :-1], share)
            maps[layer] = LayerAttention(*(_of_image(part, is_vision) for part in (question, weights[:, -1])))

        readers[attention_module(adapter.layers[layer])] = note

    readers: dict = {}
    for layer in layers:
        reader(layer)
    with attention_read(readers):
        adapter.run(batch, logits_to_keep=1)
    return {layer: maps[layer] for layer in layers}


def _of_image(weights: Float[Tensor, "B S"], is_vision: Tensor) -> Float[Tensor, "B V"]:
    rows = [row[mask] for row, mask in zip(weights, is_vision, strict=True)]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
