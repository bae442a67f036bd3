"""Loads weights from a checkpoint into a model; no weight keeps its random initial value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from orchestrator.errors import ModelError
from orchestrator.models.catalogue import Entry
from orchestrator.models.checkpoint import LoadReport, header, listed, weight_files


def load_checked(model_class: Any, entry: Entry, allow: Sequence[str], **options: Any) -> Any:
    """Return a model with all weights from its checkpoint.

    Weights that `allow` permits to be missing are initialised from a fixed seed, so that repeated loads agree.

    Raises:
        ModelError: if weights are missing, unexpected, or have a different shape.
    """
    from transformers.utils import logging

    if entry.folder is not None:
        for file in weight_files(entry.name, entry.folder):
            header(file, entry.name)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # transformers only logs mismatched keys; here they are an error
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, info = model_class.from_pretrained(
                entry.source, **options, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True
            )
    finally:
        logging.set_verbosity(verbosity)
    report = LoadReport(
        missing=tuple(sorted(info["missing_keys"])),
        unexpected=tuple(sorted(info["unexpected_keys"])),
        misshapen=tuple(f"{k} (found {list(a)}, expected {list(b)})" for k, a, b in sorted(info["mismatched_keys"])),
    )
    report.check(entry.name, allow)
    if info.get("error_msgs"):
        raise ModelError(f"{entry.name}: weights cannot be read: {listed(map(str, info['error_msgs']))}")
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(
            f"{entry.name}: {entry.source} holds an adapter beside the weights, which would be loaded with them; use a"
            " folder or revision without adapter_config.json, and name the adapter in model.adapter."
        )
    return model
