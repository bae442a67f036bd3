"""Token deletion, attention knock-out and activation patching."""

from __future__ import annotations

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from orchestrator.report.causal_views import measured_rivals, over_seeds, windows, without_knockout
from orchestrator.report.figures.base import accuracy_axis, band, head, layer_axis, legend, new_panels, styled
from orchestrator.report.style import PLACES, colour_of, name_of

ALL_TOKENS = "all tokens"
TIERS = {"low": ("-", "o"), "high": ("--", "s")}
"""Dash and marker of a tier."""


def _finish(figure: Figure, panels: list[Axes], title: str) -> Figure:
    for axes in panels:
        axes.grid(True)
        axes.set_axisbelow(True)
    legend(figure, panels, "outside right upper")
    head(figure, title)
    return figure


def _questions(table: pl.DataFrame) -> list[tuple[str, str]]:
    pairs = table.select("family", "tier").unique(maintain_order=True).rows()
    return sorted(pairs, key=lambda pair: (pair[1] != "low", pair[0]))


@styled
def deletion_figure(deletion: pl.DataFrame, title: str) -> Figure:
    """Accuracy against the share of visual tokens deleted after the projector: panels are methods, lines families."""
    table = over_seeds(deletion.filter((pl.col("layer") == 0) & (pl.col("checkpoint") == "base")))
    methods = deletion["method"].unique(maintain_order=True).to_list()
    figure, panels = new_panels(len(methods), width=3.4, height=2.9, columns=3, share_y=True)
    for axes, method in zip(panels, methods, strict=True):
        for family, tier in _questions(table):
            rows = table.filter(
                (pl.col("method") == method) & (pl.col("family") == family) & (pl.col("tier") == tier)
            ).sort("deleted_share")
            if rows.height:
                x, mean, low, high = (rows[c].to_list() for c in ("deleted_share", "accuracy", "ci_low", "ci_high"))
                dash, marker = TIERS.get(tier, ("-", "o"))
                band(axes, x, mean, low, high, colour_of(family), f"{name_of(family)}, {tier} tier", dash, marker)
        axes.set_title(name_of(method).capitalize())
        axes.set_xlabel("share of visual tokens deleted")
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        accuracy_axis(axes)
    for axes in panels[::3]:
        axes.set_ylabel("accuracy")
    return _finish(figure, panels, f"Accuracy when visual tokens are deleted · {title} · band = 95 % interval")


@styled
def rivals_figure(rivals: pl.DataFrame, title: str) -> Figure:
    """Accuracy against the average share of tokens: panels are tiers, lines methods."""
    table = measured_rivals(rivals).filter((pl.col("family") == "all") & (pl.col("difficulty") == "all"))
    tiers = table["tier"].unique(maintain_order=True).to_list()
    figure, panels = new_panels(max(1, len(tiers)), width=4.4, height=3.2, share_y=True)
    methods = [m for m in table["method"].unique(maintain_order=True) if m != ALL_TOKENS]
    for axes, tier in zip(panels, tiers, strict=False):  # an empty panel if nothing was measured
        for k, method in enumerate(methods):
            rows = table.filter((pl.col("method") == method) & (pl.col("tier") == tier)).sort("budget")
            x, mean, low, high = (rows[c].to_list() for c in ("budget", "accuracy", "ci_low", "ci_high"))
            control = method in ("random", "downsample")
            band(axes, x, mean, low, high, colour_of(method, k), name_of(method), "--" if control else "-")
        full = table.filter((pl.col("method") == ALL_TOKENS) & (pl.col("tier") == tier))["accuracy"]
        if full.len():
            axes.axhline(full[0], color="0.4", lw=0.8, ls=":")
        axes.set_title(f"{tier.capitalize()} tier" if tier != "all" else "All questions")
        axes.set_xlabel("visual tokens, mean over layers that read them")
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        accuracy_axis(axes)
    panels[0].set_ylabel("accuracy (dotted: all tokens)")
    return _finish(figure, panels, f"Ways to drop or merge visual tokens · {title} · band = 95 % interval")


@styled
def knockout_figure(knockout: pl.DataFrame, title: str) -> Figure:
    """Accuracy with attention from text to vision blocked in a window of layers, and separately in all layers, as bars.

    A line across a bar shows the same questions without blocking.
    """
    base = knockout.filter(pl.col("checkpoint") == "base")
    table, plain = windows(base), without_knockout(base)
    tiers = [t for t in ("low", "high") if t in set(table["tier"])]
    width = table["last_layer"] - table["first_layer"]
    narrow, widest = table.filter(width == width.min()), table.filter(width == width.max())
    places = narrow.select("first_layer", "last_layer").unique().sort("first_layer").rows()
    n_slots = len(places) + (1.5 if width.max() > width.min() else 0)  # type: ignore[operator]
    figure, panels = new_panels(len(tiers), width=max(4.2, 0.5 * n_slots + 1), height=2.9, share_y=True)
    for axes, tier in zip(panels, tiers, strict=True):
        families = [family for family, t in _questions(table) if t == tier]
        thick = 0.8 / max(1, len(families))
        for number, family in enumerate(families):
            of_panel = (pl.col("family") == family) & (pl.col("tier") == tier)
            bars = [
                (float(x), narrow.filter(of_panel & (pl.col("first_layer") == first)))
                for x, (first, _) in enumerate(places)
            ]
            if n_slots > len(places):
                bars.append((len(places) + 0.5, widest.filter(of_panel)))
            level = plain.filter(of_panel)["accuracy"].drop_nulls()
            for x, rows in bars:
                if rows.height and (row := rows.row(0, named=True))["accuracy"] is not None:
                    at = x - 0.4 + (number + 0.5) * thick
                    label = f"{name_of(family)}, {tier} tier" if x == 0 else None
                    axes.bar(at, row["accuracy"], thick * 0.92, color=colour_of(family), label=label)
                    axes.vlines(at, row["ci_low"], row["ci_high"], color="#222222", lw=0.8)
                    if level.len():
                        axes.hlines(level[0], at - thick / 2, at + thick / 2, color="#222222", lw=1.1, ls=":")
        names = [str(first) if first == last else f"{first}-{last}" for first, last in places]
        ticks = list(range(len(places))) + ([len(places) + 0.5] if n_slots > len(places) else [])
        axes.set_xticks(ticks, names + (["all"] if n_slots > len(places) else []))
        axes.set_title(f"{tier.capitalize()} tier")
        axes.set_xlabel("decoder layers in which text cannot attend to vision")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_ylim(0, 1.02)
    panels[0].set_ylabel("accuracy (dotted: nothing blocked)")
    return _finish(figure, panels, f"Where text reads vision: attention knock-out · {title} · bars = 95 % interval")


@styled
def patching_figure(patching: pl.DataFrame, title: str) -> Figure:
    """Share of answers that flip to the donor's answer by layer of patching: panels are patched tokens."""
    table = patching.filter(pl.col("checkpoint") == "base")
    places = table["place"].unique(maintain_order=True).to_list()
    figure, panels = new_panels(
        len(places), width=4.6 if len(places) == 1 else 3.2, height=2.9, columns=3, share_y=True
    )
    for axes, place in zip(panels, places, strict=True):
        for k, attribute in enumerate(table["attribute"].unique(maintain_order=True)):
            rows = table.filter((pl.col("attribute") == attribute) & (pl.col("place") == place)).sort("layer")
            x, mean, low, high = (rows[c].to_list() for c in ("layer", "flip_share", "ci_low", "ci_high"))
            band(axes, x, mean, low, high, colour_of(attribute, k), name_of(attribute))
        axes.set_title(PLACES[place].capitalize())
        accuracy_axis(axes)
        layer_axis(axes, "decoder layer whose states are replaced")
    for axes in panels[::3]:
        axes.set_ylabel("answers that flip to the donor's")
    return _finish(figure, panels, f"Activation patching · {title} · band = 95 % interval")
