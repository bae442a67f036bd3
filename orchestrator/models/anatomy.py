"""Finds the parts of a vision-language model by generic rules: decoder blocks, vision blocks, projector.

The rules hold for all native classes listed in `docs/models.md`; for any other class an error names the missing
module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

from orchestrator.errors import ModelError, did_you_mean
from orchestrator.models.decoder_config import text_config

PROJECTOR_NAMES = (
    "multi_modal_projector",
    "connector",
    "visual.merger",
    "visual.deepstack_merger_list",
    "image_newline",
    "vision_backbone.image_pooling_2d",
    "vision_backbone.image_projector",
)
VISION_NAMES = ("vision_tower", "visual", "vision_model", "vision_backbone")

Part = Literal["vision", "projector", "language"]


def decoder_layers(decoder: nn.Module) -> list[nn.Module]:
    """Return the decoder's blocks, in order."""
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ModelError(f"{type(decoder).__name__}: no list of blocks at `layers`; the class needs its own adapter.")
    return list(layers)


def final_norm(decoder: nn.Module) -> nn.Module:
    """Return the norm after the decoder's last block."""
    for name in ("norm", "final_layernorm", "ln_f"):
        if isinstance(norm := getattr(decoder, name, None), nn.Module):
            return norm
    raise ModelError(f"{type(decoder).__name__}: no final norm found; the class needs its own adapter.")


def encoder_layers(encoder: nn.Module) -> list[nn.Module]:
    """Return the vision encoder's blocks in order of execution: all module lists whose items contain an attention
    module."""
    blocks: list[nn.Module] = []
    for module in encoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) and all(_has_attention(item) for item in module):
            blocks.extend(module)
    if not blocks:
        raise ModelError(f"{type(encoder).__name__}: no blocks with attention found in the vision encoder.")
    return blocks


def _has_attention(block: nn.Module) -> bool:
    return any("attn" in name or "attention" in name for name, _ in block.named_children())


def parameter_groups(model: nn.Module) -> dict[str, list[str]]:
    """Return the top module (or bare parameter) names of the parts `vision`, `projector`, `language`.

    The projector of the Qwen family is inside its vision encoder: test a name for `projector` first, as `group_of`
    does.
    """
    names = [name for name, _ in model.named_modules()] + [name for name, _ in model.named_parameters()]
    projector = [name for name in names if _ends(name, PROJECTOR_NAMES)]
    vision = [name for name in names if _ends(name, VISION_NAMES)]
    tops = [name for name in vision if not any(name.startswith(other + ".") for other in vision)]
    outside = [*tops, *projector]
    language = []
    for name, child in _leaves_of_interest(model):
        if name not in outside and next(child.parameters(), None) is not None:
            language.append(name)
    return {"vision": tops, "projector": projector, "language": language}


def _ends(name: str, endings: Sequence[str]) -> bool:
    return any(name == ending or name.endswith("." + ending) for ending in endings)


def _leaves_of_interest(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the children of the model, and those of its inner `model`, which contains the parts."""
    modules = []
    for name, child in model.named_children():
        if name == "model":
            modules += [(f"model.{inner}", module) for inner, module in child.named_children()]
        else:
            modules.append((name, child))
    return modules


def group_of(name: str, groups: Mapping[str, Sequence[str]]) -> Part:
    """Return the part that a parameter or module name belongs to, its projector first."""
    name = name.removeprefix("base_model.model.")
    parts: tuple[Part, ...] = ("projector", "vision", "language")
    for part in parts:
        if any(name == top or name.startswith(top + ".") for top in groups[part]):
            return part
    raise ModelError(f"{name!r} is in no part of the model.")


def linear_modules(
    model: nn.Module,
    groups: Mapping[str, Sequence[str]],
    parts: Sequence[str],
    names: Sequence[str] | None,
) -> list[str]:
    """Return the full names of the linear modules of the wanted parts, without the output head."""
    for part in parts:
        if part not in groups:
            raise ModelError(f"No model part {part!r}.{did_you_mean(part, groups)}")
    root: Any = model
    head = root.get_output_embeddings()
    names_found = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or module is head or ".lora_" in name:
            continue
        plain = name.removesuffix(".base_layer")
        if group_of(plain, groups) in parts and (names is None or plain.rsplit(".", 1)[-1] in names):
            names_found.append(plain)
    if not names_found:
        raise ModelError(f"No linear module in {list(parts)} is named any of {list(names or [])}.")
    return names_found


def special_token_ids(config: Any) -> set[int]:
    """Return every token id that a config names: BOS, EOS, padding, image and boundary tokens."""
    ids: set[int] = set()
    for part in (config, text_config(config)):
        for key, value in part.to_dict().items():
            if key.endswith(("token_id", "token_index", "patch_id")):
                ids |= set(value) if isinstance(value, list) else {value}
    return {token for token in ids if isinstance(token, int)}
