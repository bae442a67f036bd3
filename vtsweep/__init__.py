"""vtsweep: how vision-language models spread visual information over their tokens, and what changes it.

>>> import vtsweep as vt
>>> vt.capture("reference-joint", images).layer_metrics   # doctest: +SKIP
>>> study, report = vt.run_study(vt.load_sweep("sweeps/quickstart.yaml"))   # doctest: +SKIP
>>> vt.Study.load("quickstart").findings()   # doctest: +SKIP

The public names; everything else lies in `orchestrator`. Each is imported when it is first used, so that importing the
package is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vtsweep.version import __version__

if TYPE_CHECKING:
    from orchestrator.ablate.apply import apply_policy
    from orchestrator.config.sweep import load_sweep, make_sweep
    from orchestrator.notebook import Captured
    from orchestrator.notebook import capture_images as capture
    from vtsweep.study import Study, run_study

_HOMES = {
    "Captured": ("orchestrator.notebook", "Captured"),
    "Study": ("vtsweep.study", "Study"),
    "apply_policy": ("orchestrator.ablate.apply", "apply_policy"),
    "capture": ("orchestrator.notebook", "capture_images"),
    "load_sweep": ("orchestrator.config.sweep", "load_sweep"),
    "make_sweep": ("orchestrator.config.sweep", "make_sweep"),
    "run_study": ("vtsweep.study", "run_study"),
}

__all__ = ["Captured", "Study", "__version__", "apply_policy", "capture", "load_sweep", "make_sweep", "run_study"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vtsweep' has no attribute {name!r}; it has {', '.join(__all__)}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return __all__
