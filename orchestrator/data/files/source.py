"""A question file as a source: one row a sample, with its own prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Any

import fsspec
import numpy as np
import polars as pl

from orchestrator.config import QuestionsConfig
from orchestrator.data.content import content_digest
from orchestrator.data.files.asking import check_place, make_question, prompt_of
from orchestrator.data.files.chosen_rows import QuestionRows
from orchestrator.data.files.extraction import ENTRY_POINT_GROUP as EXTRACTION_GROUP
from orchestrator.data.files.index import MAX_NAMED, VERSION
from orchestrator.data.files.kinds import as_number
from orchestrator.data.files.published import find_layout
from orchestrator.data.questions import Question
from orchestrator.data.sample import Sample
from orchestrator.errors import DataError
from orchestrator.plugins import registered_by


class QuestionSource(QuestionRows):
    """The rows of question files as samples: images, the question as prompt, attributes.

    Invalid rows are samples that cannot be loaded, up to `max_rejected_fraction` of all. Raises as `QuestionRows`.
    """

    name = "questions"

    @cached_property
    def present(self) -> np.ndarray:
        """Whether the image files of each chosen row exist, if it has any: bool (n,); one listing per folder.

        Raises:
            DataError: more than `max_rejected_fraction` of the rows have missing files; names the first.
        """
        table = self.columns("image", "image_row", "n_images")
        table = table.with_columns(pl.when(pl.col("image_row").is_null()).then("image").alias("image"))
        several = {i: self._images(i) for i in _several_files(table)}
        names = table["image"].unique().drop_nulls().to_list()
        names = list(dict.fromkeys([*names, *(name for images in several.values() for name in images)]))
        gone = {name for name, exists in zip(names, self.pictures.there(names), strict=True) if not exists}
        missing = table["image"].is_in(list(gone)).fill_null(False).to_numpy().copy()
        missing[[i for i, images in several.items() if gone.intersection(images)]] = True
        if missing.sum() > self.config.max_rejected_fraction * len(self) + 1e-9:
            row = json.loads(self.record(int(missing.argmax()))["row"])
            image = next(name for name in row["images"] if name in gone)
            raise DataError(
                f"data: {int(missing.sum())} of {len(self)} rows have no image file, the first {row['place']}: "
                f"{self.pictures.path(image)}; data.max_rejected_fraction="
                f"{self.config.max_rejected_fraction:g} allows fewer"
            )
        return ~missing

    def asked(self, index: int) -> Question:
        """The question of a row as asked of a model: a box or point is in hundredths of its image."""
        row = json.loads(self.record(index)["row"])
        if not (row.get("box") or row.get("point")):
            return self.question(index)
        if (fault := self.fault(index)) is not None:
            raise DataError(fault)
        return self.question(index, self._checked[index][1])

    def fault(self, index: int) -> str | None:
        """Why a row cannot be asked: invalid row, missing or broken image, box outside the image; None if it can.

        The image is decoded once per process.

        Raises:
            DataError: more than `max_rejected_fraction` of the rows have a fault.
        """
        if index not in self._checked:
            try:
                image = self.shown(index)
                size = (image.shape[1], image.shape[0]) if isinstance(image, np.ndarray) else None
                check_place(json.loads(self.record(index)["row"]), size)
                self._checked[index] = None, size
            except DataError as error:
                self._checked[index] = str(error), None
                faults = [message for message, _ in self._checked.values() if message is not None]
                if len(faults) > self.config.max_rejected_fraction * len(self) + 1e-9:
                    shown = "\n  ".join(faults[:MAX_NAMED])
                    raise DataError(
                        f"data: {len(faults)} of {len(self)} rows cannot be asked; data.max_rejected_fraction="
                        f"{self.config.max_rejected_fraction:g} allows fewer:\n  {shown}"
                    ) from None
        return self._checked[index][0]

    def rejected(self, passed_over: Mapping[int, str]) -> list[tuple[int, str, str]]:
        """Index, id and fault (with file and line) of invalid rows, rows without their image file, and given faults."""
        bad = self.columns("reason")["reason"]
        faults = {i: bad[i] for i in bad.is_not_null().arg_true().to_list()}
        rows = [(i, name) for i in np.flatnonzero(~self.present).tolist() for name in self._images(i)]
        for (i, name), exists in zip(rows, self.pictures.there([name for _, name in rows]), strict=True):
            if not exists:
                faults.setdefault(i, f"{self._place(i)}: {self.pictures.path(name)}: missing file")
        for i, fault in passed_over.items():
            faults.setdefault(i, fault)
        return [(i, str(self.ids[i]), faults[i]) for i in sorted(faults)]

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
        row = json.loads(record["row"])
        if not record["n_images"]:
            raise DataError(f"{row['place']}: it has no image; capture takes one or more")
        image, *others = self._pictures(record, row)
        check_place(row, None if others else (image.shape[1], image.shape[0]))
        attributes = self.attributes(index)
        return Sample(record["id"], image, attributes, prompt=prompt_of(row, self.config), more=tuple(others))

    def shown(self, index: int) -> np.ndarray | list[np.ndarray] | None:
        """The images of row `index`: RGB uint8 (height, width, 3), a list of several, or None without one.

        DataError for an invalid row, or a missing or broken image.
        """
        record = self.record(index)
        if record["reason"] is not None:
            raise DataError(record["reason"])
        images = self._pictures(record, json.loads(record["row"]))
        return images if len(images) > 1 else images[0] if images else None

    def _pictures(self, record: Mapping[str, Any], row: Mapping[str, Any]) -> list[np.ndarray]:
        """The images of a row; errors name the row's file and line."""
        try:
            return self.pictures.pixels(record, row["images"])
        except DataError as error:
            raise DataError(f"{row['place']}: {error}") from None

    def image_names(self) -> list[str]:
        """Paths of the images below the root, without duplicates; one listing per folder."""
        table = self.columns("image", "n_images", "image_row")
        names = table.filter(pl.col("image_row").is_null())["image"].drop_nulls().unique(maintain_order=True).to_list()
        for index in _several_files(table):
            names += self._images(index)[1:]
        return self.pictures.paths(list(dict.fromkeys(names)))

    def _extraction(self) -> dict[str, Any]:
        packages = registered_by(EXTRACTION_GROUP, [self.config.extract] if self.config.extract else [])
        return {"answers": packages} if packages else {}

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


def _several_files(table: pl.DataFrame) -> list[int]:
    """Indices of the rows with several image files."""
    return (table["n_images"].gt(1).fill_null(False) & table["image_row"].is_null()).arg_true().to_list()


def open_questions(config: QuestionsConfig) -> QuestionSource:
    """`QuestionSource`, cached per process while its files do not change. Errors as there."""
    fs, root = fsspec.core.url_to_fs(config.root)
    names = config.file or find_layout(config.layout).files
    versions = [fs.ukey(f"{root}/{name}") if fs.isfile(f"{root}/{name}") else "" for name in names]
    return _opened(config.model_dump_json(), "/".join(versions))


@lru_cache(maxsize=4)
def _opened(config: str, version: str) -> QuestionSource:  # noqa: ARG001 - part of the key
    return QuestionSource(QuestionsConfig.model_validate_json(config))
