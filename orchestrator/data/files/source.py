"""A question file as a source: one row a sample, with its own prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, overload

import fsspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.config import QuestionsConfig
from orchestrator.data.attributes import Kind
from orchestrator.data.clusters import CLUSTER
from orchestrator.data.content import content_digest
from orchestrator.data.files.asking import check_place, make_question, prompt_of
from orchestrator.data.files.extraction import ENTRY_POINT_GROUP as EXTRACTION_GROUP
from orchestrator.data.files.extraction import find_extractor
from orchestrator.data.files.index import MAX_NAMED, VERSION, Index, Shape, as_number, build_index, files_digest
from orchestrator.data.files.layouts import ENTRY_POINT_GROUP, Files, find_layout
from orchestrator.data.files.pictures import Pictures
from orchestrator.data.files.scoring import check_rule
from orchestrator.data.images import safe_name
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
"""Fields of the row model that are attributes too, where any row has them. For `group` stands `cluster`, which is there
too where one image has several rows (`QuestionSource.clusters`)."""


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
                there = self.fs.ls(folder, detail=False) if self.fs.isdir(folder) else []
                names = [path.rsplit("/", 1)[-1] for path in there]
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
        """The checked rows; made again from the files on a machine that does not have them."""
        key = {"files": self.digest, "layout": self.config.layout, **self._registered()}
        files = Files(self.fs, {name: f"{self.root}/{name}" for name in self.files})
        shape = Shape(self.config.fields, self.config.attributes, self.config.missing)
        return Index(build_index(key, files, self.layout, shape))

    def _registered(self) -> dict[str, Any]:
        packages = registered_by(ENTRY_POINT_GROUP, [self.config.layout])
        return {"package": packages} if packages else {}

    def _extraction(self) -> dict[str, Any]:
        packages = registered_by(EXTRACTION_GROUP, [self.config.extract] if self.config.extract else [])
        return {"answers": packages} if packages else {}

    def _choose(self) -> np.ndarray:
        """Places of the chosen rows, ascending."""
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
        """Places of the rows of some splits (all when absent) that the other filters keep."""
        config, index = self.config, self.index
        keep = np.ones(len(index), dtype=bool)
        for key, wanted in (("family", config.families), ("split", splits)):
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
            keep &= np.array([value is not None and str(value) == wanted_value for value in index.attribute(key)])
        return np.flatnonzero(keep)

    def _kinds(self) -> dict[str, Kind]:
        kinds: dict[str, Kind] = {}
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
        """Stored columns (`index.py`) of the rows at `places` of the files; of the chosen rows when absent."""
        table = self.index.file.read(columns=list(names)).take(pa.array(self.chosen if places is None else places))
        return pl.DataFrame({name: pl.Series(name, table[name]) for name in names})

    def numbers(self, attribute: str, places: np.ndarray | None = None) -> np.ndarray:
        """A numeric attribute of rows, as `columns` takes them: float64, NaN where it is missing."""
        if attribute in ROW_ATTRIBUTES:
            return self.columns(attribute, places=places)[attribute].cast(pl.Float64).fill_null(np.nan).to_numpy()
        return self.index.numbers(attribute)[self.chosen if places is None else places]

    def quantiles(self, attribute: str, shares: Sequence[float]) -> list[float] | None:
        """Quantiles of a numeric attribute over the rows of all splits; None where no row has a value.

        Rows trained on and rows held out are then cut at the same values.
        """
        values = self.numbers(attribute, self._kept(None))
        known = values[np.isfinite(values)]
        return np.quantile(known, shares).tolist() if len(known) else None

    @cached_property
    def clusters(self) -> pl.Series:
        """What is kept on one side of a split of the rows: their group, or their image.

        The image where a row has no group, or where one image belongs to several groups: it would be on both sides.
        """
        table = self.columns("id", "image", "group").with_columns(image=pl.coalesce("image", "id"))
        whole = pl.col("group").n_unique().over("image") == 1
        return table.select(pl.when(whole.all()).then(pl.coalesce("group", "image")).otherwise("image"))["group"]

    @cached_property
    def present(self) -> np.ndarray:
        """Whether the image file of each chosen row is there, or it needs none: bool (n,). Folders are listed once.

        Raises:
            DataError: more than `max_rejected_fraction` of the rows miss theirs; names the first.
        """
        table = self.columns("image", "image_row")
        table = table.with_columns(pl.when(pl.col("image_row").is_null()).then("image").alias("image"))
        names = table["image"].unique().drop_nulls().to_list()
        gone = [name for name, found in zip(names, self.pictures.there(names), strict=True) if not found]
        missing = table["image"].is_in(gone).fill_null(False).to_numpy()
        if missing.sum() > self.config.max_rejected_fraction * len(self) + 1e-9:
            row = json.loads(self.record(int(missing.argmax()))["row"])
            raise DataError(
                f"data: {int(missing.sum())} of {len(self)} rows have no image file, the first {row['place']}: "
                f"{self.pictures.path(row['images'][0])}; data.max_rejected_fraction="
                f"{self.config.max_rejected_fraction:g} allows fewer"
            )
        return ~missing

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
        found = {"family": row["family"], "tier": row["tier"], "complexity": row["complexity"]}
        if CLUSTER in self.attribute_kinds:
            found[CLUSTER] = self.clusters[index]
        for key, kind in self.index.kinds.items():
            value = as_number(free.get(key), self.config.missing)
            found[key] = _cast(free.get(key) if kind == "categorical" and value is not None else value, kind)
        return {key: found[key] for key in self.attribute_kinds}

    def asked(self, index: int) -> Question:
        """The question of a row as a model is asked it: a box or point in hundredths of its picture."""
        row = json.loads(self.record(index)["row"])
        if not (row.get("box") or row.get("point")):
            return self.question(index)
        if (fault := self.fault(index)) is not None:
            raise DataError(fault)
        return self.question(index, self._checked[index][1])

    def fault(self, index: int) -> str | None:
        """Why a row cannot be asked: it is bad, its picture is missing or broken, its box lies outside; None if it can.

        The picture is decoded once a process.

        Raises:
            DataError: more than `max_rejected_fraction` of the rows have a fault.
        """
        if index not in self._checked:
            try:
                image = self.picture(index)
                size = None if image is None else (image.shape[1], image.shape[0])
                check_place(json.loads(self.record(index)["row"]), size)
                self._checked[index] = None, size
            except DataError as error:
                self._checked[index] = str(error), None
                faults = [one for one, _ in self._checked.values() if one is not None]
                if len(faults) > self.config.max_rejected_fraction * len(self) + 1e-9:
                    shown = "\n  ".join(faults[:MAX_NAMED])
                    raise DataError(
                        f"data: {len(faults)} of {len(self)} rows cannot be asked; data.max_rejected_fraction="
                        f"{self.config.max_rejected_fraction:g} allows fewer:\n  {shown}"
                    ) from None
        return self._checked[index][0]

    def question(self, index: int, size: tuple[int, int] | None = None) -> Question:
        """The question of a row.

        A box or point is answered in hundredths of `size`, (width, height) in px: `x0 y0 x1 y1` or `x y`, each rounded
        to two digits, 00 to 99. Answers are judged against the exact numbers.
        """
        record = self.record(index)
        if record["reason"] is not None:
            raise DataError(record["reason"])
        row = json.loads(record["row"])
        count = as_number(row["attributes"].get("n_objects"), self.config.missing)
        counted = self.index.kinds.get("n_objects") == "count" and isinstance(count, int)
        facts = {"cluster": self.clusters[index], "n_objects": count if counted else None}
        return make_question(row, self.config, self.scoring, size, facts)

    def load(self, index: int) -> Sample:
        record = self.record(index)
        if record["reason"] is not None:
            raise DataError(record["reason"])
        if record["n_images"] != 1:
            words = "it has no image" if not record["n_images"] else f"it names {record['n_images']} images"
            raise DataError(f"{json.loads(record['row'])['place']}: {words}; capture takes one")
        image = self.pictures.pixels(record)
        row = json.loads(record["row"])
        check_place(row, (image.shape[1], image.shape[0]))
        return Sample(record["id"], image, self.attributes(index), prompt=prompt_of(row, self.config))

    def picture(self, index: int) -> np.ndarray | None:
        """The image of row `index`, None where it has none; RGB uint8 (height, width, 3).

        DataError for a bad row, a missing or broken image, and for a row of several images.
        """
        record = self.record(index)
        if record["reason"] is not None:
            raise DataError(record["reason"])
        if record["n_images"] > 1:
            place = json.loads(record["row"])["place"]
            raise DataError(f"{place}: it names {record['n_images']} images; a model is shown one")
        return self.pictures.pixels(record) if record["n_images"] else None

    def other_than_one(self) -> tuple[int, int, str]:
        """Rows without an image, rows of several images, and the place of the first of the latter (else former)."""
        counts = self.columns("n_images", "reason")
        counts = counts.with_columns(index=pl.int_range(len(counts))).filter(pl.col("reason").is_null())
        none, several = (counts.filter(wanted)["index"] for wanted in (pl.col("n_images") == 0, pl.col("n_images") > 1))
        first = several if len(several) else none
        place = json.loads(self.record(int(first[0]))["row"])["place"] if len(first) else ""
        return len(none), len(several), place

    def image_names(self) -> list[str]:
        """Paths of the images below the root, each once. Folders are listed once, however many images lie in them."""
        table = self.columns("image", "n_images", "image_row")
        names = table.filter(pl.col("image_row").is_null())["image"].drop_nulls().unique(maintain_order=True).to_list()
        for index in table["n_images"].gt(1).fill_null(False).arg_true().to_list():
            names += json.loads(self.record(index)["row"])["images"][1:]
        return self.pictures.paths(list(dict.fromkeys(names)))

    def fingerprint(self) -> dict[str, Any]:
        settings = self.config.model_dump(mode="json", exclude={"root", "max_rejected_fraction"})
        content = content_digest(self.fs, self.root, self.image_names())
        return {
            **settings,
            **self._registered(),
            **self._extraction(),
            "version": VERSION,
            "rows": self.digest,
            "images": content,
        }


def _cast(value: Any, kind: Kind) -> Any:
    if value is None:
        return None
    return str(value) if kind == "categorical" else float(value) if kind == "continuous" else int(value)


def open_questions(config: QuestionsConfig) -> QuestionSource:
    """`QuestionSource`, opened once a process while its files stay the same. Errors as there."""
    fs, root = fsspec.core.url_to_fs(config.root)
    names = config.file or find_layout(config.layout).files
    versions = [fs.ukey(f"{root}/{name}") if fs.isfile(f"{root}/{name}") else "" for name in names]
    return _opened(config.model_dump_json(), "/".join(versions))


@lru_cache(maxsize=4)
def _opened(config: str, version: str) -> QuestionSource:  # noqa: ARG001 - part of the key
    return QuestionSource(QuestionsConfig.model_validate_json(config))
