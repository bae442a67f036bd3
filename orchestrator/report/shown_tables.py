"""Tables beside the charts: the best selection method per family, and the layer at which the answer is first ahead."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import polars as pl

from orchestrator.report import style
from orchestrator.report.model import PointResults
from orchestrator.report.statement import number

_NUMERIC = re.compile(r"(n/a|[−-]?\d+(\.\d+)?(e[−+-]?\d+)?( %)?)?( ?\[.*\])?")
"""Pattern of a number or a missing one, with or without interval."""


@dataclass(frozen=True)
class ShownTable:
    caption: str
    head: list[str]
    rows: list[list[str]]

    @property
    def is_text(self) -> list[bool]:
        """Per column: whether it contains text, and so is left-aligned."""
        return [any(not _NUMERIC.fullmatch(row[i]) for row in self.rows) for i in range(len(self.head))]


def winner_tables(points: Sequence[PointResults]) -> Iterator[ShownTable]:
    """The best selection method by family and budget, with the methods tied with it."""
    for point in points:
        ranks = point.further.get("rival_ranks")
        if ranks is None or ranks.is_empty():
            continue
        rows = []
        keys = ["tier", "family", "budget"]
        for (tier, family, budget), part in ranks.group_by(keys, maintain_order=True):
            leading = part.filter("best")
            if leading.is_empty():  # no method was measured
                continue
            best = leading.row(0, named=True)
            tied = part.filter(pl.col("tied") & ~pl.col("best")).sort("accuracy", descending=True)["method"].to_list()
            count = f"none of {part.height - 1}" if not tied else f"{len(tied)} of {part.height - 1}: "
            names = ", ".join(style.name_of(m) for m in tied)
            of = "all families" if family == "all" else style.name_of(str(family))
            rows.append([str(tier), of, f"{budget:.1%}", style.name_of(best["method"]), number(best["accuracy"]),
                         count + names])  # fmt: skip
        head = ["tier", "questions", "tokens", "most accurate", "accuracy", "not told apart from it"]
        if rows:
            yield ShownTable(f"Most accurate way by kind of question, at equal tokens: {point.label}", head, rows)


def lens_tables(points: Sequence[PointResults]) -> Iterator[ShownTable]:
    """The layers at which the last token's right answer first, and for good, outranks the other choices."""
    for point in points:
        table = point.further.get("lens_layers")
        if table is None or table.is_empty():
            continue
        rows = [
            [row["lens"], row["tier"], "all families" if row["family"] == "all" else style.name_of(row["family"]),
             _layer(row["first"]), f"{_layer(row['first_quarter'])} to {_layer(row['first_three_quarters'])}",
             _layer(row["for_good"]), _share(row["never_share"]), str(row["n"])]
            for row in table.iter_rows(named=True)
        ]  # fmt: skip
        head = ["lens", "tier", "questions", "first above (median)", "middle half", "for good (median)", "never", "n"]
        yield ShownTable(f"Layer at which the right answer stands above its rivals: {point.label}", head, rows)


def _layer(value: float | None) -> str:
    return "n/a" if value is None else f"{value:g}"


def _share(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.0%}"
