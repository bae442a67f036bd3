"""Images of a shard, loaded one by one; a broken one becomes a reason instead of an error."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.data.reading import retrying
from orchestrator.data.sample import Source
from orchestrator.errors import StorageError, VtsweepError


@dataclass(frozen=True, eq=False)
class Loaded:
    """Image `index` of a source: pixels uint8 (H, W, 3) and attributes, or why there are none."""

    index: int
    image_id: str
    image: np.ndarray | None
    attributes: Mapping[str, Any]
    reason: str | None = None
    prompt: str | None = None
    """What is asked of this image; the study's own prompt when absent."""


def shard_range(shard: int, shard_size: int, n_images: int) -> range:
    """Places in the source of a shard's images."""
    return range(shard * shard_size, min((shard + 1) * shard_size, n_images))


def load_shard(source: Source, indices: Sequence[int]) -> list[Loaded]:
    """Load the images at `indices`, in order.

    Raises:
        StorageError: a fault of the machine or network that stays after some attempts. It says nothing of the image,
            so that nothing is recorded and the stage ends.
    """
    return [_load(source, index) for index in indices]


def _load(source: Source, index: int) -> Loaded:
    try:
        sample = retrying(lambda: source.load(index), str(source.ids[index]))
    except StorageError:
        raise
    except Exception as error:  # whatever is wrong with one image is recorded, and the share of such images is bounded
        return Loaded(index, source.ids[index], None, {}, describe(error))
    return Loaded(index, sample.image_id, sample.image, sample.attributes, prompt=sample.prompt)


def describe(error: BaseException) -> str:
    """One line for the table `rejected`: the message of our own errors, with its type for any other."""
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, VtsweepError) else f"{type(error).__name__}: {text}".rstrip(": ")


# ---------------------------------------------------------------- between processes


def to_row(shard: int, images: Sequence[Loaded]) -> pa.Table:
    """A shard as one Arrow row, so that no block boundary can cut it: columns `shard`, `pixels` and `facts` (JSON)."""
    pixels = [b"" if one.image is None else np.ascontiguousarray(one.image).tobytes() for one in images]
    facts = [
        {
            "index": one.index,
            "image_id": one.image_id,
            "shape": None if one.image is None else one.image.shape,
            "attributes": dict(one.attributes),
            "reason": one.reason,
            "prompt": one.prompt,
        }
        for one in images
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
    images = []
    for place, fact in enumerate(json.loads(table["facts"][0].as_py())):
        image = None
        if fact["shape"] is not None:
            image = np.frombuffer(pixels[place].as_buffer(), dtype=np.uint8).reshape(fact["shape"])
        facts = (fact["attributes"], fact["reason"], fact["prompt"])
        images.append(Loaded(fact["index"], fact["image_id"], image, *facts))
    return table["shard"][0].as_py(), images
