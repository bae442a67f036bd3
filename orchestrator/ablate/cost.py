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
        if i not in cross:
            n = n_text + (0 if cross else vision)
            total += 2.0 * weights * n + 4.0 * n * n * width
        elif vision:  # keys and values are made of visual tokens, everything else of text; without any it is skipped
            read = sum(p.numel() for name, p in block.named_parameters() if "k_proj" in name or "v_proj" in name)
            total += 2.0 * (read * vision + (weights - read) * n_text) + 4.0 * n_text * vision * width
    return total


def selection_flops(adapter: Adapter, method: str, n_text: int, n_vision: int, layer: int) -> float:
    """Operations of scoring the tokens, beyond the pass that answers.

    States and the last layer's attention come with that pass; attention over all layers takes a whole pass more.
    """
    width = adapter.hidden_size
    if method == "attention":
        return decoder_flops(adapter, n_text, n_vision, n_vision) if layer == 0 else 0.0
    if method == "leverage":  # Gram matrix of the smaller side, its eigenvectors (Golub and Van Loan 2013, section 8.3)
        return 2.0 * n_vision * width * min(n_vision, width) + 9.0 * min(n_vision, width) ** 3
    return {"norm": 2.0, "similarity": 6.0}.get(method, 0.0) * n_vision * width
