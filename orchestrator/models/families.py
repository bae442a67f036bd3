"""Adapter class of a model, by its config's `model_type`."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from torch import nn

from orchestrator.models.adapter import Adapter
from orchestrator.models.catalogue import ADAPTER_GROUP
from orchestrator.models.cross_attention import CrossAttentionAdapter
from orchestrator.models.molmo import MolmoAdapter
from orchestrator.models.sequence import SequenceAdapter

KINDS: dict[str, type[Adapter]] = {"mllama": CrossAttentionAdapter, "molmo": MolmoAdapter}
"""`model_type` -> adapter, if it is not `SequenceAdapter`."""


def make_adapter(model: nn.Module, processor: Any = None) -> Adapter:
    """Return the adapter of a model object.

    An installed package registers an adapter by an entry point of group `vtsweep.adapters` with the type as name.
    """
    config: Any = model.config
    for point in entry_points(group=ADAPTER_GROUP, name=config.model_type):
        return point.load()(model, processor)
    return KINDS.get(config.model_type, SequenceAdapter)(model, processor)
