"""Overview of a source: rows, families, balance of answers, sizes, missing files, attributes."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from orchestrator.data.associations import associations, roles_of
from orchestrator.data.files.source import QuestionSource
from orchestrator.data.sample import Source
from orchestrator.data.summary import MAX_LOOKED_AT, AttributeSummary, summarise_attributes
from orchestrator.errors import DataError

MAX_LOADED = 200
"""Number of images opened to check size and validity; evenly spaced in larger sources."""
MAX_PAIRS = 10
"""Number of correlations shown, the strongest first."""


@dataclass(frozen=True)
class Overview:
    source: str
    n_rows: int
    n_rejected_rows: int
    """Invalid rows of question files."""
    families: list[dict[str, Any]]
    """For question files: family, rows, distinct answers, most frequent answer and its share, over the examined
    rows."""
    sizes: dict[str, Any]
    """Smallest, median and largest width and height, px, of the images opened."""
    n_opened: int
    faults: list[str]
    """Reasons of images that could not be loaded."""
    attributes: list[AttributeSummary]
    correlations: list[dict[str, Any]]
    """Spearman's rho of pairs of numeric attributes over the examined rows, the strongest of `n_correlations`."""
    n_correlations: int = 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def survey(source: Source) -> Overview:
    """Examine up to `MAX_LOOKED_AT` rows and open up to `MAX_LOADED` images."""
    shapes, faults = [], []
    opened = _spread(len(source), MAX_LOADED)
    rows: Any = getattr(source, "source", source)  # without attributes from pixels
    if isinstance(rows, QuestionSource):
        opened = [index for index in opened if rows.record(index)["n_images"] != 0]  # the others have nothing to open
    for index in opened:
        try:
            shapes.append(source.load(index).image.shape[:2])
        except DataError as error:
            faults.append(str(error))
    sizes = {}
    if shapes:
        height, width = np.array(shapes).T
        sizes = {
            key: [int(values.min()), float(np.median(values)), int(values.max())]
            for key, values in (("width", width), ("height", height))
        }
    pairs = _correlations(source)
    return Overview(
        source.name,
        len(source),
        len(source.rejected_rows) if isinstance(source, QuestionSource) else 0,
        _families(source) if isinstance(source, QuestionSource) else [],
        sizes,
        len(opened),
        faults,
        summarise_attributes(source),
        pairs[:MAX_PAIRS],
        len(pairs),
    )


def _spread(n: int, limit: int) -> list[int]:
    return np.linspace(0, n - 1, min(n, limit)).round().astype(int).tolist()


def _families(source: QuestionSource) -> list[dict[str, Any]]:
    answers: dict[str, Counter[str]] = {}
    for index in _spread(len(source), MAX_LOOKED_AT):
        record = source.record(index)
        if record["reason"] is None:
            answers.setdefault(record["family"], Counter())[record["answer"] or "-"] += 1
    rows = []
    for family, counts in sorted(answers.items(), key=lambda item: -item[1].total()):
        answer, n = counts.most_common(1)[0]
        rows.append(
            {
                "family": family,
                "rows": counts.total(),
                "answers": len(counts),
                "most frequent": answer,
                "share": n / counts.total(),
            }
        )
    return rows


def _correlations(source: Source) -> list[dict[str, Any]]:
    names = [name for name, kind in source.attribute_kinds.items() if kind != "categorical"]
    rows = [source.attributes(index) for index in _spread(len(source), MAX_LOOKED_AT)]
    pairs = associations({name: [row.get(name) for row in rows] for name in names}, roles_of(source))
    return [{"first": p.first, "second": p.second, "rho": p.rho, "n": p.n} for p in pairs]
