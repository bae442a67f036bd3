"""Complexity-ratio sweeps: compression against accuracy for every trial, and the effect of the ratio."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from orchestrator.report.figures.base import head, new_panels, styled
from orchestrator.report.style import (
    CONTROL_COLOUR,
    HEADLINE,
    SEQUENTIAL,
    SERIES_COLOURS,
    colour_of,
    metric_of,
    metric_short,
)
from orchestrator.report.trial_views import compression_columns, effect_of_ratio, finished, outcomes, pareto_front

LEAST_SPAN = 0.1
"""Minimum range of an accuracy axis, so that small differences look small."""


def column_words(column: str) -> str:
    """`delta/vision/stable_rank/middle` -> `Change of stable rank, vision, middle layers`."""
    kind, *rest = column.split("/")
    if kind in ("delta", "compression") and len(rest) == 3:
        group, metric, third = rest
        name = metric_short(metric)
        return ("Change of " + name[0].lower() + name[1:] if kind == "delta" else name) + f", {group}, {third} layers"
    words = {"accuracy": "Accuracy", "accuracy_base": "Accuracy of the base model", "drift": "Drift"}
    return ", ".join([words.get(kind, kind), *(r.replace("_", " ") for r in rest)])


def column_direction(column: str) -> int:
    """+1 if a larger value of a compression column means more compressed, -1 if less, 0 for other columns."""
    metric = metric_of(column.split("/")[2]) if column.count("/") == 3 else None
    return metric.direction if metric is not None else 0


def _turned(axes: Axes, column: str, side: str) -> str:
    """Invert an axis if needed so that up or right is more compressed; returns a label, empty without a direction."""
    direction = column_direction(column)
    if direction < 0:
        (axes.invert_yaxis if side == "up" else axes.invert_xaxis)()
    return {1: f"{side} = more compressed", -1: f"{side} = more compressed (axis turned)", 0: ""}[direction]


def best_columns(trials: pl.DataFrame, outcome: str, n: int = 4) -> list[str]:
    """The `n` compression columns with the strongest rank correlation with `outcome`, one per metric and group.

    With too few trials for a correlation, the headline metrics of the middle layers.
    """
    completed = finished(trials)
    scored = []
    for column in compression_columns(completed):
        pair = completed.select(column, outcome).drop_nulls()
        if pair.height > 2 and pair[column].n_unique() > 1 and pair[outcome].n_unique() > 1:
            rho = pair.select(pl.corr(column, outcome, method="spearman")).item()
            scored.append((-abs(rho), column))
    if not scored:
        middle = [c for c in compression_columns(completed) if c.endswith("/middle") and c.split("/")[2] in HEADLINE]
        return sorted(middle, key=lambda c: (HEADLINE.index(c.split("/")[2]), c))[:n]
    chosen: dict[str, str] = {}
    for _, column in sorted(scored):
        chosen.setdefault(column.rsplit("/", 1)[0], column)
    return list(chosen.values())[:n]


def first_column(trials: pl.DataFrame, outcome: str, sweep: Mapping[str, Any]) -> tuple[str, str]:
    """The first compression column and the reason: a primary outcome of the sweep, else the strongest correlation."""
    columns = compression_columns(finished(trials))
    named = [r["outcome"] for r in sweep.get("contrasts", []) if r["primary"] and r["outcome"] in columns]
    if named:
        return named[0], "named as a primary outcome before the sweep ran"
    of_vision = [c for c in columns if c.split("/")[1] == "vision"] or columns
    best = [c for c in best_columns(trials, outcome, len(columns)) if c in of_vision] if outcome else []
    if best:
        how = f"the one of {len(of_vision)} that goes most with {column_words(outcome).lower()}: chosen by the outcome"
        return best[0], how
    return next(iter(of_vision), ""), ""


@styled
def trials_figure(trials: pl.DataFrame, title: str, outcome: str, columns: Sequence[str] | None = None) -> Figure:
    """Compression against accuracy: one point per trial, ratio as colour, Pareto front of both."""
    completed = finished(trials)
    chosen = list(columns or best_columns(completed, outcome))
    figure, panels = new_panels(max(1, len(chosen)), width=3.4, height=2.9, columns=4)
    for axes, column in zip(panels, chosen, strict=False):
        part = completed.select(column, outcome, "complexity_ratio").drop_nulls()
        if part.is_empty():
            axes.set_axis_off()
            continue
        x, y = part[column].to_list(), part[outcome].to_list()
        sign = column_direction(column) or 1
        front = pareto_front([sign * v for v in x], y)
        axes.plot(
            [x[i] for i in front], [y[i] for i in front], color=CONTROL_COLOUR, lw=1, zorder=1, label="Pareto front"
        )
        dots = axes.scatter(
            x,
            y,
            c=part["complexity_ratio"],
            cmap=SEQUENTIAL,
            vmin=0,
            vmax=1,
            s=34,
            edgecolors="#333333",
            linewidths=0.5,
        )
        axes.set_xlabel(column_words(column).replace(", ", ",\n", 1) + "\n" + _turned(axes, column, "right"))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
        if max(y) - min(y) < LEAST_SPAN:
            middle = (max(y) + min(y)) / 2
            axes.set_ylim(middle - LEAST_SPAN / 2, middle + LEAST_SPAN / 2)
        axes.set_ylabel(column_words(outcome))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(True)
        axes.set_axisbelow(True)
    if chosen:
        figure.colorbar(dots, ax=panels, label="complexity ratio", shrink=0.8, aspect=25, pad=0.01)
        panels[0].legend(loc="best", fontsize=7.5)
    n = len(compression_columns(completed))
    how = "" if columns else f" · the {len(chosen)} of {n} columns that go most with accuracy"
    head(figure, f"Compression against accuracy · {title} · {completed.height} trials{how}")
    return figure


@styled
def ratio_figure(trials: pl.DataFrame, title: str, sweep: Mapping[str, Any] | None = None) -> Figure:
    """Effect of the complexity ratio on accuracy by tier, on drift, and on the most correlated compression columns.

    `sweep`: as for `effect_of_ratio`.
    """
    completed = finished(trials)
    tiers = [c for c in outcomes(completed) if c.count("/") == 1]
    high = "accuracy/high" if "accuracy/high" in tiers else tiers[0]
    drifts = [c for c in ("drift/vision/late", "drift/text/late") if c in completed.columns]
    named, chosen = first_column(completed, high, sweep or {})
    changes = [c for c in dict.fromkeys([named, *best_columns(completed, high, 2)]) if c][: 2 if drifts else 3]
    figure, panels = new_panels(1 + bool(drifts) + len(changes), width=3.3, height=2.7, columns=4)
    shown = {"accuracy/low": (SERIES_COLOURS[0], "o"), "accuracy/high": (SERIES_COLOURS[1], "s")}
    for column in tiers:
        colour, marker = shown.get(column, (SERIES_COLOURS[2], "^"))
        effect = effect_of_ratio(completed, column, sweep)
        _ratio_curve(panels[0], completed, column, effect, colour, marker, column.split("/")[1] + " tier")
        for kind, dash in (("accuracy_base", "--"), ("blind", ":")):
            level = f"{kind}/{column.split('/')[1]}"
            if level in completed.columns and completed[level].drop_nulls().len():
                panels[0].axhline(float(completed[level].drop_nulls()[0]), color=colour, lw=1.1, ls=dash)
    panels[0].set_ylabel("accuracy (dashed: base model,\ndotted: best blind answers)")
    panels[0].set_ylim(0, 1.02)
    panels[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panels[0].set_title("Accuracy")
    panels[0].legend(fontsize=8, loc="upper right", bbox_to_anchor=(1.0, 0.9))
    for column in drifts:
        group = column.split("/")[1]
        _ratio_curve(panels[1], completed, column, effect_of_ratio(completed, column), colour_of(group), "o", group)
    if drifts:
        panels[1].set_title("Drift of states in late layers")
        panels[1].set_ylabel("|change| / |base state|")
        panels[1].set_ylim(bottom=0)
        panels[1].legend(fontsize=8)
    for axes, column in zip(panels[1 + bool(drifts) :], changes, strict=True):
        group = column.split("/")[1] if column.count("/") == 3 else "vision"
        _ratio_curve(axes, completed, column, effect_of_ratio(completed, column), colour_of(group), "o", group)
        axes.axhline(0, color=CONTROL_COLOUR, lw=0.8)
        of = len(compression_columns(completed))
        how = "primary outcome" if column == named and "primary" in chosen else f"chosen of {of} by the outcome"
        axes.set_title(textwrap.fill(f"{column_words(column)} ({how})", 38), fontsize=8)
        axes.set_ylabel(_turned(axes, column, "up"))
    for axes in panels:
        axes.set_xlabel("complexity ratio (share of high tier)")
        axes.grid(True)
        axes.set_axisbelow(True)
    head(figure, f"Effect of the complexity ratio · {title} · dots = trials, bars = 95 % interval")
    return figure


def _ratio_curve(
    axes: Axes, completed: pl.DataFrame, column: str, effect: pl.DataFrame, colour: str, marker: str, label: str
) -> None:
    x, mean = effect["complexity_ratio"].to_list(), effect["mean"].to_list()
    low = [m - (lo if lo is not None else m) for m, lo in zip(mean, effect["ci_low"], strict=True)]
    high = [(hi if hi is not None else m) - m for m, hi in zip(mean, effect["ci_high"], strict=True)]
    axes.errorbar(x, mean, yerr=[low, high], color=colour, marker=marker, markersize=4, capsize=2.5, label=label)
    points = completed.select("complexity_ratio", column).drop_nulls()
    axes.scatter(points["complexity_ratio"], points[column], s=14, color=colour, alpha=0.5, linewidths=0)
