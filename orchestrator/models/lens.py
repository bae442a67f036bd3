"""Logit lens: decode the answer from an intermediate layer (nostalgebraist 2020).

The states of kept tokens at the input of each layer go through the final norm and the output embeddings. Early layers
are decoded in the coordinates of the last one: a low probability means that the answer is not yet in these coordinates,
not that it is absent. `ablate/tuned_lens.py` calibrates for this; probes do not depend on it.

Shapes: B rows, K kept positions of a prompt, L decoder layers, D width, M states, W vocabulary.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from orchestrator.errors import ModelError
from orchestrator.models.adapter import Adapter
from orchestrator.models.batching import Batch
from orchestrator.models.block_shortening import hidden_of
from orchestrator.models.choosing import Branch

AT_ONCE = 256
"""Number of states decoded at once: so many rows of logits of a large vocabulary fit in memory."""


@torch.no_grad()
def kept_states(adapter: Adapter, batch: Batch, places: Int[Tensor, "B K"]) -> Float[Tensor, "L1 B K D"]:
    """Return the states of some positions of each prompt at the L + 1 points of the residual stream, float32, CPU."""
    states: list[Tensor] = []

    def note(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        hidden = hidden_of(args, kwargs)
        index = places.to(hidden.device)[:, :, None].expand(-1, -1, hidden.shape[2])
        states.append(hidden.gather(1, index).float().cpu())

    with contextlib.ExitStack() as stack:
        for module in [*adapter.layers, adapter.final_norm]:
            stack.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
        adapter.run(batch, logits_to_keep=1)
    return torch.stack(states)


def output_head(adapter: Adapter) -> nn.Module:
    """Return the model's output embeddings.

    Raises:
        ModelError: the model has none.
    """
    head: Any = adapter.model.get_output_embeddings()
    if not isinstance(head, nn.Module):
        raise ModelError(f"{adapter.family}: no output embeddings to read states with.")
    return head


@torch.no_grad()
def lens_logits(adapter: Adapter, states: Float[Tensor, "M D"]) -> Float[Tensor, "M W"]:
    """Return the logits of residual-stream states by the final norm and the output embeddings, float32, CPU."""
    head = output_head(adapter)
    logits = head(adapter.final_norm(states.to(adapter.device, adapter.dtype))).float()
    cap = getattr(adapter.decoder.config, "final_logit_softcapping", None)  # Gemma 2 bounds its logits
    if cap:
        logits = cap * torch.tanh(logits / cap)
    return logits.cpu()


def branch_shares(branch: Branch, logits: Float[Tensor, "M W"]) -> Float[Tensor, "M C"]:
    """Return the probability of each next token of a branch, then of stopping there; as `branch_probabilities`."""
    log = logits.log_softmax(-1)[:, list(branch.children)]
    if branch.ends is None:
        return log.softmax(-1)
    going_on = log.exp()
    return torch.cat([going_on, (1.0 - going_on.sum(-1, keepdim=True)).clamp(min=0.0)], dim=1)
