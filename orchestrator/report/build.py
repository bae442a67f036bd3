"""From results to files: `report.html` and, beside it, each figure as PNG and SVG."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import polars as pl
from matplotlib.figure import Figure

from orchestrator.layout import Storage
from orchestrator.report import figures
from orchestrator.report.figures.base import save
from orchestrator.report.intervals import curves_of
from orchestrator.report.model import PointResults, StudyResults, distinct_points, merged_trials
from orchestrator.report.page import render_page
from orchestrator.report.trial_views import finished, outcomes

REPORT = "report.html"
Drawing = tuple[str, Callable[[], Figure]]


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
    for name, draw in study_figures(results):
        note(name)
        written += save(draw(), folder, f"figures/{name}")
    note(REPORT)
    folder.write(REPORT, render_page(results).encode())
    return [REPORT, *written]


def study_figures(results: StudyResults) -> Iterator[Drawing]:
    """Path below `figures/` and drawing of every static figure the study has tables for."""
    for point in distinct_points(results.points):
        for name, draw in point_figures(point):
            yield f"{point.slug}/{name}", draw
    for model, trials in merged_trials(results.points).items():
        if finished(trials).height and (columns := outcomes(trials)):
            outcome = "accuracy/high" if "accuracy/high" in columns else columns[0]
            yield f"trials/{model}_compression_accuracy", partial(figures.trials_figure, trials, model, outcome)
            yield f"trials/{model}_ratio", partial(figures.ratio_figure, trials, model)


def point_figures(point: PointResults) -> Iterator[Drawing]:
    """File name and drawing of every static figure a point has tables for."""
    title = point.label
    curves = curves_of(point)
    if curves is not None:
        for (tap,), part in curves.group_by("tap", maintain_order=True):
            if part["layer"].n_unique() > 1:
                suffix = "" if tap == "decoder" else f"_{tap}"
                yield f"fig1_compression{suffix}", partial(figures.layer_curves_figure, curves, title, tap=str(tap))
    if (correlations := point.correlations) is not None and correlations.height:
        number = 3 if point.source == "coco" else 2
        table = correlations.filter(pl.col("tap") == "decoder")
        for group, statistic in table.select("group", "statistic").unique(maintain_order=True).iter_rows():
            if group == "text" and statistic != "spearman":
                continue  # the page shows every combination; the static set stays small enough to look through
            yield f"fig{number}_{statistic}_{group}", partial(figures.rho_figure, table, title, group, statistic)
    if (probes := point.probes) is not None and probes.height:
        number = 5 if point.source == "coco" else 4
        yield f"fig{number}_probes", partial(figures.probe_heat_figure, probes, title)
        yield f"fig{number}_probe_curves", partial(figures.probe_curves_figure, probes, title)
        if point.places and point.grid:
            draw = partial(figures.probe_places_figure, probes, title, point.places, point.grid)
            yield f"fig{number}_probe_places", draw
    if (deletion := point.deletion) is not None and deletion.height:
        yield "deletion", partial(figures.deletion_figure, deletion, title)
    if (knockout := point.knockout) is not None and knockout.height:
        yield "knockout", partial(figures.knockout_figure, knockout, title)
    if (patching := point.patching) is not None and patching.height:
        yield "patching", partial(figures.patching_figure, patching, title)
    if point.token_maps:
        yield "token_maps", partial(figures.token_map_figure, point.token_maps[:6], title)
