"""The rows of question files as a table: selection, columns and clusters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, overload

import fsspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.config import QuestionsConfig
from orchestrator.data.attributes import Kind
from orchestrator.data.clusters import CLUSTER
from orchestrator.data.files.extraction import find_extractor
from orchestrator.data.files.index import Index, build_index, files_digest
from orchestrator.data.files.kinds import as_number
from orchestrator.data.files.layouts import Files
from orchestrator.data.files.pictures import Pictures
from orchestrator.data.files.published import ENTRY_POINT_GROUP, find_layout
from orchestrator.data.files.scoring import check_rule
from orchestrator.data.files.table import Shape
from orchestrator.data.images import safe_name
from orchestrator.data.sample import N_IMAGES
from orchestrator.errors import ConfigError, DataError, did_you_mean
from orchestrator.plugins import registered_by
from orchestrator.store.tables.core import TABLES

ROW_ATTRIBUTES: dict[str, Kind] = {
    "family": "categorical",
    "tier": "categorical",
    "complexity": "continuous",
    "group": "categorical",
}
"""Fields of the row model that are attributes too if any row has them. The attribute of `group` is `cluster`, which
also exists if one image has several rows (`QuestionSource.clusters`)."""


class ImageCounts(NamedTuple):
    """Rows by their number of images."""

    n_without: int
    n_several: int
    most: int
    """Maximum number of images of a row."""
    first_without: str
    first_several: str
    """File and line; empty without one."""


class _Ids(Sequence[str]):
    """Ids, read on access to save memory."""

    def __init__(self, source: QuestionRows) -> None:
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


class QuestionRows:
    """The rows of question files in order, or a random sample of them.

    Raises:
        ConfigError: an unknown layout, or an attribute that no row has.
        DataError: a missing folder or file, too many bad rows, a duplicate id, or no rows left after filtering.
    """

    def __init__(self, config: QuestionsConfig) -> None:
        self.config = config
        self.layout = find_layout(config.layout)
        self.scoring = config.scoring or self.layout.scoring
        check_rule(self.scoring)
        if config.extract is not None:
            find_extractor(config.extract)
        self.fs, self.root = fsspec.core.url_to_fs(config.root)
        if not self.fs.isdir(self.root):
            raise DataError(f"data.root: no folder {config.root}")
        self.files = [safe_name(name, "data.file") for name in config.file or self.layout.files]
        if not self.files:
            raise ConfigError(f"data.file: layout {config.layout} has no official file name; name the file")
        for name in self.files:
            if not self.fs.isfile(f"{self.root}/{name}"):
                folder = f"{self.root}/{name}".rsplit("/", 1)[0]
                listed = self.fs.ls(folder, detail=False) if self.fs.isdir(folder) else []
                names = [path.rsplit("/", 1)[-1] for path in listed]
                raise DataError(
                    f"data.file: {config.root} holds no {name}.{did_you_mean(name.rsplit('/', 1)[-1], names)}"
                )
        self.digest = files_digest(self.fs, self.root, self.files)
        patterns = config.images or self.layout.images
        self.pictures = Pictures(self.fs, self.root, patterns, self.files, self.digest)
        self.chosen = self._choose()
        self.attribute_kinds: Mapping[str, Kind] = self._kinds()
        self.ids: Sequence[str] = _Ids(self)
        self._checked: dict[int, tuple[str | None, tuple[int, int] | None]] = {}

    def __getstate__(self) -> dict[str, Any]:
        kept = {key: value for key, value in vars(self).items() if key not in ("index", "clusters", "present")}
        return {**kept, "_checked": {}}

    @cached_property
    def index(self) -> Index:
        """The index of checked rows; built from the files on a machine without it."""
        key = {"files": self.digest, "layout": self.config.layout, **self._registered()}
        files = Files(self.fs, {name: f"{self.root}/{name}" for name in self.files})
        shape = Shape(self.config.fields, self.config.attributes, self.config.missing)
        return Index(build_index(key, files, self.layout, shape))

    def _registered(self) -> dict[str, Any]:
        packages = registered_by(ENTRY_POINT_GROUP, [self.config.layout])
        return {"package": packages} if packages else {}

    def _choose(self) -> np.ndarray:
        """Indices of the chosen rows, ascending."""
        config, index = self.config, self.index
        self.rejected_rows = index.check(config.max_rejected_fraction)
        places = self._kept(config.splits)
        if not len(places):
            raise DataError(f"data: no row of {len(index)} is left after filtering")
        if config.n_images is not None:
            if config.n_images > len(places):
                raise DataError(f"data.n_images: {config.n_images} asked for, {len(places)} rows found; null takes all")
            drawn = np.random.default_rng([config.seed, len(places)]).permutation(len(places))[: config.n_images]
            places = np.sort(places[drawn])
        return places

    def _kept(self, splits: Sequence[str] | None) -> np.ndarray:
        """Indices of the rows of some splits (None for all) that pass the other filters."""
        config, index = self.config, self.index
        keep = np.ones(len(index), dtype=bool)
        for key, chosen in (("family", config.families), ("split", splits)):
            if chosen is None:
                continue
            values = index.column(key)
            present = [value for value in pc.unique(values).to_pylist() if value is not None]
            for name in chosen:
                if name not in present:
                    raise ConfigError(f"data.{key}: no row has {name!r}.{did_you_mean(name, present)}")
            keep &= pc.is_in(values, value_set=pa.array(chosen)).to_numpy(zero_copy_only=False)
        for key, wanted_value in config.where.items():
            if key not in index.kinds:
                raise ConfigError(f"data.where: no row has a field {key!r}.{did_you_mean(key, index.kinds)}")
            keep &= np.array([value is not None and str(value) == wanted_value for value in index.attribute(key)])
        return np.flatnonzero(keep)

    def _kinds(self) -> dict[str, Kind]:
        kinds: dict[str, Kind] = {N_IMAGES: "count"} if (pc.max(self.index.column("n_images")).as_py() or 0) > 1 else {}
        for key, kind in ROW_ATTRIBUTES.items():
            if self.index.column(key).null_count < len(self.index):
                kinds[CLUSTER if key == "group" else key] = kind
        if CLUSTER not in kinds and self.columns("image")["image"].drop_nulls().is_duplicated().any():
            kinds[CLUSTER] = "categorical"
        for key, kind in self.index.kinds.items():
            if key in TABLES["images"].columns or key in kinds:
                raise DataError(f"data.file: field {key!r} is one that the table of images has itself; rename it")
            kinds[key] = kind
        return kinds

    def __len__(self) -> int:
        return len(self.chosen)

    def columns(self, *names: str, places: np.ndarray | None = None) -> pl.DataFrame:
        """Stored columns (`index.py`) of the rows with indices `places`; None for the chosen rows."""
        places = self.chosen if places is None else places  # indices are distinct: as many as rows are all rows
        table = self.index.file.read(columns=list(names))
        table = table if len(places) == len(self.index) else table.take(pa.array(places))
        return pl.DataFrame({name: pl.Series(name, table[name]) for name in names})

    def codes(self, name: str) -> tuple[np.ndarray, list[str]]:
        """A stored text column dictionary-encoded: codes int32 (n,), -1 for null, and the texts."""
        encoded = pc.dictionary_encode(self.index.column(name).combine_chunks())
        codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
        return codes[self.chosen], encoded.dictionary.to_pylist()

    def numbers(self, attribute: str, places: np.ndarray | None = None) -> np.ndarray:
        """A numeric attribute of rows (as for `columns`): float64, NaN if missing."""
        if attribute in ROW_ATTRIBUTES:
            return self.columns(attribute, places=places)[attribute].cast(pl.Float64).fill_null(np.nan).to_numpy()
        return self.index.numbers(attribute)[self.chosen if places is None else places]

    def quantiles(self, attribute: str, shares: Sequence[float]) -> list[float] | None:
        """Quantiles of a numeric attribute over the rows of all splits; None if no row has a value.

        Training and held-out rows thus have the same thresholds.
        """
        values = self.numbers(attribute, self._kept(None))
        finite = values[np.isfinite(values)]
        return np.quantile(finite, shares).tolist() if len(finite) else None

    @cached_property
    def clusters(self) -> pl.Series:
        """Cluster of each row, which a split of the rows never divides: its group, or its image.

        The image if a row has no group, or if one image belongs to several groups. Rows of several images share a
        cluster with all rows that show any of them.
        """
        table = self.columns("image", "group", "n_images")
        if table["n_images"].gt(1).any():
            table = table.with_columns(image=self._connected(table))
        if table["image"].null_count():
            table = table.with_columns(self.columns("id")["id"]).with_columns(image=pl.coalesce("image", "id"))
        if table["group"].null_count() == len(table):
            return table["image"].alias("group")
        single_group = pl.col("group").n_unique().over("image") == 1
        return table.select(pl.when(single_group.all()).then(pl.coalesce("group", "image")).otherwise("image"))["group"]

    def _connected(self, table: pl.DataFrame) -> pl.Series:
        """The first of all images that a chain of rows of several images connects with a row's own."""
        first: dict[str, str] = {}

        def root(name: str) -> str:
            while name in first:
                name = first[name]
            return name

        for index in table["n_images"].gt(1).fill_null(False).arg_true().to_list():
            names = sorted({root(name) for name in self._images(index)})  # none if they are in a Parquet column
            first |= dict.fromkeys(names[1:], *names[:1])
        return table["image"].replace({name: root(name) for name in first})

    def _place(self, index: int) -> str:
        """File and line of a valid row."""
        return json.loads(self.record(index)["row"])["place"]

    def _images(self, index: int) -> list[str]:
        return json.loads(self.record(index)["row"])["images"]

    def record(self, index: int) -> dict[str, Any]:
        """The stored row of sample `index`."""
        return self.index[int(self.chosen[index])]

    def attributes(self, index: int) -> dict[str, Any]:
        """Attributes of sample `index`, without opening its image; empty for an invalid row."""
        record = self.record(index)
        row = json.loads(record["row"])
        if not row:
            return {}
        free = row["attributes"]
        values = {"family": row["family"], "tier": row["tier"], "complexity": row["complexity"]}
        values[N_IMAGES] = record["n_images"]
        if CLUSTER in self.attribute_kinds:
            values[CLUSTER] = self.clusters[index]
        for key, kind in self.index.kinds.items():
            value = as_number(free.get(key), self.config.missing)
            values[key] = _cast(free.get(key) if kind == "categorical" and value is not None else value, kind)
        return {key: values[key] for key in self.attribute_kinds}

    def without_image(self, why: str) -> list[tuple[int, str, str]]:
        """Index, id, and file and line with the reason, of each valid row without an image."""
        counts = self.columns("n_images", "reason")
        rows = ((counts["n_images"] == 0) & counts["reason"].is_null()).fill_null(False).arg_true().to_numpy()
        if not len(rows):
            return []
        stored = self.columns("id", "row", places=self.chosen[rows]).iter_rows()
        return [
            (int(i), name, f"{json.loads(row)['place']}: it has no image; {why}")
            for i, (name, row) in zip(rows, stored, strict=True)
        ]

    def image_counts(self) -> ImageCounts:
        """Numbers of rows without an image and with several, and file and line of the first of each."""
        counts = self.columns("n_images", "reason")
        counts = counts.with_columns(index=pl.int_range(len(counts))).filter(pl.col("reason").is_null())
        none, several = (
            counts.filter(condition)["index"] for condition in (pl.col("n_images") == 0, pl.col("n_images") > 1)
        )
        places = [
            json.loads(self.record(int(first[0]))["row"])["place"] if len(first) else "" for first in (none, several)
        ]
        return ImageCounts(len(none), len(several), counts.select(pl.col("n_images").max()).item() or 0, *places)


def _cast(value: Any, kind: Kind) -> Any:
    if value is None:
        return None
    return str(value) if kind == "categorical" else float(value) if kind == "continuous" else int(value)
