"""`vtsweep compare`: one report over several studies, with differences and agreements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from orchestrator.cli.render import print_rows
from orchestrator.errors import StorageError
from orchestrator.progress import Progress
from orchestrator.store.study_record import Study


def compare_studies(studies: Sequence[Study], out: str, quiet: bool = False) -> dict[str, Any]:
    """Write one report over several studies; returns its path, the agreements and the differences, as plain values.

    Raises:
        StorageError: fewer than two studies are given.
    """
    from orchestrator.report.build import compared, make_comparison
    from orchestrator.report.collect import gather_results
    from orchestrator.report.contrast import agreements, differences
    from orchestrator.report.model import distinct_points
    from orchestrator.store.filesystem import Storage

    if len(studies) < 2:
        raise StorageError(f"compare needs two or more studies, found {len(studies)}")
    storage = Storage(out)
    results = [gather_results(study) for study in studies]
    with Progress("comparison", None, "files", quiet=quiet) as progress:
        written = make_comparison(results, storage, lambda name: progress.advance(1, name))
    points = distinct_points(compared(results).points)
    several = points if len(points) > 1 else []
    return {
        "report": storage.locate(written[0]),
        "points": [point.label for point in points],
        "agreements": [asdict(row) for row in agreements(several)],
        "differences": [asdict(row) for row in differences(several)],
    }


def print_comparison(comparison: dict[str, Any]) -> None:
    """Print verdicts that disagree, differences whose interval excludes 0, and the report's path."""
    console = Console(soft_wrap=True, highlight=False)
    rows = [
        {"statement": a["statement"], **a["verdicts"], "": a["agreement"]}
        for a in comparison["agreements"]
        if a["agreement"] == "disagree"
    ]
    if rows:
        print_rows("Verdicts that disagree", rows, console)
    agreed = sum(a["agreement"] == "agree" for a in comparison["agreements"])
    console.print(f"{agreed} of {len(comparison['agreements'])} verdicts agree, {len(rows)} disagree")
    certain = [d for d in comparison["differences"] if d["reading"] != "not told apart"]
    shown = [
        {
            "quantity": f"{d['quantity']} {d['part']}".strip(),
            "difference": f"{d['value']:+.3f} [{d['ci_low']:+.3f}, {d['ci_high']:+.3f}]",
            "reading": d["reading"],
        }
        for d in certain
    ]
    if shown:
        print_rows("Differences told apart from 0 (95 % intervals)", shown, console)
    console.print(f"{len(certain)} of {len(comparison['differences'])} differences are told apart from 0")
    console.print(f"comparison: [bold]{comparison['report']}[/]")
