"""A model's config, without its weights: shipped with the catalogue, in its folder, or downloaded."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from orchestrator.errors import ModelError
from orchestrator.models.catalogue import Entry, is_shipped
from orchestrator.models.decoder_config import named_config


def read_config(entry: Entry) -> Any:
    """Return a model's config: shipped with the catalogue, else from its folder, else downloaded from the hub.

    Raises:
        ModelError: if it cannot be had here.
    """
    shipped = _shipped_config(entry)
    if shipped.is_file():
        fields = json.loads(shipped.read_text(encoding="utf-8"))
    elif entry.folder is not None:
        fields = json.loads((entry.folder / "config.json").read_text(encoding="utf-8"))
    else:
        fields = _download_config(entry)
    if fields.get("model_type") == "molmo":
        return SimpleNamespace(**fields)
    if entry.folder is not None and is_shipped(entry.folder):
        return _Fields(fields)  # these files are complete; importing transformers takes 5 s
    from transformers import CONFIG_MAPPING

    if fields.get("model_type") not in CONFIG_MAPPING:
        raise ModelError(f"{entry.name}: model_type {fields.get('model_type')!r} is not known to transformers.")
    with named_config(entry):
        return CONFIG_MAPPING[fields["model_type"]].from_dict(fields)


class _Fields(SimpleNamespace):
    """A config file's fields as attributes, as the config classes of transformers have them."""

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(**{key: _Fields(value) if isinstance(value, dict) else value for key, value in fields.items()})

    def get_text_config(self) -> Any:
        """The decoder's part."""
        return self.text_config


def config_here(entry: Entry) -> bool:
    """Return whether a model's config can be read without a download."""
    return entry.folder is not None or _shipped_config(entry).is_file()


def _shipped_config(entry: Entry) -> Any:
    return resources.files("orchestrator.models").joinpath("configs", f"{entry.name}.json")


def _download_config(entry: Entry) -> dict[str, Any]:
    from huggingface_hub import hf_hub_download

    from orchestrator.models.loading import with_hub_errors

    path = with_hub_errors(entry, lambda: hf_hub_download(entry.source, "config.json", revision=entry.revision))
    return json.loads(Path(path).read_text(encoding="utf-8"))
