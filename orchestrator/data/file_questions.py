"""Questions drawn from a question file by family and tier, for mixtures, evaluations and ablations.

The tier is the row's own, or follows from a numeric column: rows in its lower third are low, in its upper third high.
The thirds are those of all splits, so that held-out rows are cut at the same values.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator

import numpy as np

from orchestrator.data.files.source import QuestionSource
from orchestrator.data.questions import Question
from orchestrator.errors import ConfigError, DataError, did_you_mean

THIRDS = (1 / 3, 2 / 3)
"""Quantiles of the complexity column up to which a row is low, and from which it is high."""
NO_TIER = "all"
"""Tier of all rows of a file that says nothing of their complexity."""


class FileQuestions:
    """Draws answered questions of a source: each family and tier is asked once through before any is asked again.

    Rows whose image file is missing are not drawn.

    Args:
        source: the rows.
        complexity: numeric attribute that gives the tier; the rows' own tier when absent. A file whose rows have none
            has one tier, `all`.
        among: whether rows of this cluster may be drawn (`QuestionSource.clusters`); any when absent.
        with_image: draw rows that have an image alone.
    """

    def __init__(
        self,
        source: QuestionSource,
        complexity: str | None = None,
        among: Callable[[str], bool] | None = None,
        *,
        with_image: bool = False,
    ) -> None:
        self.source, self.with_image = source, with_image
        self.passed_over: dict[int, str] = {}
        """Rows that came up and could not be asked, by place in the source: what is wrong with each."""
        if complexity is not None and source.attribute_kinds.get(complexity, "categorical") == "categorical":
            numbers = [name for name, kind in source.attribute_kinds.items() if kind != "categorical"]
            raise ConfigError(f"complexity: no numeric column {complexity!r}.{did_you_mean(complexity, numbers)}")
        table = source.columns("reason", "answered", "n_images")
        usable = (table["reason"].is_null() & table["answered"]).to_numpy() & source.present
        if with_image:
            usable &= (table["n_images"] > 0).fill_null(False).to_numpy()
        if among is not None:
            clusters = source.clusters
            chosen = [cluster for cluster in clusters.unique().to_list() if among(cluster)]
            usable &= clusters.is_in(chosen).fill_null(False).to_numpy()
        del table  # a million rows: what is no longer needed is let go
        family, families = source.codes("family")
        tier, tiers = self._tiers(complexity)
        self.rows: dict[tuple[str, str], np.ndarray] = {}
        for i, j in itertools.product(range(len(families)), range(len(tiers))):
            if len(rows := np.flatnonzero(usable & (family == i) & (tier == j))):
                self.rows[families[i], tiers[j]] = rows
        self._asked: dict[tuple[str, str, int], tuple[Iterator[tuple[int, int]], list[tuple[int, int]]]] = {}

    def rejected(self) -> list[tuple[int, str, str]]:
        """Place, id and reason of each row that cannot be asked: bad, passed over, or without the image it needs."""
        rejections = self.source.rejected(self.passed_over)
        return (
            sorted([*rejections, *self.source.without_image("there is nothing to take away")])
            if self.with_image
            else rejections
        )

    def _tiers(self, complexity: str | None) -> tuple[np.ndarray, list[str]]:
        """Tier of each row as a number, -1 for none, and the tiers that they stand for."""
        if complexity is None:
            codes, tiers = self.source.codes("tier")
            return (codes, tiers) if (codes >= 0).any() else (np.zeros(len(codes), np.int32), [NO_TIER])
        values = self.source.numbers(complexity)
        low, high = self.source.quantiles(complexity, THIRDS) or (0.0, 0.0)
        if not low < high:
            raise DataError(f"data: a third of the rows or more share one value of {complexity!r}; tiers need a spread")
        return np.select([values <= low, values >= high], [0, 1], -1), ["low", "high"]

    @property
    def has_tiers(self) -> bool:
        """Whether rows differ in complexity as far as the file or a column says."""
        return all(tier != NO_TIER for _, tier in self.rows)

    def at_most(self, family: str, tier: str, seed: int, n: int) -> int:
        """How many of the first n questions of a family and tier are different ones.

        Raises:
            ConfigError: there is none.
            DataError: see `make`.
        """
        turns = self._first(family, tier, seed, n)
        return sum(turn == 0 for turn, _ in turns[:n])

    def _rows(self, family: str, tier: str) -> np.ndarray:
        if (rows := self.rows.get((family, tier))) is not None:
            return rows
        if not self.has_tiers and tier != NO_TIER:
            numbers = [name for name, kind in self.source.attribute_kinds.items() if kind != "categorical"]
            raise ConfigError(
                f"families: no row has a tier, so that none is {tier}; name a numeric column in `complexity` "
                f"(there are: {', '.join(numbers) or 'none'})"
            )
        families = sorted({name for name, of in self.rows if of == tier})
        raise ConfigError(
            f"families: no answered {tier} rows of family {family!r}{' with an image' * self.with_image}; there are: "
            f"{', '.join(families) or 'none'}."
            f"{did_you_mean(family, families)}"
        )

    def make(self, family: str, tier: str, seed: int, index: int) -> tuple[int, Question]:
        """Question number `index` of a family and tier: the row's place in the source, and the question.

        Depends on the source and the arguments alone. Rows whose picture is broken, or whose box lies outside it, are
        passed over.

        Raises:
            ConfigError: a family without rows of that tier.
            DataError: no row of them can be asked, or too many of the source cannot.
        """
        _, row = self._first(family, tier, seed, index + 1)[index]
        question = self.source.asked(row)
        return row, Question(**{**vars(question), "tier": tier})

    def _first(self, family: str, tier: str, seed: int, n: int) -> list[tuple[int, int]]:
        """(turn, row) of at least the first n questions, in the order in which they are asked."""
        key = family, tier, seed
        if key not in self._asked:
            self._asked[key] = (
                self._in_order(self._rows(family, tier), zlib.crc32(f"{family}-{tier}".encode()), seed),
                [],
            )
        rest, drawn = self._asked[key]
        drawn += itertools.islice(rest, max(0, n - len(drawn)))
        return drawn

    def _in_order(self, rows: np.ndarray, name: int, seed: int) -> Iterator[tuple[int, int]]:
        for turn in itertools.count():
            order = rows[np.random.default_rng([seed, turn, name]).permutation(len(rows))].tolist()
            n_usable = 0
            for row in order:
                fault = self.source.fault(row)  # only as far as asked for: it opens the picture
                if fault is None:
                    n_usable += 1
                    yield turn, row
                else:
                    self.passed_over[row] = fault
            if not n_usable:
                raise DataError(f"data: none of {len(rows)} rows can be asked: {self.source.fault(order[0])}")
