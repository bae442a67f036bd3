"""Load the images of a shard one by one; an unreadable image is recorded with its reason and raises no error."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.data.boxes import Boxes, sample_boxes
from orchestrator.data.sample import Source
from orchestrator.errors import StorageError, VtsweepError
from orchestrator.store.reading import retrying


@dataclass(frozen=True, eq=False)
class Loaded:
    """Image `index` of a source: pixels uint8 (H, W, 3) and attributes, or the reason why it was not loaded."""

    index: int
    image_id: str
    image: np.ndarray | None
    attributes: Mapping[str, Any]
    reason: str | None = None
    prompt: str | None = None
    """Prompt of this image; None for `capture.prompt`."""
    more: Sequence[np.ndarray] = ()
    """Further images of the same question, in order."""
    boxes: Boxes | None = None
    """Boxes of its objects; None where they are not known."""

    @property
    def pictures(self) -> np.ndarray | list[np.ndarray] | None:
        """All images of the question; the one itself where there is one."""
        return [self.image, *self.more] if self.image is not None and self.more else self.image


def shard_range(shard: int, shard_size: int, n_images: int) -> range:
    """Indices in the source of the images of a shard."""
    return range(shard * shard_size, min((shard + 1) * shard_size, n_images))


def load_shard(source: Source, indices: Sequence[int]) -> list[Loaded]:
    """Load the images at `indices`, in order.

    Raises:
        StorageError: a fault of the machine or network persists after retries. It is no property of the image,
            so that the image is not recorded as rejected and the stage ends.
    """
    return [_load(source, index) for index in indices]


def _load(source: Source, index: int) -> Loaded:
    try:
        sample = retrying(lambda: source.load(index), str(source.ids[index]))
    except StorageError:
        raise
    except Exception as error:  # any fault of one image is recorded; the share is bounded
        return Loaded(index, source.ids[index], None, {}, describe(error))
    facts = (sample.image, sample.attributes, None, sample.prompt, sample.more, sample_boxes(sample))
    return Loaded(index, sample.image_id, *facts)


def describe(error: BaseException) -> str:
    """One line for the table `rejected`: the message of a `VtsweepError`; type and message of any other error."""
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, VtsweepError) else f"{type(error).__name__}: {text}".rstrip(": ")


# ---------------------------------------------------------------- serialization between processes


def to_row(shard: int, images: Sequence[Loaded]) -> pa.Table:
    """A shard as one Arrow row, so that no block boundary splits it: columns `shard`, `pixels`, `facts` (JSON)."""
    shown = [[] if item.image is None else [item.image, *item.more] for item in images]
    pixels = [np.ascontiguousarray(image).tobytes() for pictures in shown for image in pictures]
    facts = [
        {
            "index": item.index,
            "image_id": item.image_id,
            "shapes": [image.shape for image in pictures],
            "attributes": dict(item.attributes),
            "reason": item.reason,
            "prompt": item.prompt,
            "boxes": None if item.boxes is None else item.boxes.edges.tolist(),
        }
        for item, pictures in zip(images, shown, strict=True)
    ]
    return pa.table(
        {
            "shard": pa.array([shard], pa.int64()),
            "pixels": pa.array([pixels], pa.list_(pa.large_binary())),
            "facts": pa.array([json.dumps(facts)], pa.large_string()),
        }
    )


def from_row(table: pa.Table) -> tuple[int, list[Loaded]]:
    """The inverse of `to_row`; the images are read-only views of the row's memory."""
    pixels = table["pixels"].combine_chunks()[0].values
    images, place = [], 0
    for fact in json.loads(table["facts"][0].as_py()):
        pictures = []
        for shape in fact["shapes"]:
            pictures.append(np.frombuffer(pixels[place].as_buffer(), dtype=np.uint8).reshape(shape))
            place += 1
        boxes = None
        if fact["boxes"] is not None and pictures:
            height, width = pictures[0].shape[:2]
            boxes = Boxes(np.array(fact["boxes"], dtype=np.float64).reshape(-1, 4), (height, width))
        facts = (fact["attributes"], fact["reason"], fact["prompt"], pictures[1:], boxes)
        images.append(Loaded(fact["index"], fact["image_id"], pictures[0] if pictures else None, *facts))
    return table["shard"][0].as_py(), images
