"""A subset of COCO in its official layout: `annotations/instances_SPLIT.json` and images in `SPLIT/`.

The annotations are read once, when the source is created. The source keeps flat arrays of the chosen images' objects,
pickled to about 40 bytes per object, so that workers do not read the JSON. Boxes and the annotated area are used;
segmentation polygons and run-length masks are not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import fsspec
import numpy as np

from orchestrator.config import CocoConfig
from orchestrator.data.attributes import COCO_ATTRIBUTES, Kind, coco_attributes
from orchestrator.data.coco_annotations import Annotations, parse, read_annotations, read_categories, read_images
from orchestrator.data.content import content_digest
from orchestrator.data.images import read_image
from orchestrator.data.sample import Sample
from orchestrator.errors import ConfigError, DataError, did_you_mean
from orchestrator.store.reading import read_bytes

COCO_VERSION = 2
"""Incremented whenever the same folder gives different images or attributes; part of the fingerprint."""


class CocoObject(NamedTuple):
    """One annotation: box from the top left in px, annotated area in px^2, and whether it marks a crowd."""

    category: str
    supercategory: str
    x: float
    y: float
    width: float
    height: float
    area: float
    crowd: bool


class CocoSource:
    """The chosen images of a COCO folder, ordered by image id.

    Raises:
        DataError: a folder or file is missing, JSON or a record is broken (`coco_annotations`), or no images (or
            fewer than `n_images`) remain after filtering.
        ConfigError: an unknown category.
    """

    name = "coco"
    attribute_kinds: Mapping[str, Kind] = {key: kind for key, (kind, _) in COCO_ATTRIBUTES.items()}

    def __init__(self, config: CocoConfig) -> None:
        self.config = config
        self.fs, self.root = fsspec.core.url_to_fs(config.root)
        file = _annotation_file(self.fs, self.root, config)
        data = read_bytes(self.fs, f"{self.root}/{file}", file)
        self.digest = hashlib.sha256(data).hexdigest()
        self.folder = _image_folder(self.fs, self.root, config)
        document = parse(data, file)
        del data
        self.categories, self.supercategories, numbers = read_categories(document, file)
        images = read_images(document, file)
        table = read_annotations(document, file, numbers, {number: entry.size for number, entry in images.items()})
        chosen = self._choose(np.array(sorted(images), dtype=np.int64), table)
        self.ids: Sequence[str] = [f"{config.split}-{image:012d}" for image in chosen.tolist()]
        self.names = [images[i].name for i in chosen.tolist()]
        self.sizes = np.array([images[i].size for i in chosen.tolist()], dtype=np.int32)
        order = np.argsort(table.image, kind="stable")
        first = np.searchsorted(table.image[order], chosen, side="left")
        last = np.searchsorted(table.image[order], chosen, side="right")
        rows = np.concatenate([order[a:b] for a, b in zip(first, last, strict=True)])
        self.starts = np.concatenate([[0], np.cumsum(last - first)])
        self.category, self.crowd = table.category[rows], table.crowd[rows]
        self.box, self.area = table.box[rows], table.area[rows]

    def _choose(self, images: np.ndarray, table: Annotations) -> np.ndarray:
        """Return the ids of the chosen images, sorted. A smaller `n_images` gives a subset of a larger one."""
        config = self.config
        plain = table.image[~table.crowd]
        positions = np.searchsorted(images, plain).clip(max=len(images) - 1)
        is_plain = images[positions] == plain
        if not is_plain.any():
            raise DataError(f"instances_{config.split}.json: no annotation belongs to a listed image")
        keep = np.bincount(positions[is_plain], minlength=len(images)) >= config.min_objects
        if config.categories is not None:
            for name in config.categories:
                if name not in self.categories:
                    raise ConfigError(
                        f"data.categories: unknown category {name!r}.{did_you_mean(name, self.categories)}"
                    )
            category_numbers = [self.categories.index(name) for name in config.categories]
            has = is_plain & np.isin(table.category[~table.crowd], category_numbers)
            keep &= np.bincount(positions[has], minlength=len(images)) > 0
        chosen_ids = images[keep]
        if not len(chosen_ids):
            raise DataError(
                f"data: zero images of {config.split} are left of {len(images)} after filtering by min_objects="
                f"{config.min_objects} and categories={config.categories}"
            )
        if config.n_images is None:
            return chosen_ids
        if config.n_images > len(chosen_ids):
            raise DataError(
                f"data.n_images: {config.n_images} asked for, {len(chosen_ids)} found in {config.split}; null takes all"
            )
        drawn = np.random.default_rng([config.seed, len(chosen_ids)]).permutation(len(chosen_ids))[: config.n_images]
        return np.sort(chosen_ids[drawn])

    def __len__(self) -> int:
        return len(self.ids)

    def objects(self, index: int) -> list[CocoObject]:
        """Return all annotations of an image, crowds included."""
        rows = slice(int(self.starts[index]), int(self.starts[index + 1]))
        columns = (self.category[rows], self.box[rows], self.area[rows], self.crowd[rows])
        return [
            CocoObject(self.categories[c], self.supercategories[c], x, y, width, height, area, crowd)
            for c, (x, y, width, height), area, crowd in zip(*(column.tolist() for column in columns), strict=True)
        ]

    def attributes(self, index: int) -> dict[str, Any]:
        """Return the attributes of an image without opening its file."""
        rows = slice(int(self.starts[index]), int(self.starts[index + 1]))
        plain = ~self.crowd[rows]
        kinds = self.category[rows][plain].tolist()
        width, height = self.sizes[index].tolist()
        return coco_attributes(
            self.box[rows][plain],
            self.area[rows][plain],
            [self.categories[c] for c in kinds],
            [self.supercategories[c] for c in kinds],
            width,
            height,
            int((~plain).sum()),
        )

    def load(self, index: int) -> Sample:
        name = f"{self.folder}/{self.names[index]}"
        width, height = self.sizes[index].tolist()
        exif = self.config.exif
        size = (width, height) if exif == "auto" else None
        image = read_image(self.fs, f"{self.root}/{name}", name, turn=exif == "turn", size=size)
        if image.shape[:2] != (height, width):
            decoded_size = f"{image.shape[1]} x {image.shape[0]}"
            raise DataError(
                f"{name}: image is {decoded_size} px (data.exif: {exif}), its annotation says {width} x {height}"
            )
        return Sample(self.ids[index], image, self.attributes(index), objects=self.objects(index))

    def fingerprint(self) -> dict[str, Any]:
        settings = self.config.model_dump(mode="json", exclude={"root", "max_rejected_fraction"})
        listed_in = f"instances_{self.config.split}.json"
        content = content_digest(self.fs, f"{self.root}/{self.folder}", self.names, listed_in)
        return {**settings, "version": COCO_VERSION, "annotations": self.digest, "images": content}


def open_coco(config: CocoConfig) -> CocoSource:
    """`CocoSource`, cached per process: reading the official training annotations takes half a minute. Raises as it
    does."""
    fs, root = fsspec.core.url_to_fs(config.root)
    return _opened(config.model_dump_json(), fs.ukey(f"{root}/{_annotation_file(fs, root, config)}"))


@lru_cache(maxsize=2)
def _opened(config: str, version: str) -> CocoSource:  # noqa: ARG001 - part of the key
    """`version` depends on the annotation file."""
    return CocoSource(CocoConfig.model_validate_json(config))


def _annotation_file(fs: Any, root: str, config: CocoConfig) -> str:
    if not fs.isdir(root):
        raise DataError(f"data.root: no folder {config.root}")
    if not fs.isdir(f"{root}/annotations"):
        raise DataError(f"data.root: {config.root} holds no folder `annotations`; expected COCO's official layout")
    file = f"annotations/instances_{config.split}.json"
    if not fs.isfile(f"{root}/{file}"):
        names = [path.rsplit("/", 1)[-1] for path in fs.ls(f"{root}/annotations", detail=False)]
        splits = [n[len("instances_") : -len(".json")] for n in names if n.startswith("instances_")]
        raise DataError(f"data.split: {config.root} holds no {file}.{did_you_mean(config.split, splits)}")
    return file


def _image_folder(fs: Any, root: str, config: CocoConfig) -> str:
    """`SPLIT`, or `images/SPLIT` as in the layout of some tools."""
    folders = (config.split, f"images/{config.split}")
    for folder in folders:
        if fs.isdir(f"{root}/{folder}"):
            return folder
    raise DataError(f"data.root: {config.root} holds no image folder `{folders[0]}` or `{folders[1]}`")
