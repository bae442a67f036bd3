"""Samples of a hyperparameter search and their outcomes: drawn from seeds, stored as JSON next to the trials.

A completed sample is a finished trial directory like any other. A pruned or diverged sample has no directory; its
record marks it as tried, so that an interrupted search resumes with the remaining samples.

    STORAGE/search/DIGEST/POINT-NUMBER.json     one a sample
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.config import SearchAxis
from orchestrator.config.search_space import draw
from orchestrator.errors import StageError
from orchestrator.finetune.finetune_stage import sampled_point
from orchestrator.store.filesystem import Storage
from orchestrator.store.resolved_point import ResolvedPoint
from orchestrator.store.stage_folder import digest

State = Literal["done", "pruned", "diverged"]
Watch = Callable[[ResolvedPoint, str], None]
"""Called in the driver with a sample's point: `running` when its trial starts, then its `State` or `failed`."""


def unwatched(point: ResolvedPoint, state: str) -> None:
    """The `Watch` of a search that nobody follows."""


class SampleRecord(BaseModel):
    """The outcome of one sample."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    point: str
    """Digest of the point's own trial."""
    number: int
    values: dict[str, Any]
    """Dotted key -> sampled value."""
    state: State
    score: float
    """Objective of the search; 0 for a sample without a result."""
    rungs: list[tuple[int, float]]
    """(step, loss) at each rung that the sample reached."""


@dataclass(frozen=True)
class Sample:
    """One sample of a search at one point; `values` is None if an adaptive algorithm proposes them."""

    point: str
    number: int
    base: ResolvedPoint
    values: Mapping[str, Any] | None

    @property
    def resolved(self) -> ResolvedPoint:
        """The trial's point with the sample's values."""
        return sample_point(self.base, self.number, self.values or {})


def sample_point(base: ResolvedPoint, number: int, values: Mapping[str, Any]) -> ResolvedPoint:
    """The point of a sample, with its own label: it lies on no axis of the study."""
    of = f" of {base.label}" if base.axes else ""
    return replace(sampled_point(base, values), label=f"sample {number}{of}", axes={})


def draw_samples(points: Sequence[ResolvedPoint], search: Mapping[str, SearchAxis]) -> list[Sample]:
    """`finetune.search_trials` samples per point, the same on every machine and backend.

    Each point has its own generator, seeded by the point's digest: samples do not depend on other points.
    """
    samples = []
    for point in points:
        name = point.stages["finetune"].digest
        rng = np.random.default_rng(int(name, 16))
        for number in range(point.run.finetune.search_trials):
            values = {key: draw(search[key], rng) for key in sorted(search)}
            samples.append(Sample(name, number, point, values))
    return samples


@dataclass(frozen=True)
class SearchFolder:
    """Records of a search's samples."""

    storage: Storage
    digest: str

    @classmethod
    def of(
        cls, points: Sequence[str], search: Mapping[str, SearchAxis], algorithm: str, storage: Storage
    ) -> SearchFolder:
        """The folder of these points and this space; equal for equal arguments, so that a search can be resumed."""
        space = {key: axis.model_dump(mode="json") for key, axis in search.items()}
        return cls(storage, digest([sorted(points), space, algorithm]))

    def _name(self, point: str, number: int) -> str:
        return f"search/{self.digest}/{point}-{number:05d}.json"

    def write(self, record: SampleRecord) -> None:
        self.storage.write_json(self._name(record.point, record.number), record.model_dump(mode="json"))

    def read(self) -> dict[tuple[str, int], SampleRecord]:
        """(point, number) -> record; a record that is damaged or does not match its file name counts as absent."""
        records = {}
        for name in self.storage.files(f"search/{self.digest}"):
            try:
                text = self.storage.read(f"search/{self.digest}/{name}")
                record = SampleRecord.model_validate_json(text)
            except (FileNotFoundError, ValidationError):
                continue
            if self._name(record.point, record.number).rpartition("/")[2] == name:
                records[record.point, record.number] = record
        return records


def search_folder(samples: Sequence[Sample], search: Mapping[str, SearchAxis], algorithm: str) -> SearchFolder:
    """The folder of the samples' records."""
    storage = samples[0].base.storage
    return SearchFolder.of(list(dict.fromkeys(s.point for s in samples)), search, algorithm, storage)


def unfinished_samples(samples: Sequence[Sample], records: Mapping[tuple[str, int], SampleRecord]) -> list[Sample]:
    """Samples without a record, and those whose record names a trial that does not exist."""

    def settled(sample: Sample) -> bool:
        record = records.get((sample.point, sample.number))
        if record is None or (sample.values is not None and record.values != dict(sample.values)):
            return False
        return record.state != "done" or sampled_point(sample.base, record.values).is_done("finetune")

    return [sample for sample in samples if not settled(sample)]


def searches(
    samples: Sequence[Sample], search: Mapping[str, SearchAxis], algorithm: str
) -> Iterator[tuple[list[Sample], SearchFolder]]:
    """The searches that samples belong to: one, or one a point where `algorithm` proposes values from known scores."""
    if algorithm != "optuna":
        yield list(samples), search_folder(samples, search, algorithm)
        return
    for point in dict.fromkeys(sample.point for sample in samples):
        requested = [replace(sample, values=None) for sample in samples if sample.point == point]
        yield requested, search_folder(requested, search, algorithm)


def is_searched(points: Sequence[ResolvedPoint], search: Mapping[str, SearchAxis]) -> bool:
    """Whether every sample of a search has its outcome, from the records and the names of finished trials alone."""
    first = points[0].run
    algorithm = first.finetune.search_algorithm if first.how.backend == "ray" else "random"
    parts = searches(draw_samples(points, search), search, algorithm)
    return not any(unfinished_samples(samples, folder.read()) for samples, folder in parts)


def check_samples(
    samples: Sequence[Sample], records: Mapping[tuple[str, int], SampleRecord], failures: Mapping[str, str]
) -> list[ResolvedPoint]:
    """The completed trials of a search; every sample must have an outcome.

    Raises:
        StageError: a sample failed or has no result, or no sample of a point completed.
    """
    problems = dict(failures)
    completed: dict[str, list[ResolvedPoint]] = {sample.point: [] for sample in samples}
    for sample in samples:
        name = f"sample {sample.number} of point {sample.point[:6]}"
        record = records.get((sample.point, sample.number))
        if record is None:
            if not any(key.startswith(name) for key in problems):
                problems[name] = "it ended without a result"
            continue
        if record.state == "done":
            trial = sample_point(sample.base, sample.number, record.values)
            if trial.stages["finetune"].is_done():
                completed[sample.point].append(trial)
            else:
                problems[name] = "its record is marked done, but its trial is not"
    if problems:
        lines = "\n".join(f"  {name}: {reason}" for name, reason in problems.items())
        raise StageError(f"search: {len(problems)} of {len(samples)} samples failed; the others are kept:\n{lines}")
    for point, trials in completed.items():
        if not trials:
            raise StageError(
                f"search: every sample of point {point[:6]} diverged or was stopped; none has a result. Narrow the "
                "space, for example to lower learning rates"
            )
    return [trial for trials in completed.values() for trial in trials]
