"""Logit lens: what the decoder would answer if it stopped at a layer (nostalgebraist 2020).

The state of the prompt's last token at the input of each layer goes through the final norm and the output embeddings.
Early layers are read in the coordinates of the last one: a low probability there says that the answer is not yet
written in them, not that it is not known. A probe says the latter.

Shapes: B rows, L decoder layers, W vocabulary.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from orchestrator.errors import ModelError
from orchestrator.models.adapter import Adapter
from orchestrator.models.batching import Batch
from orchestrator.models.block_shortening import hidden_of


@torch.no_grad()
def lens_logits(adapter: Adapter, batch: Batch) -> Float[Tensor, "L1 B W"]:
    """Return the last token's logits at the L + 1 points of the residual stream; the last are the model's own.

    Raises:
        ModelError: the model's output embeddings cannot be had.
    """
    head: Any = adapter.model.get_output_embeddings()
    if not isinstance(head, nn.Module):
        raise ModelError(f"{adapter.family}: no output embeddings to read states with.")
    states: list[Tensor] = []

    def note(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        states.append(hidden_of(args, kwargs)[:, -1:])

    with contextlib.ExitStack() as stack:
        for module in [*adapter.layers, adapter.final_norm]:
            stack.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
        output = adapter.run(batch, logits_to_keep=1)
    early = [head(adapter.final_norm(state))[:, -1] for state in states[:-1]]
    cap = getattr(adapter.decoder.config, "final_logit_softcapping", None)  # Gemma 2 bounds its logits
    if cap:
        early = [cap * torch.tanh(one / cap) for one in early]
    return torch.stack([*early, output.logits[:, -1]]).float()
