"""Capture: a model's inner states, measured while it runs.

This package is callable, so that `vt.capture(model, images)` works beside the modules it holds (`notebook.capture`).
"""

import sys
import types
from typing import Any


class _CallablePackage(types.ModuleType):
    def __call__(self, model: Any, images: Any, **settings: Any) -> Any:
        from orchestrator.capture.images import capture

        return capture(model, images, **settings)


sys.modules[__name__].__class__ = _CallablePackage
