"""What a policy says of the model it was chosen on. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from orchestrator.config import ModelConfig, PolicyFile, RunConfig
from orchestrator.models.catalogue import fingerprint, resolve


def chosen_on(run: RunConfig) -> dict[str, Any]:
    """What a policy says of the model it was chosen on, and what is asked of one that it is applied to."""
    from orchestrator.models.planning import decoder_stack, read_config

    config = read_config(resolve(run.model))
    decoder = decoder_stack(config)
    return {
        "model": run.model.name,
        "checkpoint": checkpoint_of(run.model),
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


def is_own_model(policy: PolicyFile, run: RunConfig) -> bool:
    """Whether a policy was chosen on a run's model, with the same adapter."""
    return policy.model == run.model.name and policy.checkpoint == checkpoint_of(run.model)
