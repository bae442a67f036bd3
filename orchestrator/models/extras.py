"""Optional packages that models need, and whether they are installed. Needs no torch."""

from __future__ import annotations

import importlib.util

from orchestrator.errors import ModelError
from orchestrator.models.catalogue import Entry

EXTRA_MODULES = {"molmo": ("einops", "torchvision"), "vision": ("torchvision", "num2words")}
"""Modules of each optional extra of vtsweep."""

FAMILY_EXTRAS = {
    "molmo": ("molmo",),
    "molmo2": ("vision",),
    "llava_onevision": ("vision",),
    "qwen2_5_vl": ("vision",),
    "qwen3_vl": ("vision",),
    "smolvlm": ("vision",),
    "internvl": ("vision",),
}
"""Extras that a family's processor needs for any checkpoint: most also process videos, which needs torchvision."""


def missing_extras(entry: Entry) -> list[str]:
    """Return the extras whose modules are not installed: those of the entry, and of its family's processor."""
    extras = dict.fromkeys((*entry.extras, *FAMILY_EXTRAS.get(entry.family or "", ())))
    return [
        extra for extra in extras if any(importlib.util.find_spec(module) is None for module in EXTRA_MODULES[extra])
    ]


def check_extras(entry: Entry) -> None:
    """Check that the optional packages of a model are installed.

    Raises:
        ModelError: which says how to install them.
    """
    if missing := missing_extras(entry):
        raise ModelError(f"{entry.name} needs optional packages: pip install 'vtsweep[{','.join(missing)}]'.")
