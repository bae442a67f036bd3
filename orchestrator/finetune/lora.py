"""LoRA (or full training) on chosen parts of a model, each part with its own rank and learning rate.

Low-rank adaptation: Hu et al. 2021 (arXiv 2106.09685), by peft. The layers are injected into the given model and
removed afterwards, so that a worker uses one loaded base model for all trials; a checksum verifies that its weights
are unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import peft
import torch
from peft.utils import ModulesToSaveWrapper as TrainedWhole
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from orchestrator.config import FinetuneConfig, GroupConfig
from orchestrator.errors import ConfigError, StageError
from orchestrator.models.adapter import Adapter
from orchestrator.models.lora_folder import base_digest

PARTS = ("language", "projector", "vision")


def part_settings(config: FinetuneConfig) -> dict[str, GroupConfig]:
    """Settings of the parts that are trained; a part of rank 0 stays frozen.

    Raises:
        ConfigError: every part is frozen.
    """
    parts = {part: getattr(config, part) for part in PARTS if getattr(config, part).rank > 0}
    if not parts:
        raise ConfigError("finetune: language, projector and vision all have rank 0, so nothing would be trained")
    return parts


@dataclass(frozen=True)
class Tuned:
    """A model with trainable parts: parameters for the optimiser, and the weights that a trial saves."""

    model: nn.Module
    parameters: dict[str, nn.Parameter]
    """Trained parameters by name, in model order."""
    parts: dict[str, str]
    """Parameter name -> part."""
    settings: dict[str, GroupConfig]
    wrapped: peft.PeftModel | None
    """peft's wrapper of the model; None in full fine-tuning."""
    masters: dict[str, nn.Parameter]
    """Master weights, updated by the optimiser: the parameters themselves, or float32 copies of those of lower
    precision, in which small updates would be rounded away."""

    def optimiser_groups(self) -> list[dict[str, Any]]:
        """One optimiser group per part: its parameters and its peak learning rate."""
        return [
            {
                "params": [p for name, p in self.masters.items() if self.parts[name] == part],
                "lr": settings.learning_rate,
                "part": part,
            }
            for part, settings in self.settings.items()
        ]

    def weights(self) -> dict[str, Tensor]:
        """Trained weights by name, on the CPU, in full precision."""
        return {name: p.detach().cpu().contiguous().clone() for name, p in self.masters.items()}

    def gather_gradients(self) -> None:
        """Add the gradients of parameters to those of their master weights."""
        for name, master in self.masters.items():
            parameter = self.parameters[name]
            if master is parameter or parameter.grad is None:
                continue
            grad, parameter.grad = parameter.grad.float(), None
            master.grad = grad if master.grad is None else master.grad.add_(grad)

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for parameter in (*self.parameters.values(), *self.masters.values()):
            parameter.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the master weights to the model, rounded to its precision."""
        for name, master in self.masters.items():
            if master is not self.parameters[name]:
                self.parameters[name].copy_(master)

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor]) -> None:
        """Set the trained weights; the names must be those of `weights()`."""
        if set(weights) != set(self.parameters):
            odd = sorted(set(weights) ^ set(self.parameters))[:4]
            raise StageError(f"checkpoint and model differ in trained parameters, such as {odd}; delete the checkpoint")
        for name, p in self.masters.items():
            p.copy_(weights[name])
        self.publish()

    def files(self, base_name: str) -> dict[str, bytes]:
        """The trained weights as files: peft's adapter folder, or `weights.safetensors` after full fine-tuning.

        Args:
            base_name: name or folder of the base model, checked when the adapter is loaded.
        """
        if self.wrapped is None:
            return {"weights.safetensors": to_safetensors(self.weights())}
        settings = self.wrapped.peft_config["default"].to_dict()
        settings |= {"base_model_name_or_path": base_name, "inference_mode": True}
        settings["target_modules"] = sorted(settings["target_modules"])
        state = peft.get_peft_model_state_dict(self.wrapped)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        return {
            "adapter_config.json": json.dumps(settings, indent=1, sort_keys=True, default=str).encode(),
            "adapter_model.safetensors": to_safetensors(state, metadata={"format": "pt", **base_digest(base_name)}),
        }


@contextmanager
def tunable(adapter: Adapter, config: FinetuneConfig) -> Iterator[Tuned]:
    """Make the chosen parts of `adapter.model` trainable inside the block; the base model is restored afterwards.

    LoRA's A matrices are drawn from `config.seed`, B is zero: the model initially equals the base model.

    Raises:
        ConfigError: nothing is to be trained.
        StageError: the base weights changed although they were frozen.
    """
    settings = part_settings(config)
    model = adapter.model
    model.requires_grad_(False)
    with _full(adapter, settings) if config.method == "full" else _lora(adapter, config, settings) as tuned:
        yield tuned


@contextmanager
def _lora(adapter: Adapter, config: FinetuneConfig, settings: dict[str, GroupConfig]) -> Iterator[Tuned]:
    before = checksum(adapter.model)
    torch.manual_seed(config.seed)
    # In the model's bfloat16, with float32 master weights: mixed dtypes would need casts in every pass.
    cast = adapter.dtype != torch.bfloat16
    wrapped: Any = peft.get_peft_model(
        adapter.model, lora_config(adapter, config, settings), autocast_adapter_dtype=cast
    )
    try:
        yield _tuned(adapter, settings, wrapped)
    finally:
        fully_trained = {
            name: m.original_module for name, m in adapter.model.named_modules() if isinstance(m, TrainedWhole)
        }
        wrapped.unload()
        for name, module in fully_trained.items():  # `unload` leaves the trained copy in place
            adapter.model.set_submodule(name, module)
        adapter.model.eval().requires_grad_(False)
    if checksum(adapter.model) != before:
        raise StageError("the base model's weights changed while LoRA was trained; this worker must not be reused")


@contextmanager
def _full(adapter: Adapter, settings: dict[str, GroupConfig]) -> Iterator[Tuned]:
    for name, parameter in adapter.model.named_parameters():
        parameter.requires_grad_(adapter.group_of(name) in settings)
    tuned = _tuned(adapter, settings, None)
    original = tuned.weights()
    try:
        yield tuned
    finally:
        tuned.load(original)
        adapter.model.eval().requires_grad_(False)


def _tuned(adapter: Adapter, settings: dict[str, GroupConfig], wrapped: peft.PeftModel | None) -> Tuned:
    parameters = {name: p for name, p in adapter.model.named_parameters() if p.requires_grad}
    parts = {name: adapter.group_of(name) for name in parameters}
    assert set(parts.values()) == set(settings), "every chosen part has trained parameters, and no other has"
    masters = {
        name: p if p.dtype == torch.float32 else nn.Parameter(p.detach().float()) for name, p in parameters.items()
    }
    return Tuned(adapter.model, parameters, dict(parts), settings, wrapped, masters)


def lora_config(adapter: Adapter, config: FinetuneConfig, settings: dict[str, GroupConfig]) -> peft.LoraConfig:
    """peft's settings: every linear layer of each part except the output head, with the part's rank.

    A part without linear layers (Gemma 3's projector is a single matrix parameter) is fully trained instead.
    """
    linear = {name: adapter.group_of(name) for name in adapter.linear_modules(PARTS)}
    targets = {name: part for name, part in linear.items() if part in settings}
    modules_to_save = [
        top for part in settings if part not in targets.values() for top in adapter.parameter_groups()[part]
    ]
    rank = max(s.rank for s in settings.values())
    other = {name: settings[part].rank for name, part in targets.items() if settings[part].rank != rank}
    return peft.LoraConfig(
        r=rank,
        lora_alpha=config.alpha_over_rank * rank,  # type: ignore[arg-type]  # lora_alpha may be any number
        lora_dropout=config.dropout,
        target_modules=list(targets),
        modules_to_save=modules_to_save or None,
        rank_pattern=other,
        alpha_pattern={name: config.alpha_over_rank * r for name, r in other.items()},
        bias="none",
    )


def checksum(model: nn.Module) -> int:
    """A checksum that changes with any single weight or buffer: wrapped sum of their bits, weighted by position.

    Independent of the order of summation, hence equal on every device; about 1 ms per 10 million weights.
    """
    total = 0
    for place, tensor in enumerate([*model.parameters(), *model.buffers()], start=1):
        bits = tensor.detach().reshape(-1).view(torch.uint8)
        words = bits.view(torch.int32) if bits.numel() % 4 == 0 else bits
        total = (total + place * int(words.sum(dtype=torch.int64))) % 2**64
    return total
