"""One image with what is known of it, and the protocol of every source of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from orchestrator.data.attributes import Kind
from orchestrator.data.scenes import Scene

N_IMAGES = "n_images"
"""Attribute of sources whose samples may have several images: their number."""


@dataclass(frozen=True)
class Sample:
    """One image with what is known of it."""

    image_id: str
    image: np.ndarray
    """RGB, uint8, (height, width, 3)."""
    attributes: Mapping[str, Any]
    scene: Scene | None = None
    """The ground truth of a synthetic image."""
    objects: Sequence[Any] | None = None
    """The objects of a COCO image (`coco.CocoObject`)."""
    prompt: str | None = None
    """What is asked of this image; the study's own prompt when absent."""
    more: Sequence[np.ndarray] = ()
    """Further images of the same question, in order, as `image`."""

    @property
    def pictures(self) -> np.ndarray | list[np.ndarray]:
        """All images of the question; the one itself where there is one."""
        return [self.image, *self.more] if self.more else self.image


class Source(Protocol):
    """A numbered set of images. Sources pickle small: they carry names and numbers, never pixels."""

    name: str
    """`scenes`, `coco`, `folder` or `questions`."""
    ids: Sequence[str]
    """Unique id of each image, in order."""
    attribute_kinds: Mapping[str, Kind]

    def __len__(self) -> int: ...

    def attributes(self, index: int) -> Mapping[str, Any]:
        """Attributes of image `index`, without opening its file."""
        ...

    def load(self, index: int) -> Sample:
        """Load image `index`; DataError, naming the file and the reason, for a missing or broken one.

        StorageError where the machine or network fails: that says nothing of the file.
        """
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Identify the content, free of absolute paths: settings, a digest of the annotations or the table, and one of
        every image file (`content.content_digest`).
        """
        ...
