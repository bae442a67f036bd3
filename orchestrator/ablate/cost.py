"""Floating-point operations of a decoder's pass over a prompt, with visual tokens deleted part of the way up."""

from __future__ import annotations

from orchestrator.models.adapter import Adapter
from orchestrator.models.cross_attention import CrossAttentionAdapter


def decoder_flops(adapter: Adapter, n_text: int, n_vision: int, n_kept: int, layer: int = 0) -> float:
    """Operations of one prompt: 2 a weight and token in the linear maps, 4 N M D in attention of N tokens to M.

    Args:
        n_text: tokens that are not visual.
        n_vision: visual tokens of the image.
        n_kept: visual tokens left from decoder layer `layer` on; 0 for before the decoder.
    """
    width = adapter.hidden_size
    cross = adapter.cross_layers if isinstance(adapter, CrossAttentionAdapter) else []
    total = 0.0
    for i, block in enumerate(adapter.layers):
        vision = n_vision if i < layer else n_kept
        weights = sum(p.numel() for p in block.parameters() if p.ndim == 2)
        if i in cross:  # keys and values are made of visual tokens, everything else of text
            read = sum(p.numel() for name, p in block.named_parameters() if "k_proj" in name or "v_proj" in name)
            total += 2.0 * (read * vision + (weights - read) * n_text) + 4.0 * n_text * vision * width
        else:
            n = n_text + (0 if cross else vision)
            total += 2.0 * weights * n + 4.0 * n * n * width
    return total
