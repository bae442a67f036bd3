"""Image preprocessing with a cached prompt: most stages use one prompt for all images."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from orchestrator.models.adapter import Adapter
from orchestrator.models.batching import Batch
from orchestrator.models.preparation import Pictures

MAX_SIZES = 32
"""Image sizes in the cache; each entry holds one prepared example."""


class Preparer:
    """`Adapter.prepare` for one prompt, about twice as fast.

    In most models only the output of the image processor depends on pixels; the rest follows from prompt and size.
    This is verified per model: the second image of each size is prepared both ways, and where the results differ, the
    uncached way is used for that size.
    """

    def __init__(self, adapter: Adapter, prompt: str) -> None:
        self.adapter, self.prompt = adapter, prompt
        self._first: dict[tuple[int, ...], Batch] = {}
        self._same: dict[tuple[int, ...], bool] = {}

    def __call__(self, image: Pictures, prompt: str | None = None) -> Batch:
        """Inputs of an image, or several, with the stage's prompt, or with `prompt`."""
        if (prompt is not None and prompt != self.prompt) or not isinstance(image, np.ndarray):
            return self.adapter.prepare(image, prompt or self.prompt)
        size = image.shape
        if self._same.get(size):
            return self._with_pixels(self._first[size], image)
        example = self.adapter.prepare(image, self.prompt)
        if size not in self._first:
            if len(self._first) < MAX_SIZES:
                self._first[size] = example
        elif size not in self._same:
            self._same[size] = self._agrees(self._first[size], image, example)
        return example

    def _with_pixels(self, first: Batch, image: np.ndarray) -> Batch:
        processed = self.adapter.processor.image_processor(images=[Image.fromarray(image)], return_tensors="pt")
        return {**first, **{key: value for key, value in processed.items() if key in first}}

    def _agrees(self, first: Batch, image: np.ndarray, example: Batch) -> bool:
        try:
            cached = self._with_pixels(first, image)
        except Exception:  # this processor's image processor does not work on its own
            return False
        return all(
            torch.is_tensor(cached[key]) and cached[key].dtype == value.dtype and torch.equal(cached[key], value)
            for key, value in example.items()
        )
