"""Tokens that an intervention acts on: parts of the image by boxes, parts of the prompt. B rows, V visual tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from orchestrator.data.boxes import Boxes, boxes_of, scene_boxes
from orchestrator.data.mixture import Example
from orchestrator.errors import ModelError
from orchestrator.models.adapter import Adapter
from orchestrator.models.batching import Batch
from orchestrator.models.box_tokens import box_tokens

TEXT_PLACES = ("question", "last")
"""Places in the prompt's text; the others are parts of the image."""


def object_tokens(adapter: Adapter, item: Example, grid: Int[Tensor, "V 3"]) -> Bool[Tensor, " V"]:
    """Which visual tokens show an object of the item's image; tokens without a position (a class token) show none.

    Raises:
        ModelError: no boxes are known, or the positions of the model's tiles are unknown.
    """
    return _shown(adapter, _known(item), grid)


def changed_tokens(adapter: Adapter, item: Example, donor: Example, grid: Int[Tensor, "V 3"]) -> Bool[Tensor, " V"]:
    """Which visual tokens show an object that only one of the two scenes contains."""
    scene, donor_scene = item.scene, donor.scene
    assert scene is not None, "pairs are made of scenes"
    assert donor_scene is not None, "pairs are made of scenes"
    differing = {*scene.objects} ^ {*donor_scene.objects}
    return _shown(adapter, scene_boxes(scene, sorted(differing)), grid)


def image_part(
    adapter: Adapter, batch: Batch, items: Sequence[Example], place: str, donors: Sequence[Example] | None = None
) -> Bool[Tensor, "B V"] | None:
    """Mask of the visual tokens at `place` in each image; None for all of them (`image`).

    With `donors`, objects are those of either image.
    """
    if place == "image":
        return None
    rows = []
    for number, (item, grid) in enumerate(zip(items, adapter.vision_grid(batch), strict=True)):
        if place == "changed":
            assert donors is not None, "what changed is known between two scenes"
            rows.append(changed_tokens(adapter, item, donors[number], grid))
            continue
        shown = object_tokens(adapter, item, grid)
        if donors is not None:
            shown = shown | object_tokens(adapter, donors[number], grid)
        rows.append(shown if place == "object" else ~shown)
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def _known(item: Example) -> Boxes:
    boxes = boxes_of(item)
    if boxes is None:
        raise ModelError(f"{item.question.question_id}: no boxes of its objects are known; use scenes or COCO.")
    return boxes


def _shown(adapter: Adapter, boxes: Boxes, grid: Int[Tensor, "V 3"]) -> Bool[Tensor, " V"]:
    edges = torch.from_numpy(np.ascontiguousarray(boxes.edges)).float()
    return box_tokens(adapter, grid, edges, boxes.size)
