"""From an entry of the catalogue to a loaded adapter, with errors that say what to do."""

from __future__ import annotations

import importlib.util
import sys
from importlib.metadata import entry_points
from typing import Any

import torch

from orchestrator.config import ModelConfig
from orchestrator.errors import ModelError, did_you_mean
from orchestrator.models.adapter import Adapter
from orchestrator.models.catalogue import ADAPTER_GROUP, FAMILIES, Entry, check_lora, entries, resolve
from orchestrator.models.families import make_adapter
from orchestrator.models.molmo import load_molmo

EXTRA_MODULES = {"molmo": ("einops", "torchvision"), "vision": ("torchvision", "num2words")}
"""Modules that each optional extra of vtsweep must bring."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def missing_extras(entry: Entry) -> list[str]:
    """Return the extras of an entry whose modules are not installed."""
    return [
        extra
        for extra in entry.extras
        if any(importlib.util.find_spec(module) is None for module in EXTRA_MODULES[extra])
    ]


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the weights' type; `auto` is bfloat16 on a GPU and float32 on a CPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return DTYPES[name]


def load_adapter(config: ModelConfig, device: str | torch.device = "cpu", device_map: str | None = None) -> Adapter:
    """Load the model that a configuration names and return its adapter, in evaluation mode on `device`.

    Args:
        device_map: `auto` spreads the model over this process's GPUs; `device` then only picks the dtype.

    Raises:
        ModelError: if it is unknown, gated, needs an extra, remote code or pickled weights, or cannot be downloaded.
    """
    device = torch.device(device)
    entry = resolve(config)
    if missing := missing_extras(entry):
        raise ModelError(f"{entry.name} needs optional packages: pip install 'vtsweep[{','.join(missing)}]'.")
    dtype = pick_dtype(config.dtype, device)
    if entry.family == "molmo":
        adapter: Adapter = with_hub_errors(entry, lambda: load_molmo(entry, dtype, device_map))
    else:
        adapter = with_hub_errors(entry, lambda: _load_native(entry, config, dtype, device_map))
    if device_map is None:
        adapter.model.to(device)
    if config.adapter is not None:
        attach_lora(adapter, config.adapter)
    adapter.model.eval().requires_grad_(False)
    return adapter


def _load_native(entry: Entry, config: ModelConfig, dtype: torch.dtype, device_map: str | None) -> Adapter:
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging

    if entry.folder is not None or not sys.stderr.isatty():
        logging.disable_progress_bar()  # a bar for files already at hand is noise, and one in a log is many lines
    where: dict[str, Any] = {"revision": entry.revision, "trust_remote_code": config.trust_remote_code}
    family = AutoConfig.from_pretrained(entry.source, **where).model_type
    supported = {*FAMILIES, *(point.name for point in entry_points(group=ADAPTER_GROUP))}
    if family not in supported and not config.trust_remote_code:
        known = ", ".join(sorted(supported))
        raise ModelError(f"{entry.name}: model_type {family!r} is not supported. Supported: {known}.")
    processor = AutoProcessor.from_pretrained(entry.source, **where)
    model = AutoModelForImageTextToText.from_pretrained(
        entry.source, **where, dtype=dtype, device_map=device_map, use_safetensors=True, attn_implementation="sdpa"
    )
    return make_adapter(model, processor)


def attach_lora(adapter: Adapter, folder: str) -> None:
    """Inject a saved LoRA adapter's layers into an adapter's model, unmerged, so that its weights stay exact."""
    from peft import PeftModel

    check_lora(folder)
    adapter.model = PeftModel.from_pretrained(adapter.model, folder).get_base_model()


def with_hub_errors(entry: Entry, call: Any) -> Any:
    """Return what `call` returns; turn the hub's and transformers' failures into a `ModelError` with the fix."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    page = f"https://huggingface.co/{entry.repository}"
    try:
        return call()
    except GatedRepoError as error:
        raise ModelError(_gated(entry, page)) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{entry.name}: {entry.repository} has no revision {entry.revision!r}.") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"{entry.name}: no repository {entry.repository!r} on the hub.{_nearest(entry)}") from error
    except ImportError as error:
        raise ModelError(f"{entry.name} needs a package that is missing: {error}") from error
    except (OSError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        text = str(error)
        if "gated" in text or "restricted" in text:
            raise ModelError(_gated(entry, page)) from error
        if "safetensors" in text:
            message = f"{entry.name}: no *.safetensors weights in {entry.source}; pickled weights are refused."
            raise ModelError(message) from error
        raise ModelError(f"{entry.name} cannot be loaded from {entry.source}: {text}") from error


def _gated(entry: Entry, page: str) -> str:
    return (
        f"{entry.name} is gated ({entry.licence or 'licence'}): accept its terms at {page}, create a read token,"
        " then run `hf auth login` or set HF_TOKEN on every node."
    )


def _nearest(entry: Entry) -> str:
    return did_you_mean(entry.name, [known.repository for known in entries().values() if known.repository])
