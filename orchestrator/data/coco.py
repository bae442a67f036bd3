"""A subset of COCO in its official layout: `annotations/instances_SPLIT.json` and images in `SPLIT/`.

The annotations are read once, where the source is made. The source keeps flat arrays of the chosen images' objects and
pickles to about 40 bytes an object, so that workers never read the JSON again. Boxes and the annotated area are used;
segmentation polygons and run-length masks are not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import fsspec
import numpy as np
import orjson

from orchestrator.config import CocoConfig
from orchestrator.data.attributes import COCO_ATTRIBUTES, Kind, coco_attributes
from orchestrator.data.images import read_image, safe_name
from orchestrator.data.sample import Sample
from orchestrator.errors import ConfigError, DataError, did_you_mean


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
        DataError: a folder or file is missing, JSON or a record is broken, a `file_name` leaves the root, or nothing
            (or less than `n_images`) is left after filtering.
        ConfigError: an unknown category.
    """

    name = "coco"
    attribute_kinds: Mapping[str, Kind] = {key: kind for key, (kind, _) in COCO_ATTRIBUTES.items()}

    def __init__(self, config: CocoConfig) -> None:
        self.config = config
        self.fs, self.root = fsspec.core.url_to_fs(config.root)
        file = _annotation_file(self.fs, self.root, config)
        data = self.fs.cat_file(f"{self.root}/{file}")
        self.digest = hashlib.sha256(data).hexdigest()
        document = _parse(data, file)
        del data
        self.categories, self.supercategories, numbers = _categories(document, file)
        table = _objects(document, file, numbers)
        records = _records(document, "images", file, ("id", "file_name", "width", "height"))
        images = {_whole(record["id"], f"{file}: image id"): record for record in records}
        if len(images) < len(records):
            raise DataError(f"{file}: an image id stands twice")
        chosen = self._choose(np.array(sorted(images), dtype=np.int64), table)
        self.ids: Sequence[str] = [f"{config.split}-{image:012d}" for image in chosen.tolist()]
        self.names = [safe_name(str(images[i]["file_name"]), f"{file}, image {i}") for i in chosen.tolist()]
        self.sizes = np.array([_size(images[i], f"{file}, image {i}") for i in chosen.tolist()], dtype=np.int32)
        order = np.argsort(table.image, kind="stable")
        first = np.searchsorted(table.image[order], chosen, side="left")
        last = np.searchsorted(table.image[order], chosen, side="right")
        rows = np.concatenate([order[a:b] for a, b in zip(first, last, strict=True)])
        self.starts = np.concatenate([[0], np.cumsum(last - first)])
        self.category, self.crowd = table.category[rows], table.crowd[rows]
        self.box, self.area = table.box[rows], table.area[rows]

    def _choose(self, images: np.ndarray, table: _Table) -> np.ndarray:
        """Return the ids of the chosen images, sorted. A smaller `n_images` chooses a subset of a larger one."""
        config = self.config
        plain = table.image[~table.crowd]
        where = np.searchsorted(images, plain).clip(max=len(images) - 1)
        known = images[where] == plain
        if not known.any():
            raise DataError(f"instances_{config.split}.json: no annotation belongs to a listed image")
        keep = np.bincount(where[known], minlength=len(images)) >= config.min_objects
        if config.categories is not None:
            for name in config.categories:
                if name not in self.categories:
                    raise ConfigError(
                        f"data.categories: unknown category {name!r}.{did_you_mean(name, self.categories)}"
                    )
            wanted = [self.categories.index(name) for name in config.categories]
            has = known & np.isin(table.category[~table.crowd], wanted)
            keep &= np.bincount(where[has], minlength=len(images)) > 0
        found = images[keep]
        if not len(found):
            raise DataError(
                f"data: zero images of {config.split} are left of {len(images)} after filtering by min_objects="
                f"{config.min_objects} and categories={config.categories}"
            )
        if config.n_images is None:
            return found
        if config.n_images > len(found):
            raise DataError(
                f"data.n_images: {config.n_images} asked for, {len(found)} found in {config.split}; null takes all"
            )
        drawn = np.random.default_rng([config.seed, len(found)]).permutation(len(found))[: config.n_images]
        return np.sort(found[drawn])

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
        name = f"{self.config.split}/{self.names[index]}"
        image = read_image(self.fs, f"{self.root}/{name}", name)
        width, height = self.sizes[index].tolist()
        if image.shape[:2] != (height, width):
            found = f"{image.shape[1]} x {image.shape[0]}"
            raise DataError(f"{name}: image is {found} px, its annotation says {width} x {height}")
        return Sample(self.ids[index], image, self.attributes(index), objects=self.objects(index))

    def fingerprint(self) -> dict[str, Any]:
        settings = self.config.model_dump(mode="json", exclude={"root", "max_rejected_fraction"})
        return {**settings, "annotations": self.digest}


def _whole(value: Any, place: str) -> int:
    if not isinstance(value, int):
        raise DataError(f"{place}: expected a whole number, found {value!r}")
    return value


def _size(record: Mapping[str, Any], place: str) -> tuple[int, int]:
    size = record["width"], record["height"]
    if not all(isinstance(side, int | float) and side >= 1 and side == int(side) for side in size):
        raise DataError(f"{place}: expected a width and height of 1 px or more, found {size[0]!r} x {size[1]!r}")
    return int(size[0]), int(size[1])


class _Table(NamedTuple):
    """All annotations of a file as columns."""

    image: np.ndarray
    category: np.ndarray
    crowd: np.ndarray
    box: np.ndarray
    area: np.ndarray


def open_coco(config: CocoConfig) -> CocoSource:
    """`CocoSource`, read once a process: the official training annotations take half a minute. Errors as there."""
    fs, root = fsspec.core.url_to_fs(config.root)
    return _opened(config.model_dump_json(), fs.ukey(f"{root}/{_annotation_file(fs, root, config)}"))


@lru_cache(maxsize=2)
def _opened(config: str, version: str) -> CocoSource:  # noqa: ARG001 - part of the key
    """`version` changes with the annotation file."""
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
    if not fs.isdir(f"{root}/{config.split}"):
        raise DataError(f"data.root: {config.root} holds no image folder `{config.split}`")
    return file


def _parse(data: bytes, file: str) -> dict[str, Any]:
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise DataError(f"{file}: broken JSON: {error}") from None
    if not isinstance(document, dict):
        raise DataError(f"{file}: expected an object with images, annotations and categories")
    return document


def _records(document: dict[str, Any], key: str, file: str, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    records = document.get(key)
    if not isinstance(records, list):
        raise DataError(f"{file}: expected a list under {key!r}; found keys {sorted(document)}")
    if not records:
        raise DataError(f"{file}: no {key}")
    for number, record in enumerate(records):
        if not isinstance(record, dict) or any(f not in record for f in fields):
            have = sorted(record) if isinstance(record, dict) else record
            raise DataError(f"{file}: {key}[{number}]: expected the fields {list(fields)}, found {have}")
    return records


def _categories(document: dict[str, Any], file: str) -> tuple[list[str], list[str], dict[int, int]]:
    records = _records(document, "categories", file, ("id", "name"))
    names = [str(r["name"]) for r in records]
    numbers = {_whole(r["id"], f"{file}: category id"): i for i, r in enumerate(records)}
    return names, [str(r.get("supercategory", r["name"])) for r in records], numbers


def _objects(document: dict[str, Any], file: str, numbers: dict[int, int]) -> _Table:
    records = _records(document, "annotations", file, ("image_id", "category_id", "bbox"))
    try:
        category = np.array([numbers[r["category_id"]] for r in records], dtype=np.int16)
        box = np.array([r["bbox"] for r in records], dtype=np.float64).reshape(len(records), 4)
        area = np.array([r.get("area", r["bbox"][2] * r["bbox"][3]) for r in records], dtype=np.float64)
        image = np.array([r["image_id"] for r in records], dtype=np.int64)
        crowd = np.array([r.get("iscrowd", 0) for r in records], dtype=bool)
    except KeyError as error:
        raise DataError(f"{file}: an annotation names category {error}, which `categories` lacks") from None
    except (TypeError, ValueError, IndexError) as error:
        raise DataError(
            f"{file}: an annotation is malformed; expected bbox [x, y, width, height] in px, area and image_id as "
            f"numbers: {error}"
        ) from None
    # NumPy makes NaN of a null.
    odd = ~np.isfinite(box).all(1) | (box[:, 2:] < 0).any(1) | ~(area >= 0)
    if odd.any():
        record = records[int(odd.argmax())]
        raise DataError(
            f"{file}: a box or area is not a number or is negative: bbox {record['bbox']}, area {record.get('area')}, "
            f"image {record['image_id']}"
        )
    return _Table(image, category, crowd, box, area)
