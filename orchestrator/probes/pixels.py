"""Pixel baseline: downsampled images as a feature matrix, and a content key of each image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

from orchestrator.data.sample import Source
from orchestrator.probes.split import content_keys

SIDE = 16
"""Side of the thumbnail, px: 768 features, comparable to a model's width."""


def thumbnail(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "16 16 3"]:
    """`image` downsampled by area averaging to 16 x 16 pixels."""
    return cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def load_pixels(
    source: Source, indices: Sequence[int], tick: Callable[[], None]
) -> tuple[UInt8[np.ndarray, "n 16 16 3"], list[str]]:
    """Thumbnails of a source's images, and the key of each image's full content (equal only for equal images)."""
    thumbnails, keys = [], []
    for index in indices:
        image = source.load(index).image
        thumbnails.append(thumbnail(image))
        keys += content_keys(image[None])
        tick()
    return np.stack(thumbnails), keys
