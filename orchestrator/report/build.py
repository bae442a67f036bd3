"""From results to files: `report.html` and, beside it, each figure as PNG and SVG."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from matplotlib.figure import Figure

from orchestrator.layout import Storage
from orchestrator.report.figures.base import save
from orchestrator.report.figures.compression import layer_curves_figure, rho_figure
from orchestrator.report.intervals import curves_of
from orchestrator.report.model import PointResults, StudyResults
from orchestrator.report.page import render_page

REPORT = "report.html"


def make_report(results: StudyResults, folder: Storage, note: Callable[[str], None] = lambda _: None) -> list[str]:
    """Write the study's page and figures into `folder`.

    Args:
        results: the study.
        folder: where the files go; existing ones are replaced.
        note: called with the name of each figure before it is drawn, for progress.

    Returns:
        Names of the written files within `folder`, the page first.
    """
    written = []
    for point in distinct(results.points):
        for name, draw in point_figures(point):
            note(name)
            written += save(draw(), folder, f"figures/{point.slug}/{name}")
    note(REPORT)
    folder.write(REPORT, render_page(results).encode())
    return [REPORT, *written]


def distinct(points: tuple[PointResults, ...]) -> list[PointResults]:
    """Points whose measurements differ: those that share a capture (fine-tuning trials of one model) count once."""
    seen: dict[str, PointResults] = {}
    for point in points:
        seen.setdefault(point.digests.get("capture", point.label), point)
    return list(seen.values())


def point_figures(point: PointResults) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """File name and drawing of every static figure a point has tables for."""
    curves = curves_of(point)
    if curves is not None:
        for tap in curves["tap"].unique(maintain_order=True):
            if tap != "decoder" and curves.filter(curves["tap"] == tap)["layer"].n_unique() < 2:
                continue
            suffix = "" if tap == "decoder" else f"_{tap}"
            yield f"fig1_compression{suffix}", lambda tap=tap: layer_curves_figure(curves, point.label, tap=tap)
    if point.correlations is not None and point.correlations.height:
        number = 3 if point.source == "coco" else 2
        table = point.correlations.filter(point.correlations["tap"] == "decoder")
        for group, statistic in table.select("group", "statistic").unique(maintain_order=True).iter_rows():
            if group == "text" and statistic != "spearman":
                continue  # the page shows every combination; the static set stays small enough to look through
            yield (
                f"fig{number}_{statistic}_{group}",
                lambda group=group, statistic=statistic: rho_figure(table, point.label, group, statistic),
            )
