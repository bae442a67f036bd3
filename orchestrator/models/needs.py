"""Inputs of token selection methods. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

Need = Literal["text", "attention", "own_attention", "keys", "encoder", "encoder_last", "full_pass"]
"""Inputs besides the visual states at the depth, which are always available.

`text`: states of the question's tokens. `attention`: weights of the last layer before the depth that attends to the
image. `own_attention`: those of the layer at the depth itself, whose queries and keys are then computed twice. `keys`:
keys of that layer. `encoder`: attention and keys of the vision encoder's block whose output is projected;
`encoder_last`: of its last block. `full_pass`: attention of all layers, in a separate earlier pass."""

ENCODERS = ("llava", "llava_next", "paligemma", "gemma3", "internvl", "smolvlm", "idefics3", "qwen3_vl", "mllama")
"""Families with a known mapping from encoder patches to visual tokens."""
FUSED = ("molmo",)
"""Families whose attention weights cannot be read."""


def cannot_have(needs: Iterable[Need], model_type: str) -> str:
    """Return why a model type does not provide the needed inputs; empty if it does."""
    needed = set(needs)
    if needed & {"attention", "own_attention", "keys", "full_pass"} and model_type in FUSED:
        return "the decoder's attention, which its fused blocks do not return"
    if needed & {"encoder", "encoder_last"} and model_type not in ENCODERS:
        return "the vision encoder's attention, as the mapping of patches to visual tokens is unknown for this family"
    if "text" in needed and model_type == "mllama":
        return "text and visual states in one space, which a model with cross-attention does not have"
    return ""
