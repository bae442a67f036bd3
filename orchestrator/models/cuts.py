"""What a model's processor cuts out of a picture, from its files, without transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.config import ModelConfig
from orchestrator.models.catalogue import Entry, resolve
from orchestrator.models.checkpoint import read_json
from orchestrator.models.fitting import cut_of_settings
from orchestrator.models.known_config import config_here, read_config

FILES = ("processor_config.json", "preprocessor_config.json")


def known_cut(model: ModelConfig) -> tuple[int, int] | None:
    """Return the (height, width) that a model's processor cuts out of the middle of a picture; `None` if nothing.

    Of a LLaVA-1.5 whose processor is not at hand, the square that its published processors cut.
    """
    entry = resolve(model)
    settings = _settings(entry)
    if settings is not None:
        return cut_of_settings(settings)
    if entry.family == "llava" and config_here(entry):
        side = read_config(entry).vision_config.image_size
        return side, side
    return None


def _settings(entry: Entry) -> dict[str, Any] | None:
    """Return the settings of the image processor; `None` where they are not at hand."""
    for name in FILES:
        file = _file(entry, name)
        if file is None:
            continue
        fields = read_json(file, entry.name)
        found = fields.get("image_processor", fields)
        if isinstance(found, dict) and ("image_processor_type" in found or "size" in found):
            return found
    return None


def _file(entry: Entry, name: str) -> Path | None:
    if entry.folder is not None:
        return entry.folder / name if (entry.folder / name).is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(entry.source, name, revision=entry.revision)
    return Path(found) if isinstance(found, str) else None
