"""A question file as a source: one row a sample, with its own prompt."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, overload

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from orchestrator.config import QuestionsConfig
from orchestrator.data.attributes import Kind
from orchestrator.data.content import content_digest
from orchestrator.data.files.index import VERSION, Index, Shape, as_number, build_index, files_digest
from orchestrator.data.files.layouts import ENTRY_POINT_GROUP, Files, find_layout
from orchestrator.data.images import decode, read_image, safe_name
from orchestrator.data.questions import Question
from orchestrator.data.sample import Sample
from orchestrator.errors import ConfigError, DataError, did_you_mean
from orchestrator.plugins import registered_by
from orchestrator.store.tables.core import TABLES

ROW_ATTRIBUTES: dict[str, Kind] = {
    "family": "categorical",
    "tier": "categorical",
    "complexity": "continuous",
    "group": "categorical",
}
"""Fields of the row model that are attributes too, where any row has them. `group` is written `cluster`."""


class _Ids(Sequence[str]):
    """Ids read when asked for: a million rows cost no memory."""

    def __init__(self, source: QuestionSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[str]: ...
    def __getitem__(self, place: int | slice) -> str | Sequence[str]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        return str(self.source.record(place % len(self))["id"])


class QuestionSource:
    """The rows of question files, in their order, or a draw of them.

    A row is a sample: its image, its question as the prompt, its attributes. Bad rows are samples that cannot be
    loaded, up to `max_rejected_fraction` of all.

    Raises:
        ConfigError: an unknown layout, or an attribute that no row has.
        DataError: a missing folder or file, too many bad rows, a duplicate id, or nothing left after filtering.
    """

    name = "questions"

    def __init__(self, config: QuestionsConfig) -> None:
        self.config = config
        self.layout = find_layout(config.layout)
        self.fs, self.root = fsspec.core.url_to_fs(config.root)
        if not self.fs.isdir(self.root):
            raise DataError(f"data.root: no folder {config.root}")
        self.files = [safe_name(name, "data.file") for name in config.file or self.layout.files]
        if not self.files:
            raise ConfigError(f"data.file: layout {config.layout} has no official file name; name the file")
        for name in self.files:
            if not self.fs.isfile(f"{self.root}/{name}"):
                folder = f"{self.root}/{name}".rsplit("/", 1)[0]
                there = self.fs.ls(folder, detail=False) if self.fs.isdir(folder) else []
                names = [path.rsplit("/", 1)[-1] for path in there]
                raise DataError(
                    f"data.file: {config.root} holds no {name}.{did_you_mean(name.rsplit('/', 1)[-1], names)}"
                )
        self.patterns = config.images or self.layout.images
        self.digest = files_digest(self.fs, self.root, self.files)
        self.chosen = self._choose()
        self.attribute_kinds: Mapping[str, Kind] = self._kinds()
        self.ids: Sequence[str] = _Ids(self)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("index", "_pictures")}

    @cached_property
    def index(self) -> Index:
        """The checked rows; made again from the files on a machine that does not have them."""
        key = {"files": self.digest, "layout": self.config.layout, **self._registered()}
        files = Files(self.fs, {name: f"{self.root}/{name}" for name in self.files})
        shape = Shape(self.config.fields, self.config.attributes, self.config.missing)
        return Index(build_index(key, files, self.layout, shape))

    def _registered(self) -> dict[str, Any]:
        packages = registered_by(ENTRY_POINT_GROUP, [self.config.layout])
        return {"package": packages} if packages else {}

    def _choose(self) -> np.ndarray:
        """Places of the chosen rows, ascending."""
        config, index = self.config, self.index
        self.rejected_rows = index.check(config.max_rejected_fraction)
        keep = np.ones(len(index), dtype=bool)
        for key, wanted in (("family", config.families), ("split", config.splits)):
            if wanted is None:
                continue
            values = index.column(key)
            known = [value for value in pc.unique(values).to_pylist() if value is not None]
            for one in wanted:
                if one not in known:
                    raise ConfigError(f"data.{key}: no row has {one!r}.{did_you_mean(one, known)}")
            keep &= pc.is_in(values, value_set=pa.array(wanted)).to_numpy(zero_copy_only=False)
        for key, wanted_value in config.where.items():
            if key not in index.kinds:
                raise ConfigError(f"data.where: no row has a field {key!r}.{did_you_mean(key, index.kinds)}")
            keep &= np.array([_has(text, key, wanted_value) for text in index.column("row").to_pylist()])
        places = np.flatnonzero(keep)
        if not len(places):
            raise DataError(f"data: no row of {len(index)} is left after filtering")
        if config.n_images is not None:
            if config.n_images > len(places):
                raise DataError(f"data.n_images: {config.n_images} asked for, {len(places)} rows found; null takes all")
            drawn = np.random.default_rng([config.seed, len(places)]).permutation(len(places))[: config.n_images]
            places = np.sort(places[drawn])
        return places

    def _kinds(self) -> dict[str, Kind]:
        kinds: dict[str, Kind] = {}
        for key, kind in ROW_ATTRIBUTES.items():
            if self.index.column(key).null_count < len(self.index):
                kinds["cluster" if key == "group" else key] = kind
        for key, kind in self.index.kinds.items():
            if key in TABLES["images"].columns or key in kinds:
                raise DataError(f"data.file: field {key!r} is one that the table of images has itself; rename it")
            kinds[key] = kind
        return kinds

    def __len__(self) -> int:
        return len(self.chosen)

    def record(self, index: int) -> dict[str, Any]:
        """The stored row of sample `index`."""
        return self.index[int(self.chosen[index])]

    def attributes(self, index: int) -> dict[str, Any]:
        """Attributes of sample `index`, without opening its image; empty for a bad row."""
        record = self.record(index)
        row = json.loads(record["row"])
        if not row:
            return {}
        free = row["attributes"]
        found = {"family": row["family"], "tier": row["tier"], "complexity": row["complexity"], "cluster": row["group"]}
        for key, kind in self.index.kinds.items():
            value = as_number(free.get(key), self.config.missing)
            found[key] = _cast(free.get(key) if kind == "categorical" and value is not None else value, kind)
        return {key: found[key] for key in self.attribute_kinds}

    def question(self, index: int, size: tuple[int, int] | None = None) -> Question:
        """The question of a row. A box or point is answered in hundredths of `size`, (width, height) in px."""
        record = self.record(index)
        if record["reason"] is not None:
            raise DataError(record["reason"])
        row = json.loads(record["row"])
        place = row["box"] or row["point"]
        answers = row["answers"]
        if place and size is not None:
            answers = [" ".join(f"{min(99, int(100 * v / size[i % 2])):02d}" for i, v in enumerate(place))]
        frequent = max(answers, key=answers.count) if answers else ""
        detail = {
            "wording": row["family"],
            "scoring": self.config.scoring or self.layout.scoring,
            "answers": answers,
            "complexity": row["complexity"],
            "group": row["group"],
            "n_objects": row["attributes"].get("n_objects"),
        }
        choices = tuple(row["choices"]) if row["choices"] else None
        image_id = row["image"] or row["id"]
        return Question(row["id"], image_id, row["family"], row["tier"], row["question"], frequent, choices, 0, detail)

    def load(self, index: int) -> Sample:
        record = self.record(index)
        if record["reason"] is not None:
            raise DataError(record["reason"])
        image = self.pixels(record)
        row = json.loads(record["row"])
        width, height = image.shape[1], image.shape[0]
        place = row["box"] or row["point"]
        if place and not (max(place[0::2]) <= width + 1 and max(place[1::2]) <= height + 1):
            raise DataError(f"{row['place']}: box or point {place} lies outside its picture of {width} x {height} px")
        return Sample(record["id"], image, self.attributes(index), prompt=row["question"])

    def pixels(self, record: Mapping[str, Any]) -> np.ndarray:
        """The image of a stored row, RGB uint8 (height, width, 3)."""
        if record["image_row"] is not None:
            return self._from_column(record["image_file"], record["image_row"])
        if record["image"] is None:
            raise DataError(f"row {record['id']}: it has no image, which capture needs")
        name = self.image_path(record["image"])
        return read_image(self.fs, f"{self.root}/{name}", name)

    def image_path(self, image: str) -> str:
        """Path of an image below the root."""
        number = re.search(r"\d{12}", image)
        filled = [
            safe_name(
                pattern.replace("{image}", image).replace("{number}", number[0] if number else image), "data.images"
            )
            for pattern in self.patterns
        ]
        if len(filled) == 1:
            return filled[0]
        return next((path for path in filled if self.fs.isfile(f"{self.root}/{path}")), filled[0])

    def _from_column(self, file: int, row: int) -> np.ndarray:
        name = self.files[file]
        value = _row_group(self.fs, f"{self.root}/{name}", self.digest, row)
        data = value.get("bytes") if isinstance(value, dict) else value
        if not data:
            raise DataError(f"{name}, row {row}: the column image holds no bytes")
        return decode(data, f"{name}, row {row}")

    def image_names(self) -> list[str]:
        """Paths of the images below the root, each once."""
        column = self.index.column("image").take(pa.array(self.chosen))
        return [self.image_path(name) for name in pc.unique(column).to_pylist() if name is not None]

    def fingerprint(self) -> dict[str, Any]:
        settings = self.config.model_dump(mode="json", exclude={"root", "max_rejected_fraction"})
        content = content_digest(self.fs, self.root, self.image_names())
        return {**settings, **self._registered(), "version": VERSION, "rows": self.digest, "images": content}


def _has(text: str, key: str, wanted: str) -> bool:
    row = json.loads(text)
    return bool(row) and str(row["attributes"].get(key)) == wanted


def _cast(value: Any, kind: Kind) -> Any:
    if value is None:
        return None
    return str(value) if kind == "categorical" else float(value) if kind == "continuous" else int(value)


@lru_cache(maxsize=4)
def _picture_groups(path: str, fs: Any, version: str) -> tuple[pq.ParquetFile, np.ndarray]:  # noqa: ARG001 - key
    file = pq.ParquetFile(fs.open(path, "rb"))
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    return file, np.concatenate([[0], np.cumsum(sizes)])


@lru_cache(maxsize=2)
def _group_values(path: str, fs: Any, version: str, group: int) -> list[Any]:
    file, _ = _picture_groups(path, fs, version)
    return file.read_row_group(group, columns=["image"])["image"].to_pylist()


def _row_group(fs: Any, path: str, version: str, row: int) -> Any:
    """The cell `image` of a row; the row group it lies in is read once."""
    _, starts = _picture_groups(path, fs, version)
    group = int(np.searchsorted(starts, row, side="right")) - 1
    return _group_values(path, fs, version, group)[row - int(starts[group])]


def open_questions(config: QuestionsConfig) -> QuestionSource:
    """`QuestionSource`, opened once a process while its files stay the same. Errors as there."""
    fs, root = fsspec.core.url_to_fs(config.root)
    names = config.file or find_layout(config.layout).files
    versions = [fs.ukey(f"{root}/{name}") if fs.isfile(f"{root}/{name}") else "" for name in names]
    return _opened(config.model_dump_json(), "/".join(versions))


@lru_cache(maxsize=4)
def _opened(config: str, version: str) -> QuestionSource:  # noqa: ARG001 - part of the key
    return QuestionSource(QuestionsConfig.model_validate_json(config))
