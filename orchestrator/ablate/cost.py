"""Floating-point operations of a decoder's pass over a prompt with visual tokens deleted at given depths."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.ablate.selectors.entries import DOWNSAMPLE
from orchestrator.ablate.selectors.kinds import Sizes
from orchestrator.ablate.selectors.registry import get_selector
from orchestrator.models.adapter import Adapter
from orchestrator.models.cross_attention import CrossAttentionAdapter

Stages = Sequence[tuple[int, int]]
"""(depth, visual tokens left from there on), ascending; empty if none are deleted."""


def decoder_flops(adapter: Adapter, n_text: int, n_vision: int, stages: Stages = ()) -> float:
    """Operations of one prompt: 2 a weight and token in the linear maps, 4 N M D in attention of N tokens to M.

    Args:
        n_text: tokens that are not visual.
        n_vision: visual tokens of the image.
        stages: where tokens are deleted; depth 0 is before the decoder.
    """
    width = adapter.hidden_size
    cross = adapter.cross_layers if isinstance(adapter, CrossAttentionAdapter) else []
    total = 0.0
    for i, block in enumerate(adapter.layers):
        vision = n_present(n_vision, stages, i)
        weights = sum(p.numel() for p in block.parameters() if p.ndim == 2)
        if i not in cross:
            n = n_text + (0 if cross else vision)
            total += 2.0 * weights * n + 4.0 * n * n * width
        elif vision:  # keys and values are made of visual tokens, everything else of text; without any it is skipped
            read = sum(p.numel() for name, p in block.named_parameters() if "k_proj" in name or "v_proj" in name)
            total += 2.0 * (read * vision + (weights - read) * n_text) + 4.0 * n_text * vision * width
    return total


def n_present(n_vision: int, stages: Stages, layer: int) -> int:
    """Number of visual tokens that a layer reads."""
    return next((left for depth, left in reversed(stages) if depth <= layer), n_vision)


def selection_flops(
    adapter: Adapter, method: str, n_text: int, n_vision: int, n_question: int, stages: Stages
) -> float:
    """Operations of selecting and merging tokens, beyond the forward pass itself.

    States and attention of earlier layers are free. Attention over all layers costs one more forward pass; a layer's
    own attention costs its query, key and value projections a second time. Keeping all tokens or none costs nothing.
    """
    if method == DOWNSAMPLE:
        return 0.0
    selector, total, present = get_selector(method), 0.0, n_vision
    for depth, left in stages:
        if not 0 < left < present:
            present = min(present, left)
            continue
        total += selector.operations(Sizes(present, adapter.hidden_size, left, n_question))
        needs = selector.needs_at(depth)
        if "full_pass" in needs:
            total += decoder_flops(adapter, n_text, n_vision)
        if "own_attention" in needs:
            total += _projections(adapter, depth, n_text, present)
        present = left
    return total


def _projections(adapter: Adapter, depth: int, n_text: int, n_vision: int) -> float:
    """Operations of the queries, keys and values of the first layer from `depth` on that reads the image."""
    cross = adapter.cross_layers if isinstance(adapter, CrossAttentionAdapter) else []
    layer = next((i for i in cross if i >= depth), None) if cross else depth
    if layer is None:
        return 0.0
    sizes = {"q_proj": n_text, "k_proj": n_vision, "v_proj": n_vision}
    if not cross:
        sizes = dict.fromkeys(("q_proj", "k_proj", "v_proj", "qkv_proj", "att_proj"), n_text + n_vision)
    parameters = adapter.layers[layer].named_parameters()
    return sum(
        2.0 * p.numel() * n for name, p in parameters if p.ndim == 2 for key, n in sizes.items() if f"{key}." in name
    )
