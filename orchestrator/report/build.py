"""Write a report: `report.html`, and each figure as PNG and SVG."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial

import polars as pl
from matplotlib.figure import Figure

from orchestrator.correlate.consensus import main_tap
from orchestrator.report import figures
from orchestrator.report.answer import answers
from orchestrator.report.figures.base import save
from orchestrator.report.hypotheses import hypothesis_table
from orchestrator.report.hypothesis_rules import HYPOTHESIS_FILE
from orchestrator.report.intervals import curves_of
from orchestrator.report.model import PointResults, StudyResults, distinct_points, merged_trials
from orchestrator.report.page import render_page
from orchestrator.report.probe_views import decoder_taps, vision_tap
from orchestrator.report.trial_views import finished, outcomes
from orchestrator.report.words import summary
from orchestrator.store.filesystem import Storage
from orchestrator.store.tables.core import GROUPS

REPORT = "report.html"
ANSWERS = "answers.json"
"""File with the sentences of the page's first screen, for lists of studies."""
Drawing = tuple[str, Callable[[], Figure]]


def make_report(results: StudyResults, folder: Storage, note: Callable[[str], None] = lambda _: None) -> list[str]:
    """Write the study's page and figures into `folder`.

    Args:
        results: the study.
        folder: output folder; existing files are replaced.
        note: called with the name of each figure before it is drawn, for progress.

    Returns:
        Names of the written files within `folder`, the page first.
    """
    written = []
    for name, draw in study_figures(results):
        note(name)
        written += save(draw(), folder, f"figures/{name}")
    points = distinct_points(results.points)
    if points:
        note(HYPOTHESIS_FILE)
        folder.write(HYPOTHESIS_FILE, hypothesis_table(points).write_csv().encode())
        written.append(HYPOTHESIS_FILE)
    note(REPORT)
    folder.write(REPORT, render_page(results).encode())
    folder.write_json(ANSWERS, [asdict(answer) for answer in answers(results, summary(results))])
    return [REPORT, *written]


def make_comparison(
    studies: Sequence[StudyResults], folder: Storage, note: Callable[[str], None] = lambda _: None
) -> list[str]:
    """Write one page that compares all points of several studies, and the figures of each, into `folder`.

    Returns:
        Names of the written files within `folder`, the page first.
    """
    return make_report(compared(studies), folder, note)


def compared(studies: Sequence[StudyResults]) -> StudyResults:
    """Several studies merged into one; equal labels of points are prefixed by the study's name."""
    labels = [p.label for s in studies for p in s.points]
    points = [
        replace(p, label=f"{s.name}: {p.label}") if labels.count(p.label) > 1 else p for s in studies for p in s.points
    ]
    numbered = [
        replace(p, label=f"{p.label} ({i + 1})") if [q.label for q in points].count(p.label) > 1 else p
        for i, p in enumerate(points)
    ]
    stages = [s.stages.select(pl.lit(s.name).alias("study"), pl.all()) for s in studies if s.stages is not None]
    return StudyResults(
        name=" against ".join(dict.fromkeys(s.name for s in studies)),
        description="Side by side: " + " | ".join(f"{s.name}: {s.description}" for s in studies),
        created=max(s.created for s in studies),
        command="\n".join(dict.fromkeys(s.command for s in studies)),
        versions={k: v for s in studies for k, v in s.versions.items()},
        hardware={k: v for s in studies for k, v in s.hardware.items()},
        points=tuple(numbered),
        config="\n---\n".join(s.config for s in studies),
        stages=pl.concat(stages, how="diagonal_relaxed") if stages else None,
    )


def study_figures(results: StudyResults) -> Iterator[Drawing]:
    """Path below `figures/` and drawing function of every static figure that the study has tables for."""
    for point in distinct_points(results.points):
        for name, draw in point_figures(point):
            yield f"{point.slug}/{name}", draw
    sweeps = {p.model: p.sweep for p in results.points if p.sweep}
    for model, trials in merged_trials(results.points).items():
        if finished(trials).height and (columns := outcomes(finished(trials))):
            outcome = "accuracy/high" if "accuracy/high" in columns else columns[0]
            yield f"trials/{model}_compression_accuracy", partial(figures.trials_figure, trials, model, outcome)
            yield f"trials/{model}_ratio", partial(figures.ratio_figure, trials, model, sweeps.get(model))


def point_figures(point: PointResults) -> Iterator[Drawing]:
    """File name and drawing function of every static figure that a point has tables for."""
    title = point.label
    curves = curves_of(point)
    if curves is not None:
        curves = curves.filter(pl.col("mean").is_finite())
        for (tap,), part in curves.group_by("tap", maintain_order=True):
            if part["layer"].n_unique() > 1:
                suffix = "" if tap == "decoder" else f"_{tap}"
                yield f"fig1_compression{suffix}", partial(figures.layer_curves_figure, curves, title, tap=str(tap))
    if (correlations := point.correlations) is not None and correlations.height:
        number = 3 if point.source == "coco" else 2
        for group in GROUPS:
            tap = main_tap(correlations, group)
            table = _ordered(correlations, point).filter((pl.col("tap") == tap) & (pl.col("group") == group))
            for statistic in table["statistic"].unique(maintain_order=True):
                if group == "text" and statistic != "spearman":
                    continue  # the page shows every combination; the number of static figures is limited
                draw = partial(figures.rho_figure, table, title, group, statistic, tap=str(tap))
                yield f"fig{number}_{statistic}_{group}", draw
    if (probes := point.probes) is not None and probes.height:
        probes = _ordered(probes, point)
        number = 5 if point.source == "coco" else 4
        for tap in decoder_taps(probes):
            suffix = "" if tap == "decoder" else f"_{tap}"
            yield f"fig{number}_probes{suffix}", partial(figures.probe_heat_figure, probes, title, tap=tap)
            yield f"fig{number}_probe_curves{suffix}", partial(figures.probe_curves_figure, probes, title, tap=tap)
        tap = vision_tap(probes)
        placed = pl.col("position").is_in(list(point.places or ())) & (pl.col("tap") == tap)
        if point.grid and probes.filter(placed & pl.col("score").is_not_null()).height:
            draw = partial(figures.probe_places_figure, probes, title, point.places, point.grid, tap=tap)
            yield f"fig{number}_probe_places", draw
    yield from causal_figures(point)
    if point.token_maps:
        yield "token_maps", partial(figures.token_map_figure, point.token_maps[:6], title)


CAUSAL = {
    "deletion": figures.deletion_figure,
    "rivals": figures.rivals_figure,
    "knockout": figures.knockout_figure,
    "routes": figures.routes_figure,
    "replacing": figures.replacing_figure,
    "lens": figures.lens_figure,
    "attention": figures.attention_figure,
    "patching": figures.patching_figure,
}
"""Drawing of each causal check's table, by its name."""


def causal_figures(point: PointResults) -> Iterator[Drawing]:
    """File name and drawing function of every figure of an ablation that a point has tables for."""
    for name, draw in CAUSAL.items():
        table = getattr(point, name)
        if table is not None and table.height:
            yield name, partial(draw, table, point.label)
    ranks = point.further.get("rival_ranks")
    if ranks is not None and ranks.height:
        yield "rival_ranks", partial(figures.rank_figure, ranks, point.label)
    for target in dict.fromkeys(shown.target for shown in point.attention_maps):
        maps = [shown for shown in point.attention_maps if shown.target == target]
        yield f"attention_maps_{target}", partial(figures.attention_map_figure, maps, point.label)


def _ordered(table: pl.DataFrame, point: PointResults) -> pl.DataFrame:
    """`table` with its attributes in the order of the source, so that related ones are adjacent."""
    order = {name: i for i, name in enumerate(point.attribute_kinds)}
    rank = pl.col("attribute").replace_strict(order, default=len(order), return_dtype=pl.Int32)
    return table.sort(rank, maintain_order=True)
