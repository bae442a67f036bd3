"""vtsweep: measures how vision-language models distribute visual information over tokens, and what changes it.

>>> import orchestrator as vt
>>> study = vt.Study.load("results/studies/quickstart")   # doctest: +SKIP
>>> study.layer_metrics.collect()   # doctest: +SKIP
>>> vt.capture_images("reference-joint", images).layer_metrics   # doctest: +SKIP

Names are imported on first use, so that importing the package is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.config.sweep import load_sweep, make_sweep
    from orchestrator.notebook import Captured, capture_images
    from orchestrator.store.study_record import Study
    from orchestrator.study.run import run_study

_HOMES = {
    "Captured": "orchestrator.notebook",
    "capture_images": "orchestrator.notebook",
    "Study": "orchestrator.store.study_record",
    "run_study": "orchestrator.study.run",
    "load_sweep": "orchestrator.config.sweep",
    "make_sweep": "orchestrator.config.sweep",
}

__all__ = ["Captured", "Study", "capture_images", "load_sweep", "make_sweep", "run_study"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'orchestrator' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)
