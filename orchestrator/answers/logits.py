"""Logits of a question's answer and their loss. Shapes: `B` questions, `K` last positions, `V` vocabulary."""

from __future__ import annotations

import inspect

from jaxtyping import Float, Int
from torch import Tensor, nn

from orchestrator.models.adapter import Adapter
from orchestrator.models.batching import Batch


def answer_loss(logits: Float[Tensor, "B K V"], labels: Int[Tensor, "B K"]) -> tuple[Float[Tensor, ""], int]:
    """Sum of the cross-entropy of the labelled tokens, each predicted from the position before it, and their number.

    Labels are on the CPU, so that neither their places nor their number wait for the device.
    """
    targets = labels[:, 1:].reshape(-1)
    wanted = (targets != -100).nonzero()[:, 0]
    predictions = logits[:, :-1].reshape(-1, logits.shape[-1])[wanted.to(logits.device, non_blocking=True)]
    targets = targets[wanted].to(logits.device, non_blocking=True)
    return nn.functional.cross_entropy(predictions.float(), targets, reduction="sum"), len(wanted)


def answer_logits(adapter: Adapter, batch: Batch) -> tuple[Float[Tensor, "B K V"], Int[Tensor, "B K"]]:
    """Logits and labels of the last K positions, from the one before the first labelled position of any row on.

    Logits of earlier positions are not computed where the model can leave them out.
    """
    labels = batch["labels"]
    first = int((labels != -100).any(dim=0).nonzero()[0])
    keep = labels.shape[1] - first + 1
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    few = {"logits_to_keep": keep} if "logits_to_keep" in inspect.signature(adapter.model.forward).parameters else {}
    return adapter.run(inputs, **few).logits[:, -keep:], labels[:, -keep:]
