"""A model's stacks of blocks by its config: sizes, multiply-adds and bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orchestrator.config import ModelConfig
from orchestrator.models.catalogue import Entry
from orchestrator.models.visual_tokens import VisionLoad

TEXT_TOKENS = 64
"""Tokens of template and question that a plan assumes."""
MOLMO_VISION = {"layers": 23, "width": 1024, "mlp": 4096}
"""CLIP ViT-L/14 at 336 px without its last block; Molmo's config file does not hold its vision encoder."""


@dataclass(frozen=True)
class Stack:
    """One stack of transformer blocks: its weights count `per_layer` multiply-adds a token."""

    layers: int
    width: int
    query: int
    key: int
    mlp: int
    per_layer: int

    def flops(self, sequences: int, length: int, *, causal: bool) -> float:
        """Return the operations of one pass over `sequences` of `length` tokens."""
        attention = (2 if causal else 4) * length**2 * self.query
        return float(self.layers * sequences * (2 * length * self.per_layer + attention))

    def working_bytes(self, tokens: int, size: int) -> int:
        """Return the bytes one block holds at a time: stream, attention and the widest of the MLP."""
        return tokens * size * (4 * self.width + 2 * self.query + 2 * self.key + 2 * self.mlp)


def decoder_stack(config: Any) -> Stack:
    """Return the decoder's blocks; of a mixture of experts, those active for a token."""
    if config.model_type == "molmo":
        width, heads = config.hidden_size, config.num_attention_heads
        key = width // heads * (config.num_key_value_heads or heads)
        # Its `intermediate_size` counts gate and value together.
        mlp = config.intermediate_size // 2 * getattr(config, "moe_top_k", 1)
        return _stack(config.num_hidden_layers, width, width, key, mlp, gated=True)
    text = config.get_text_config()
    heads = text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    key = head * (getattr(text, "num_key_value_heads", None) or heads)
    return _stack(text.num_hidden_layers, text.hidden_size, head * heads, key, text.intermediate_size, gated=True)


def vision_stack(config: Any) -> Stack:
    """Return the vision encoder's blocks."""
    if config.model_type == "molmo":
        width = MOLMO_VISION["width"]
        return _stack(MOLMO_VISION["layers"], width, width, width, MOLMO_VISION["mlp"], gated=False)
    vision = config.vision_config
    layers = getattr(vision, "num_hidden_layers", None) or vision.depth
    layers += getattr(vision, "num_global_layers", 0)
    width = vision.hidden_size
    gated = config.model_type == "qwen2_5_vl"
    return _stack(layers, width, width, width, vision.intermediate_size, gated=gated)


def _stack(layers: int, width: int, query: int, key: int, mlp: int, *, gated: bool) -> Stack:
    weights = 2 * width * query + 2 * width * key + (3 if gated else 2) * width * mlp
    return Stack(layers, width, query, key, mlp, weights)


def cross_layers(config: Any) -> list[int]:
    """Return the decoder layers that attend to vision states across; none in residual models."""
    return list(config.text_config.cross_attention_layers) if config.model_type == "mllama" else []


def cross_flops(config: Any, decoder: Stack, load: VisionLoad) -> float:
    """Return the operations of projecting vision states to keys and values, and of attending to them."""
    n = len(cross_layers(config))
    if n == 0:
        return 0.0
    projector = 2 * load.tokens * config.vision_config.vision_output_dim * decoder.width
    keys = 2 * load.tokens * 2 * decoder.width * decoder.key
    return float(projector + n * (keys + 4 * TEXT_TOKENS * load.tokens * decoder.query))


def weight_bytes(model: ModelConfig, entry: Entry) -> int:
    """Return the bytes of one weight; `auto` counts as bfloat16 but for small models, which run on a CPU."""
    if model.dtype == "auto":
        return 4 if entry.parameters is not None and entry.parameters < 0.1 else 2
    return 4 if model.dtype == "float32" else 2


def n_parameters(entry: Entry, config: Any, decoder: Stack, vision: Stack) -> float:
    """Return the number of parameters: published, or counted from the blocks and the embeddings."""
    if entry.parameters is not None:
        return entry.parameters * 1e9
    text = config if config.model_type == "molmo" else config.get_text_config()
    tables = 1 if getattr(config, "tie_word_embeddings", False) else 2
    blocks = decoder.layers * decoder.per_layer + vision.layers * vision.per_layer
    return float(blocks + tables * text.vocab_size * decoder.width)
