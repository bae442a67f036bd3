"""Export: a model with a trial's adapter merged into its weights, as a checkpoint for transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from orchestrator.config import ModelConfig
from orchestrator.errors import ModelError
from orchestrator.models.loading import load_adapter


def export_model(config: ModelConfig, folder: str | Path) -> Path:
    """Save the model that a configuration names, adapter merged, with its processor; returns the folder.

    The folder is a model name like any other afterwards (`model.name=FOLDER`).

    Raises:
        ModelError: the folder is not empty, or the model cannot be loaded.
    """
    place = Path(folder).expanduser()
    if place.exists() and any(place.iterdir()):
        raise ModelError(f"export: {place} is not empty; expected a new folder")
    adapter = load_adapter(config)
    if adapter.family == "molmo":
        raise ModelError("export: the original Molmo's code cannot be saved; keep its adapter as a separate folder")
    merge_lora(adapter.model)
    adapter.model.save_pretrained(str(place), safe_serialization=True)
    adapter.processor.save_pretrained(str(place))
    return place


def merge_lora(model: nn.Module) -> int:
    """Merge every LoRA layer into the module that it wraps and restore that module; returns the number of layers.

    Raises:
        ModelError: merging gives weights that are not finite.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    layers: list[tuple[str, Any]] = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, (BaseTunerLayer, ModulesToSaveWrapper))
    ]
    for name, module in layers:
        parent, _, child = name.rpartition(".")
        if isinstance(module, BaseTunerLayer):
            try:
                module.merge(safe_merge=True)
            except ValueError as error:
                raise ModelError(f"export: {name}: {error}") from error
            plain = module.get_base_layer()
        else:
            plain = module.modules_to_save[module.active_adapters[0]]
        setattr(model.get_submodule(parent), child, plain)
    if hasattr(model, "peft_config"):
        del model.peft_config
    if hasattr(model, "_hf_peft_config_loaded"):
        model._hf_peft_config_loaded = False  # type: ignore[assignment]
    return len(layers)
