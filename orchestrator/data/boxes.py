"""Bounding boxes of an image's objects, as shares of its size: from scenes and from COCO's annotations.

Areas without a box are treated as background, although COCO annotates only eighty categories and not every object.
Boxes of crowds count as objects, as their area is not background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from orchestrator.data.coco import CocoObject, CocoSource
from orchestrator.data.mixture import Example
from orchestrator.data.sample import Sample
from orchestrator.data.scenes import Scene, SceneObject


@dataclass(frozen=True)
class Boxes:
    """Boxes of one image's objects."""

    edges: Float[np.ndarray, "K 4"]
    """(x0, y0, x1, y1) of each object from the top left, shares of the image, float64."""
    size: tuple[int, int]
    """(height, width) of the image, px."""


def boxes_of(item: Example) -> Boxes | None:
    """Return the boxes of the objects in a question's image; None if unknown."""
    if item.scene is not None:
        return scene_boxes(item.scene)
    if isinstance(item.source, CocoSource) and item.image_index is not None:
        width, height = item.source.sizes[item.image_index].tolist()
        return coco_boxes(item.source.objects(item.image_index), width, height)
    return None


def sample_boxes(sample: Sample) -> Boxes | None:
    """Return the boxes of the objects in a source's image; None if unknown."""
    if sample.scene is not None:
        return scene_boxes(sample.scene)
    if sample.objects is not None:
        height, width = sample.image.shape[:2]
        return coco_boxes(sample.objects, width, height)
    return None


def scene_boxes(scene: Scene, objects: Sequence[SceneObject] | None = None) -> Boxes:
    """Return the squares around a scene's objects (around their circumscribed circles), or around some of them."""
    selected = scene.objects if objects is None else objects
    edges = [(o.x - o.size / 2, o.y - o.size / 2, o.x + o.size / 2, o.y + o.size / 2) for o in selected]
    return _shares(edges, scene.width, scene.height)


def coco_boxes(objects: Sequence[CocoObject], width: int, height: int) -> Boxes:
    """Return the annotated boxes of a photograph of `width` x `height` px."""
    return _shares([(o.x, o.y, o.x + o.width, o.y + o.height) for o in objects], width, height)


def _shares(edges: Sequence[Any], width: int, height: int) -> Boxes:
    array = np.asarray(edges, dtype=np.float64).reshape(-1, 4) / (width, height, width, height)
    return Boxes(array.clip(0.0, 1.0), (height, width))
