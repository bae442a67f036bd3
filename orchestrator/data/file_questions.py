"""Questions drawn from a question file by family and tier, for mixtures and evaluations.

The tier is the row's own, or follows from a numeric column: rows in its lower third are low, in its upper third high.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable

import numpy as np

from orchestrator.data.files.source import QuestionSource
from orchestrator.data.questions import Question
from orchestrator.errors import ConfigError, DataError, did_you_mean

THIRDS = (1 / 3, 2 / 3)
"""Quantiles of the complexity column up to which a row is low, and from which it is high."""


class FileQuestions:
    """Draws answered questions of a source; each family and tier is asked once through before any is asked again.

    Args:
        source: the rows.
        complexity: numeric attribute that gives the tier; the rows' own tier when absent.
        among: whether rows about this image may be drawn; any when absent. Rows of one image stay together.
    """

    def __init__(
        self, source: QuestionSource, complexity: str | None = None, among: Callable[[str], bool] | None = None
    ) -> None:
        self.source = source
        if complexity is not None and source.attribute_kinds.get(complexity, "categorical") == "categorical":
            numbers = [name for name, kind in source.attribute_kinds.items() if kind != "categorical"]
            raise ConfigError(f"task.complexity: no numeric column {complexity!r}.{did_you_mean(complexity, numbers)}")
        tiers = self._tiers(complexity)
        self.rows: dict[tuple[str, str], list[int]] = defaultdict(list)
        for index, tier in enumerate(tiers):
            record = source.record(index)
            answered = record["reason"] is None and record["answer"] is not None
            if tier is not None and answered and (among is None or among(record["image"] or record["id"])):
                self.rows[record["family"], tier].append(index)

    def _tiers(self, complexity: str | None) -> list[str | None]:
        n = len(self.source)
        if complexity is None:
            return [self.source.record(index)["tier"] for index in range(n)]
        values = np.array([self.source.attributes(index).get(complexity) for index in range(n)], dtype=float)
        low, high = np.nanquantile(values, THIRDS)
        if not low < high:
            raise DataError(f"data: a third of the rows or more share one value of {complexity!r}; tiers need a spread")
        return ["low" if v <= low else "high" if v >= high else None for v in values.tolist()]

    def make(self, family: str, tier: str, seed: int, index: int) -> tuple[int, Question]:
        """Question number `index` of a family and tier: the row's place in the source, and the question.

        Depends on the source and the arguments alone. Raises ConfigError for a family without rows of that tier.
        """
        rows = self.rows.get((family, tier))
        if not rows:
            known = sorted({name for name, _ in self.rows})
            raise ConfigError(f"families: no answered {tier} rows of family {family!r}.{did_you_mean(family, known)}")
        turn, place = divmod(index, len(rows))
        order = np.random.default_rng([seed, turn, zlib.crc32(f"{family}-{tier}".encode())]).permutation(len(rows))
        row = rows[int(order[place])]
        question = self.source.question(row)
        return row, Question(**{**vars(question), "tier": tier})
