"""Statements on the paper's claims, with their rules, and on correlations among the images' attributes."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from orchestrator.report.hypotheses import judge_hypotheses
from orchestrator.report.hypothesis_rules import NOT_MEASURED
from orchestrator.report.model import PointResults
from orchestrator.report.statement import Statement, interval, number
from orchestrator.report.style import name_of


def claims(point: PointResults) -> list[Statement]:
    """Every measured hypothesis with its rule; the others are listed in one line."""
    rows = judge_hypotheses(point).to_dicts()
    measured = [r for r in rows if r["verdict"] != NOT_MEASURED]
    if not measured:
        return []
    statements = [
        Statement(
            r["claim"],
            f"{r['effect_name']}: {number(r['effect'], 3)} {interval(r['ci_low'], r['ci_high'], _fine)}"
            f"{'' if r['n'] is None else ', n = ' + str(r['n'])} ({r['note']}). Rule: {r['rule'].removesuffix('.')}",
            r["verdict"],
            "hypothesis",
        )
        for r in measured
    ]
    absent = "; ".join(f"{r['hypothesis']} {r['note']}" for r in rows if r["verdict"] == NOT_MEASURED)
    if absent:
        statements.append(Statement("Other claims of the paper were not measured here.", absent, topic="hypothesis"))
    return statements


def _fine(value: float | None) -> str:
    return number(value, 3)


def design(point: PointResults) -> Iterator[Statement]:
    """Strongest correlations among the images' attributes, as possible confounders."""
    pairs = point.further.get("attribute_correlations")
    measured = None if pairs is None else pairs.filter(pl.col("rho").is_not_null())
    if measured is None or measured.is_empty():
        return
    ordered = measured.sort(pl.col("rho").abs(), descending=True)
    factors = ordered.filter((pl.col("first_role") == "factor") & (pl.col("second_role") == "factor"))
    derived = sorted({r[k] for r in ordered.to_dicts() for k in ("first", "second") if r[f"{k}_role"] == "derived"})
    if factors.height:
        text = f"The scenes' factors were drawn independently: no two correlate by more than {number(_rho(factors))}."
        derived_note = f"; derived from several of them: {', '.join(map(name_of, derived))}" if derived else ""
        yield Statement(text, f"{factors.height} pairs, {factors['n'][0]} images{derived_note}", topic="data")
        return
    top = ordered.head(3).to_dicts()
    listed = "; ".join(f"{name_of(r['first'])} with {name_of(r['second'])} {number(r['rho'])}" for r in top)
    yield Statement(
        f"The images' attributes go together by up to {number(_rho(ordered))}: an effect of one may be another's.",
        f"the largest of {ordered.height} rank correlations, {ordered['n'][0]} images: {listed}",
        topic="data",
    )


def _rho(pairs: pl.DataFrame) -> float:
    return float(pairs["rho"].abs().max())  # type: ignore[arg-type]
