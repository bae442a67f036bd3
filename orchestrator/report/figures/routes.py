"""Figures of blocked attention routes, replaced visual states, lenses, attention, and ranks of selection methods."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orchestrator.report.causal_views import averaged_replacing, narrow_routes, whole_routes
from orchestrator.report.figures.base import MISSING, accuracy_axis, band, head, layer_axis, legend, new_panels, styled
from orchestrator.report.model import AttentionMap
from orchestrator.report.style import PLACES, SEQUENTIAL, colour_of, name_of

TIERS = {"low": "-", "high": "--"}
"""Line style of a tier."""


def tier_title(tier: str) -> str:
    """Title of a tier's panel."""
    return "All questions" if tier == "all" else f"{tier.capitalize()} tier"


def _finish(figure: Figure, panels: list[Axes], title: str) -> Figure:
    legend(figure, panels, "outside right upper")
    head(figure, title)
    return figure


def _rows(table: pl.DataFrame, **values: object) -> pl.DataFrame:
    return table.filter(*(pl.col(column) == value for column, value in values.items()))


def _curve(axes: Axes, rows: pl.DataFrame, columns: Sequence[str], colour: str, label: str, dash: str = "-") -> None:
    if rows.height:
        x, mean, low, high = (rows[c].to_list() for c in columns)
        band(axes, x, mean, low, high, colour, label, dash)


@styled
def routes_figure(routes: pl.DataFrame, title: str) -> Figure:
    """Change of the right answer's probability with a route blocked in a window of layers: panels are tiers.

    Points at the right edge: blocked in all layers.
    """
    table = routes.filter((pl.col("checkpoint") == "base") & (pl.col("family") == "all"))
    narrow, whole = narrow_routes(table), whole_routes(table)
    tiers = table["tier"].unique(maintain_order=True).to_list()
    names = table.select("source", "target").unique(maintain_order=True).rows()
    figure, panels = new_panels(max(1, len(tiers)), width=4.4, height=3.0, share_y=True)
    for axes, tier in zip(panels, tiers, strict=False):
        axes.axhline(0, color="0.5", lw=0.8)
        for k, (source, target) in enumerate(names):
            setting = {"tier": tier, "source": source, "target": target}
            label, colour = f"{source} to {target}", colour_of("", k)
            rows = _rows(narrow, **setting).sort("centre")
            _curve(axes, rows, ("centre", "change", "change_low", "change_high"), colour, label)
            for row in _rows(whole, **setting).iter_rows(named=True):
                if row["change"] is not None:
                    at = row["last_layer"] + 1.2 + 0.15 * k
                    axes.plot([at], [row["change"]], marker="D", ms=4, color=colour, ls="")
                    axes.vlines(at, row["change_low"] or np.nan, row["change_high"] or np.nan, color=colour, lw=1)
        layer_axis(axes, "decoder layers blocked (diamonds: all of them)")
        axes.set_title(tier_title(tier))
    panels[0].set_ylabel("change of the right answer's probability")
    return _finish(figure, panels, f"Routes of attention blocked · {title} · 95 % interval over images")


@styled
def replacing_figure(replacing: pl.DataFrame, title: str) -> Figure:
    """Accuracy with visual states replaced at a layer, mean over families: panels are replaced tokens and tiers."""
    table = averaged_replacing(replacing.filter(pl.col("checkpoint") == "base"))
    places = table.select("place", "tier").unique(maintain_order=True).rows()
    figure, panels = new_panels(max(1, len(places)), width=3.2, height=2.7, columns=3, share_y=True)
    for axes, (place, tier) in zip(panels, places, strict=False):
        for k, kind in enumerate(table["kind"].unique(maintain_order=True)):
            rows = _rows(table, place=place, tier=tier, kind=kind).sort("layer")
            if rows.height:
                label = f"by {kind}" + (" (mean of seeds)" if kind == "noise" else "")
                axes.plot(rows["layer"], rows["accuracy"], color=colour_of("", k), label=label, marker="o", ms=3)
        axes.set_title(f"{PLACES[place].capitalize()}, {tier} tier")
        accuracy_axis(axes)
        layer_axis(axes, "layer at whose input they are replaced")
    for axes in panels[::3]:
        axes.set_ylabel("accuracy, mean over families")
    return _finish(figure, panels, f"Visual states replaced · {title}")


@styled
def lens_figure(lens: pl.DataFrame, title: str) -> Figure:
    """Share of tokens at which the right answer outranks the other choices, by layer: panels are kinds of token."""
    table = lens.filter((pl.col("checkpoint") == "base") & (pl.col("family") == "all"))
    places = table["place"].unique(maintain_order=True).to_list()
    figure, panels = new_panels(max(1, len(places)), width=3.2, height=2.7, columns=3, share_y=True)
    for axes, place in zip(panels, places, strict=False):
        for k, name in enumerate(("tuned", "logit")):
            for tier in table["tier"].unique(maintain_order=True):
                rows = _rows(table, place=place, lens=name, tier=tier).sort("layer")
                label = f"{name} lens, {tier} tier"
                columns = ("layer", "above", "ci_low", "ci_high")
                _curve(axes, rows, columns, colour_of("", k), label, TIERS.get(tier, "-"))
        axes.set_title(PLACES[place].capitalize())
        accuracy_axis(axes)
        layer_axis(axes, "point of the residual stream")
    for axes in panels[::3]:
        axes.set_ylabel("right answer above its rivals")
    return _finish(figure, panels, f"Lenses · {title} · band = 95 % interval")


@styled
def attention_figure(attention: pl.DataFrame, title: str) -> Figure:
    """Share of attention to the image, and excess of attention on objects over their share of tokens."""
    table = attention.filter((pl.col("checkpoint") == "base") & (pl.col("family") == "all"))
    shown = {"to_image": "share of attention on the image", "over_share": "on objects, beyond their share of tokens"}
    figure, panels = new_panels(2, width=4.2, height=2.8)
    for axes, (measure, words) in zip(panels, shown.items(), strict=True):
        for k, target in enumerate(table["target"].unique(maintain_order=True)):
            for tier in table["tier"].unique(maintain_order=True):
                rows = _rows(table, target=target, tier=tier).sort("layer")
                columns = ("layer", measure, f"{measure}_low", f"{measure}_high")
                _curve(axes, rows, columns, colour_of("", k), f"{PLACES[target]}, {tier} tier", TIERS.get(tier, "-"))
        axes.set_ylabel(words)
        layer_axis(axes, "decoder layer")
    panels[1].axhline(0, color="0.5", lw=0.8)
    return _finish(figure, panels, f"Where attention goes · {title} · 95 % interval")


@styled
def attention_map_figure(maps: Sequence[AttentionMap], title: str) -> Figure:
    """One row per question: the image, then the attention to its tokens by layer (1 = uniform)."""
    columns = max(len(shown.layers) for shown in maps)
    figure, panels = new_panels(len(maps) * (columns + 1), width=1.35, height=1.5, columns=columns + 1)
    limit = float(max(np.nanquantile(shown.relative, 0.99) for shown in maps))
    image = None
    for row, shown in enumerate(maps):
        axes = panels[row * (columns + 1)]
        axes.imshow(shown.thumbnail)
        axes.set_xlabel(shown.words, fontsize=6, wrap=True)
        for k in range(columns):
            axes = panels[row * (columns + 1) + 1 + k]
            if k >= len(shown.layers):
                axes.set_visible(False)
                continue
            high, wide = shown.thumbnail.shape[:2]
            axes.imshow(shown.thumbnail, extent=(0, wide, high, 0))
            values = np.ma.masked_invalid(shown.relative[k])
            image = axes.imshow(values, cmap=SEQUENTIAL, vmin=0, vmax=limit, alpha=0.7, extent=(0, wide, high, 0))
            axes.set_facecolor(MISSING)
            if row == 0:
                axes.set_title(f"layer {shown.layers[k]}", fontsize=8)
    for axes in panels:
        axes.set_xticks([])
        axes.set_yticks([])
    if image is not None:
        figure.colorbar(image, ax=panels, label="attention (1 = equal share)", shrink=0.6, aspect=30, pad=0.01)
    head(figure, f"Attention on the picture, from {PLACES[maps[0].target]} · {title}")
    return figure


@styled
def rank_figure(ranks: pl.DataFrame, title: str) -> Figure:
    """Mean rank of selection methods over families: panels are tiers and budgets; filled: tied with the best."""
    table = ranks.filter(pl.col("family") == "all")
    scopes = table.select("tier", "budget").unique(maintain_order=True).sort("tier", "budget", descending=[True, True])
    figure, panels = new_panels(max(1, scopes.height), width=4.0, height=3.4, columns=3)
    for axes, (tier, budget) in zip(panels, scopes.rows(), strict=False):
        rows = _rows(table, tier=tier, budget=budget).sort("rank", descending=True)
        for at, row in enumerate(rows.iter_rows(named=True)):
            axes.plot(row["rank"], at, "o", color=colour_of("vision"), mfc=None if row["tied"] else "white")
        axes.set_yticks(range(rows.height), [name_of(m) for m in rows["method"]], fontsize=6.5)
        axes.set_title(f"{tier_title(tier)}, {budget:.1%}")
        axes.set_xlabel(f"mean rank over families (1 is best of {rows.height})")
        axes.grid(True, axis="x")
    return _finish(figure, panels, f"Ranks of methods · {title} · filled: not told apart from the first")
