"""Identity of the model that a policy was chosen on. This module does not import torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from orchestrator.config import ModelConfig, PolicyFile, RunConfig
from orchestrator.models.catalogue import resolve
from orchestrator.models.identity import fingerprint


def chosen_on(run: RunConfig) -> dict[str, Any]:
    """Fields of a policy that identify its model; a model that the policy is applied to must match them."""
    from orchestrator.models.known_config import read_config
    from orchestrator.models.stacks import decoder_stack

    config = read_config(resolve(run.model))
    decoder = decoder_stack(config)
    return {
        "model": run.model.name,
        "checkpoint": checkpoint_of(run.model),
        "weights": weights_of(run.model),
        "model_type": str(config.model_type),
        "n_layers": decoder.layers,
        "hidden_size": decoder.width,
    }


def checkpoint_of(model: ModelConfig) -> str:
    """`base`, or the digest of the trial whose folder holds the LoRA weights (else of the weights)."""
    if model.adapter is None:
        return "base"
    trial = Path(model.adapter).expanduser().resolve().parent.name
    return trial if re.fullmatch(r"[0-9a-f]{16}", trial) else fingerprint(model)["adapter"]


def weights_of(model: ModelConfig) -> str:
    """Identity of the weights, adapter included: digest of a folder's content, or repository and commit."""
    identity = fingerprint(model)
    base = identity.get("content") or f"{identity['repository']}@{identity['revision']}"
    return f"{base}+{identity['adapter']}" if "adapter" in identity else base


def is_own_model(policy: PolicyFile, run: RunConfig) -> bool:
    """Whether a policy was chosen on a run's model: by weights if the policy names them, else by name and adapter."""
    if policy.weights:
        return policy.weights == weights_of(run.model)
    return policy.model == run.model.name and policy.checkpoint == checkpoint_of(run.model)


def described(model: str, checkpoint: str, weights: str) -> str:
    """A model as messages name it."""
    return f"{model} ({checkpoint}{f', weights {weights}' if weights else ''})"
