"""Loads the adapter of a catalogue entry; errors name the fix."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch

from orchestrator.config import ModelConfig
from orchestrator.errors import ModelError, did_you_mean
from orchestrator.models.adapter import Adapter
from orchestrator.models.catalogue import ADAPTER_GROUP, FAMILIES, Entry, entries, resolve
from orchestrator.models.extras import check_extras
from orchestrator.models.families import make_adapter
from orchestrator.models.local_copy import local_copy
from orchestrator.models.lora_folder import attach_lora
from orchestrator.models.molmo import load_molmo
from orchestrator.models.processor_fields import check_processor
from orchestrator.models.weights import load_checked

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of the weights; `auto` is bfloat16 on a GPU and float32 on a CPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return DTYPES[name]


def load_adapter(
    config: ModelConfig,
    device: str | torch.device = "cpu",
    device_map: str | None = None,
    weights_cache: str | None = None,
) -> Adapter:
    """Load the model that a configuration names and return its adapter, in evaluation mode on `device`.

    Args:
        device: on `meta` no tensor is read; names and shapes of all weights are checked against the model, as on any
            device.
        device_map: `auto` spreads the model over this process's GPUs; `device` then only selects the dtype.
        weights_cache: folder on this machine's disk; a checkpoint folder is read from a copy there (`local_copy`).

    Raises:
        ModelError: if it is unknown, gated, needs an extra, remote code or pickled weights, or cannot be downloaded;
            if weights or adapter do not fit the model.
    """
    device = torch.device(device)
    entry = resolve(config)
    check_extras(entry)
    check_torchvision()
    read = entry
    if weights_cache is not None and entry.folder is not None:
        read = replace(entry, folder=local_copy(entry.folder, Path(weights_cache)))
    dtype = pick_dtype(config.dtype, device)
    placement = "meta" if device.type == "meta" else device_map
    if entry.folder is not None or not sys.stderr.isatty():
        from transformers.utils import logging

        logging.disable_progress_bar()  # no progress bar: it is useless for cached files, and many lines in a log
    if entry.family == "molmo":
        adapter: Adapter = with_hub_errors(entry, lambda: load_molmo(read, config.allow, dtype, placement))
    else:
        adapter = with_hub_errors(entry, lambda: _load_native(read, config, dtype, placement))
    if placement is None:
        adapter.model.to(device)
    if config.adapter is not None:
        attach_lora(adapter, config.adapter, entry, config.allow)
    adapter.date, adapter.fit = config.date, config.fit
    adapter.model.eval().requires_grad_(False)
    return adapter


def _load_native(entry: Entry, config: ModelConfig, dtype: torch.dtype, device_map: str | None) -> Adapter:
    from transformers import AutoConfig, AutoModelForImageTextToText

    arguments: dict[str, Any] = {"revision": entry.revision, "trust_remote_code": config.trust_remote_code}
    if device_map == "meta":
        arguments["local_files_only"] = True
    family = AutoConfig.from_pretrained(entry.source, **arguments).model_type
    supported = {*FAMILIES, *(point.name for point in entry_points(group=ADAPTER_GROUP))}
    if family not in supported and not config.trust_remote_code:
        known = ", ".join(sorted(supported))
        raise ModelError(f"{entry.name}: model_type {family!r} is not supported. Supported: {known}.")
    processor = load_processor(entry, **arguments)
    options = {"dtype": dtype, "device_map": device_map, "attn_implementation": "sdpa"}
    model = load_checked(AutoModelForImageTextToText, entry, config.allow, **arguments, **options)
    check_processor(entry, processor, model.config)
    return make_adapter(model, processor)


def check_torchvision() -> None:
    """Check that torchvision can be imported if it is installed, as transformers then imports it for any model.

    Raises:
        ModelError: it was built for another torch.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        raise ModelError(
            f"torchvision is installed and does not fit torch {torch.__version__} ({error}). Install both from one"
            " package index, so that both are builds for a CPU or both for the same CUDA; or remove it where no model"
            " needs it: pip uninstall torchvision."
        ) from error


def load_processor(entry: Entry, **options: Any) -> Any:
    """Return a model's processor; `options` are keywords of `from_pretrained`."""
    check_torchvision()
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(entry.source, **options)
    except (OSError, ImportError):  # errors of the hub and of packages are handled by `with_hub_errors`
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise ModelError(
            f"{entry.name}: its processor cannot be made from the files in {entry.source}:"
            f" {type(error).__name__}: {str(error)[:1000]}"
        ) from error


def with_hub_errors(entry: Entry, call: Any) -> Any:
    """Return the result of `call`; convert failures of the hub and of transformers into a `ModelError` with the fix."""
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
    except ModelError:
        raise
    except BaseException as error:  # an invalid file may raise any exception in a library
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        text = str(error)[:1000] or type(error).__name__
        if "gated" in text or "restricted" in text:
            raise ModelError(_gated(entry, page)) from error
        if "safetensors" in text and entry.folder is None:
            message = f"{entry.name}: no *.safetensors weights in {entry.source}; pickled weights are refused."
            raise ModelError(message) from error
        raise ModelError(f"{entry.name} cannot be loaded from {entry.source}: {text}") from error


def is_panic(error: BaseException) -> bool:
    """Whether this is a panic of a library's Rust core: no `Exception`, of a class that is not exported."""
    return type(error).__name__ == "PanicException"


def _gated(entry: Entry, page: str) -> str:
    return (
        f"{entry.name} is gated ({entry.licence or 'licence'}): accept its terms at {page}, create a read token,"
        " then run `hf auth login` or set HF_TOKEN on every node."
    )


def _nearest(entry: Entry) -> str:
    return did_you_mean(entry.name, [known.repository for known in entries().values() if known.repository])
