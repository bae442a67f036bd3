"""Parts of a loaded native model. A class that differs overrides the properties that differ."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import nn

from orchestrator.models import anatomy
from orchestrator.models.decoder_config import text_config


class Parts:
    """A model's modules, by the generic rules of `anatomy`."""

    model: Any
    config: Any

    @property
    def device(self) -> torch.device:
        """Device of the input embeddings, and of token ids."""
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the weights."""
        return self.model.get_input_embeddings().weight.dtype

    @property
    def n_embeddings(self) -> int:
        """Rows of the input embedding: every token id is below it."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def decoder(self) -> nn.Module:
        """The text decoder, called once with embeddings after the images are merged in."""
        return self.model.get_decoder()

    @property
    def layers(self) -> list[nn.Module]:
        """Decoder blocks, in order."""
        return anatomy.decoder_layers(self.decoder)

    @property
    def final_norm(self) -> nn.Module:
        """The norm after the last decoder block; its input is the last point of the residual stream."""
        return anatomy.final_norm(self.decoder)

    @property
    def n_layers(self) -> int:
        """L, the number of decoder blocks."""
        return len(self.layers)

    @property
    def hidden_size(self) -> int:
        """D, the width of the residual stream."""
        return int(text_config(self.config).hidden_size)

    @property
    def encoder_layers(self) -> list[nn.Module]:
        """Vision encoder blocks, in order of execution."""
        return anatomy.encoder_layers(self.model.get_encoder("image"))

    def parameter_groups(self) -> dict[str, list[str]]:
        """Return the top module names of each part: `vision`, `projector`, `language`. See also `group_of`."""
        return self._groups

    @cached_property
    def _groups(self) -> dict[str, list[str]]:
        """Cached: it is used for thousands of parameters, and LoRA does not move parameters between parts."""
        return anatomy.parameter_groups(self.model)

    def group_of(self, parameter: str) -> Literal["vision", "projector", "language"]:
        """Return the part that a parameter or module name of `model` belongs to."""
        return anatomy.group_of(parameter, self._groups)

    def linear_modules(self, groups: Sequence[str], names: Sequence[str] | None = None) -> list[str]:
        """Return full names of the `nn.Linear` modules of some parts: what LoRA's `target_modules` should be.

        Args:
            groups: any of `vision`, `projector`, `language`. The output head is left out.
            names: last name components to keep (`q_proj`, ...); all when `None`.
        """
        return anatomy.linear_modules(self.model, self.parameter_groups(), groups, names)
