"""What a choice of visual tokens can be made from. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

Need = Literal["text", "attention", "own_attention", "keys", "encoder", "encoder_last", "full_pass"]
"""Beside the visual states at the depth, which are always there.

`text`: states of the question's tokens. `attention`: weights of the last layer before the depth that attends to the
image. `own_attention`: those of the layer at the depth itself, whose queries and keys are then computed twice. `keys`:
the keys of that layer. `encoder`: attention and keys of the vision encoder's block whose output is projected;
`encoder_last`: of its last block. `full_pass`: attention of all layers, in a pass of its own before."""

ENCODERS = ("llava", "llava_next", "paligemma", "gemma3", "internvl", "smolvlm", "idefics3", "qwen3_vl", "mllama")
"""Families whose patches are followed from the vision encoder to their visual tokens."""
FUSED = ("molmo",)
"""Families whose blocks compute attention in a way that cannot be read."""


def cannot_have(needs: Iterable[Need], model_type: str) -> str:
    """Return why a model of a type does not give what is needed; empty where it does."""
    needed = set(needs)
    if needed & {"attention", "own_attention", "keys", "full_pass"} and model_type in FUSED:
        return "the decoder's attention, which its fused blocks do not return"
    if needed & {"encoder", "encoder_last"} and model_type not in ENCODERS:
        return "the vision encoder's attention, whose patches are not followed to visual tokens for this family"
    if "text" in needed and model_type == "mllama":
        return "text and visual states in one space, which a model with cross-attention does not have"
    return ""
