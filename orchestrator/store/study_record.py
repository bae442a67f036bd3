"""A study as its files tell it: `STORAGE/studies/NAME/study.json` and the stage directories it names."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from pydantic import ValidationError

from orchestrator.config import RunConfig, StageName, StudyConfig
from orchestrator.config.sweep import Sweep
from orchestrator.errors import AbsentError, StorageError, did_you_mean
from orchestrator.scrub import scrub_tree
from orchestrator.store.filesystem import Storage
from orchestrator.store.load_stage import load_stage
from orchestrator.store.provenance import hardware, package_versions, source_commit
from orchestrator.store.record_format import check_record
from orchestrator.store.stage_folder import Stage
from orchestrator.store.tables.core import TABLES

STUDY_FILE = "study.json"
DEFAULT_STORAGE = str(StudyConfig.model_fields["storage"].default)
TABLE_STAGE: dict[str, StageName] = {
    "images": "capture",
    "rejected": "capture",
    "layer_metrics": "capture",
    "picture_metrics": "capture",
    "correlations": "correlate",
    "attribute_correlations": "correlate",
    "probes": "probe",
    "probe_search": "probe",
    "trials": "finetune",
    "answers": "finetune",
    "training": "finetune",
    "asked_metrics": "finetune",
    "trial_rejected": "finetune",
    "deletion": "ablate",
    "knockout": "ablate",
    "routes": "ablate",
    "attention": "ablate",
    "attention_maps": "ablate",
    "lens": "ablate",
    "lens_layers": "ablate",
    "replacing": "ablate",
    "rivals": "ablate",
    "rival_ranks": "ablate",
    "rival_answers": "ablate",
    "patching": "ablate",
    "policy": "ablate",
    "link": "ablate",
    "ablate_rejected": "ablate",
}
"""Which stage writes which table."""


@dataclass(frozen=True)
class View:
    """One distinct stage of a study and the run it belongs to."""

    label: str
    run: RunConfig
    stage: Stage
    axes: dict[str, Any]


@dataclass(frozen=True)
class Study:
    """A finished, running or interrupted study, read from its files.

    >>> study = Study.load("results/studies/quickstart")   # doctest: +SKIP
    >>> study.layer_metrics.filter(pl.col("group") == "vision").collect()   # doctest: +SKIP
    """

    storage: Storage
    record: dict[str, Any]

    @classmethod
    def load(cls, folder: str) -> Study:
        """Read `STORAGE/studies/NAME`; a bare `NAME` is looked for in the storage `results`.

        Raises:
            StorageError: there is no study; the message names those that are there.
        """
        uri = folder.rstrip("/").removesuffix(f"/{STUDY_FILE}")
        root, _, name = uri.rpartition("/")
        if not root and not Storage(".").exists(f"studies/{name}/{STUDY_FILE}"):
            root = f"{DEFAULT_STORAGE}/studies"
        if not root.endswith("studies"):  # `results/quickstart` for `results/studies/quickstart` is an easy slip
            root = f"{root}/studies" if root else "studies"
        storage = Storage(root.removesuffix("/studies") if root != "studies" else ".")
        try:
            content = storage.read_json(f"studies/{name}/{STUDY_FILE}")
            return cls(storage, check_record(content, name, storage.locate(f"studies/{name}/{STUDY_FILE}")))
        except FileNotFoundError as error:
            names = storage.files("studies") or Storage(uri).files("studies")  # the storage itself was named
            expected = f"no study in {folder!r}; expected STORAGE/studies/NAME."
            raise StorageError(expected + did_you_mean(name, names)) from error

    @property
    def name(self) -> str:
        return str(self.record["name"])

    @property
    def folder(self) -> Storage:
        """Where the study's report and figures lie."""
        return self.storage.sub(f"studies/{self.name}")

    @property
    def stages(self) -> list[StageName]:
        return list(self.record["stages"])

    def run_of(self, point: Mapping[str, Any]) -> RunConfig:
        """The configuration of one of the record's points.

        Raises:
            StorageError: another version of vtsweep wrote it, with settings this one does not know.
        """
        try:
            return RunConfig.model_validate(point["config"])
        except ValidationError as error:
            version = self.record["versions"].get("vtsweep", "?")
            key = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise StorageError(
                f"{self.folder.locate(STUDY_FILE)} was written by vtsweep {version}, and this version reads its "
                f"settings otherwise ({key}); run the study again"
            ) from error

    def views(self, stage: StageName, only: Collection[str] | None = None) -> list[View]:
        """The study's distinct stages of one kind, in the order of its points; with `only`, those of these digests."""
        views: dict[str, View] = {}
        for point in self.record["points"]:
            stage_digest = point["stages"].get(stage)
            if stage_digest is None or stage_digest in views or (only is not None and stage_digest not in only):
                continue
            run = self.run_of(point)
            label = point["label"] if stage == "finetune" else describe_run(run)
            try:
                loaded = load_stage(self.storage, stage, stage_digest)
            except AbsentError:  # not begun yet
                continue
            views[stage_digest] = View(label, run, loaded, point["axes"])
        return _distinct_labels(list(views.values()))

    def table(self, name: str) -> pl.LazyFrame:
        """All rows of a table over the study, with the columns `point`, `model` and `source` in front.

        A column of that name that is a table's own key is kept (`source` of `routes`: what may not be read).

        Raises:
            AbsentError: no finished stage of this study holds that table.
        """
        if name not in TABLE_STAGE:
            raise StorageError(f"unknown table {name!r}.{did_you_mean(name, TABLE_STAGE)}")
        frames = []
        for view in self.views(TABLE_STAGE[name]):
            try:
                frame = view.stage.scan(name)
            except AbsentError:
                continue
            marks = {"point": view.label, "model": view.run.model.label, "source": view.run.data.source}
            marks = {key: value for key, value in marks.items() if key not in TABLES[name].key}
            lead = [pl.lit(value).alias(key) for key, value in marks.items()]
            present = frame.collect_schema().names()
            frames.append(frame.select(*lead, *[pl.col(c) for c in present if c not in marks]))
        if not frames:
            raise AbsentError(f"study {self.name!r} holds no table {name!r}; run `vtsweep status {self.folder.uri}`")
        return pl.concat(frames, how="diagonal_relaxed")

    @property
    def images(self) -> pl.LazyFrame:
        return self.table("images")

    @property
    def layer_metrics(self) -> pl.LazyFrame:
        return self.table("layer_metrics")

    @property
    def correlations(self) -> pl.LazyFrame:
        return self.table("correlations")

    @property
    def probes(self) -> pl.LazyFrame:
        return self.table("probes")

    @property
    def trials(self) -> pl.LazyFrame:
        return self.table("trials")

    @property
    def deletion(self) -> pl.LazyFrame:
        return self.table("deletion")


def describe_run(run: RunConfig) -> str:
    """`reference-joint on scenes`."""
    return f"{run.model.label} on {run.data.source}"


def _distinct_labels(views: list[View]) -> list[View]:
    labels = [v.label for v in views]
    return [
        v if labels.count(v.label) == 1 else View(f"{v.label} ({v.stage.digest[:6]})", v.run, v.stage, v.axes)
        for v in views
    ]


def make_record(
    sweep: Sweep, stages: Sequence[StageName], points: list[dict[str, Any]], command: str | None = None
) -> dict[str, Any]:
    """What `study.json` holds: the study as asked, what it was run on, and its points with their stages' digests.

    `command` runs the study again; without one (a notebook) it is the call that did.
    """
    record = {
        "name": sweep.study.name,
        "description": sweep.study.description,
        "file": sweep.file,
        "text": sweep.text,
        "command": command or f"orchestrator.run_study(sweep)  # {sweep.study.name}",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "stages": list(stages),
        "points": points,
        "versions": package_versions(),
        "hardware": hardware(),
        "commit": source_commit(),
    }
    return dict(scrub_tree(record))  # shared storage, the report and MLflow show what stands here
