"""Sizes of a source's pictures and places of what is asked about in them, without decoding a picture."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from orchestrator.data.coco import CocoSource
from orchestrator.data.files.source import QuestionSource
from orchestrator.data.folder import FolderSource
from orchestrator.data.images import TRANSPOSING, orientation_of
from orchestrator.data.sample import Source
from orchestrator.data.source import ScenesSource
from orchestrator.errors import DataError

MAX_OPENED = 1_000
"""Files whose header is read; of larger sources as many, evenly spaced."""
MAX_FETCHED = 50
"""The same where files do not lie on a disk of this machine, or are cells of a table."""

Size = tuple[int, int]
"""(height, width), px."""
Box = tuple[float, float, float, float]
"""Corners (x0, y0, x1, y1), px; those of a point are equal."""


def distinct_sizes(source: Source) -> list[Size]:
    """Return the sizes that pictures have: all of scenes and COCO, those of files looked at otherwise."""
    inner: Any = getattr(source, "source", source)
    if isinstance(inner, CocoSource):
        return [(int(height), int(width)) for width, height in np.unique(inner.sizes, axis=0)]
    return sorted(set(picture_sizes(inner).values()))


def picture_sizes(source: Source) -> dict[int, Size]:
    """Return the size of pictures spread over a source, by their place in it; what cannot be read is left out."""
    inner: Any = getattr(source, "source", source)
    if isinstance(inner, ScenesSource):
        size = (inner.config.height, inner.config.width)
        return dict.fromkeys(_spread(len(inner), MAX_OPENED), size)
    if isinstance(inner, CocoSource):
        return {i: (int(inner.sizes[i][1]), int(inner.sizes[i][0])) for i in _spread(len(inner), MAX_OPENED)}
    if isinstance(inner, FolderSource):
        places = _spread(len(inner), _most(inner.fs))
        sizes = {i: header_size(inner.fs, f"{inner.root}/{inner.names[i]}") for i in places}
    elif isinstance(inner, QuestionSource):
        sizes = dict(_of_rows(inner))
    else:
        return {}
    return {i: size for i, size in sizes.items() if size is not None}


def _of_rows(source: QuestionSource) -> Iterator[tuple[int, Size | None]]:
    opened: dict[str, Size | None] = {}
    for place in _spread(len(source), _most(source.fs)):
        record = source.record(place)
        if record["reason"] is not None or not record["n_images"]:
            continue
        if record["image_row"] is None:
            path = f"{source.root}/{source.pictures.path(record['image'])}"
            if path not in opened:
                opened[path] = header_size(source.fs, path)
            yield place, opened[path]
        elif len(opened) < MAX_FETCHED:
            try:
                size = source.pictures.pixels(record, ())[0].shape[:2]
            except DataError:
                continue
            opened[str(place)] = size[0], size[1]
            yield place, opened[str(place)]


def asked_places(source: Source, index: int) -> list[Box]:
    """Return where the objects of a picture are that truths speak of, or the box or point a row asks for."""
    inner: Any = getattr(source, "source", source)
    if isinstance(inner, CocoSource):
        return [(o.x, o.y, o.x + o.width, o.y + o.height) for o in inner.objects(index) if not o.crowd]
    if isinstance(inner, QuestionSource):
        row = json.loads(inner.record(index)["row"]) or {}
        places: Sequence[float] = row.get("box") or row.get("point") or ()
        return [(places[0], places[1], places[-2], places[-1])] if len(places) in (2, 4) else []
    return []


def header_size(fs: Any, path: str) -> Size | None:
    """Return the (height, width) of an image file as it is decoded, from its header; None where it cannot be read."""
    try:
        with fs.open(path, "rb") as stream, Image.open(stream) as image:
            width, height = image.size
            turned = orientation_of(image) in TRANSPOSING
    except Exception:  # whatever is wrong with it is said where it is decoded
        return None
    return (width, height) if turned else (height, width)


def _most(fs: Any) -> int:
    protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    return MAX_OPENED if protocol in ("file", "local", "memory") else MAX_FETCHED


def _spread(n: int, limit: int) -> list[int]:
    return np.linspace(0, n - 1, min(n, limit)).round().astype(int).tolist()
