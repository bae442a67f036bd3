"""A LoRA adapter with weights as after training, saved as a trial saves it."""

from __future__ import annotations

from pathlib import Path

import torch

from orchestrator.config import FinetuneConfig, ModelConfig
from orchestrator.finetune.lora import tunable
from orchestrator.models.loading import load_adapter


def trained_adapter(target: Path, base: str = "reference-joint") -> Path:
    """Write an adapter of rank 4 of language model and projector to a new folder."""
    model = load_adapter(ModelConfig(name=base))
    part = {"rank": 4, "learning_rate": 1e-3}
    config = FinetuneConfig.model_validate({"language": part, "projector": part})
    target.mkdir(parents=True)
    with tunable(model, config) as tuned, torch.no_grad():
        for parameter in tuned.parameters.values():
            parameter.normal_(std=0.05)
        for name, data in tuned.files(base).items():
            (target / name).write_bytes(data)
    return target
