"""Figures 4 and 5: scores of linear probes on vision and text tokens by layer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from orchestrator.report.figures.base import MISSING, band, head, heat_map, layer_axis, legend, new_panels, styled
from orchestrator.report.probe_views import (
    POSITION_KINDS,
    POSITION_NAMES,
    best_linear,
    by_kind,
    encoder_baseline,
    with_skill,
)
from orchestrator.report.style import CONTROL_COLOUR, GROUP_COLOURS, SEQUENTIAL, TAP_NAMES, name_of

CURVES = {
    "vision_mean": (GROUP_COLOURS["vision"], "-", "o"),
    "vision_single": (GROUP_COLOURS["vision"], "--", "s"),
    "vision_object": (GROUP_COLOURS["vision"], ":", "D"),
    "vision_background": (GROUP_COLOURS["vision"], "-.", "v"),
    "text_mean": (GROUP_COLOURS["text"], "-", "o"),
    "text_single": (GROUP_COLOURS["text"], "--", "s"),
    "last": (GROUP_COLOURS["text"], ":", "^"),
    "before": (CONTROL_COLOUR, "--", "v"),
}
"""Colour of the token group; full line for a mean, dashed for single tokens, dotted for the last token or those that
show an object, dash-dotted for those that show background; grey for
the token that cannot know the image."""


@styled
def probe_heat_figure(probes: pl.DataFrame, title: str, tap: str = "decoder") -> Figure:
    """Layer x attribute heat maps of skill for the mean of vision tokens, one vision token and text tokens.

    A cross marks cells whose interval reaches the baseline or the shuffled-label control.
    """
    table = by_kind(probes).filter(pl.col("tap") == tap)
    kinds = [k for k in POSITION_KINDS if k in set(table["position_kind"])]
    attributes = table["attribute"].unique(maintain_order=True).to_list()
    layers = sorted(table["layer"].unique().to_list())
    title = f"{title}{_where(tap)}"
    figure, panels = new_panels(
        len(kinds), width=1.1 + 0.32 * len(attributes), height=2.0 + 0.2 * min(len(layers), 20), columns=3
    )
    for k, (axes, kind) in enumerate(zip(panels, kinds, strict=True)):
        values = np.full((len(layers), len(attributes)), np.nan)
        unsure = np.zeros(values.shape, dtype=bool)
        rows = table.filter(pl.col("position_kind") == kind)
        for row in rows.iter_rows(named=True):
            place = layers.index(row["layer"]), attributes.index(row["attribute"])
            values[place] = row["skill"]
            unsure[place] = row["skill_low"] is None or row["skill_low"] <= max(0.0, row["skill_control"] or 0.0)
        names = [name_of(a) for a in attributes]
        image = heat_map(
            axes, values, [str(i) for i in layers], names, diverging=False, limits=(0.0, 1.0), marked=unsure
        )
        axes.set_title(POSITION_NAMES[kind])
        if k % 3 == 0:
            axes.set_ylabel(_layer_words(tap))
    bar = figure.colorbar(image, ax=panels, shrink=0.7, aspect=30, pad=0.01)
    bar.set_label("skill: 0 = baseline, 1 = perfect")
    n = int(table["n_test"].max() or 0)  # type: ignore[arg-type]
    head(figure, f"Linear probes · {title} · {n} held-out images · × reaches the baseline or the shuffled control")
    return figure


@styled
def probe_curves_figure(probes: pl.DataFrame, title: str, tap: str = "decoder") -> Figure:
    """Score by layer for each attribute with 95 % intervals, against trivial, shuffled, pixel and encoder baselines."""
    table = by_kind(probes)
    attributes = table.filter(pl.col("tap") == tap)["attribute"].unique(maintain_order=True).to_list()
    figure, panels = new_panels(len(attributes), columns=4)
    scores = _scores(probes)
    encoder = dict(encoder_baseline(probes).iter_rows())
    for axes, attribute in zip(panels, attributes, strict=True):
        part = scores.filter((pl.col("attribute") == attribute) & (pl.col("tap") == tap))
        for kind, (colour, dash, marker) in CURVES.items():
            rows = part.filter(pl.col("position_kind") == kind).sort("layer")
            if rows.height:
                x, mean, low, high = (rows[c].to_list() for c in ("layer", "score", "ci_low", "ci_high"))
                band(axes, x, mean, low, high, colour, POSITION_NAMES[kind], dash, marker)
        baseline = part["baseline"].mean()
        control = part.group_by("layer").agg(pl.col("control").mean()).sort("layer").drop_nulls()
        if control.height:
            axes.plot(control["layer"], control["control"], color=CONTROL_COLOUR, ls=":", lw=1, label="shuffled labels")
        if baseline is not None:
            axes.axhline(float(baseline), color=CONTROL_COLOUR, lw=1, label="majority or mean")  # type: ignore[arg-type]
        pixels = scores.filter((pl.col("attribute") == attribute) & (pl.col("position_kind") == "pixels"))[
            "score"
        ].max()
        if pixels is not None:
            axes.axhline(float(pixels), color="#222222", lw=1, ls="-.", label="pixels")  # type: ignore[arg-type]
        if (above := encoder.get(attribute)) is not None:
            axes.axhline(float(above), color="#222222", lw=1, ls=(0, (1, 1)), label="vision encoder (mean, last block)")
        classes = part["kind"].first() == "classification"
        axes.set_title(name_of(attribute).capitalize())
        axes.set_ylabel("accuracy" if classes else "R²")
        axes.set_ylim(max(-0.25, min(0.0, float(part["ci_low"].min() or 0))) - 0.02, 1.02)  # type: ignore[arg-type]
        layer_axis(axes, _layer_words(tap))
    legend(figure, panels, "outside lower center", 4)
    head(figure, f"Linear probes by layer · {title}{_where(tap)} · band = 95 % interval over held-out images")
    return figure


@styled
def probe_places_figure(
    probes: pl.DataFrame,
    title: str,
    places: Mapping[str, tuple[int, int]],
    grid: tuple[int, int],
    tap: str = "decoder",
) -> Figure:
    """Skill of single vision tokens at their places on the image grid, at the layer where the mean place is best."""
    table = with_skill(best_linear(probes)).filter(
        (pl.col("tap") == tap) & pl.col("position").is_in(list(places)) & pl.col("skill").is_not_null()
    )
    attributes = table["attribute"].unique(maintain_order=True).to_list()
    figure, panels = new_panels(len(attributes), width=2.2, height=2.3, columns=6)
    for axes, attribute in zip(panels, attributes, strict=True):
        rows = table.filter(pl.col("attribute") == attribute)
        means = rows.group_by("layer").agg(pl.col("skill").mean()).sort("skill")
        layer = means["layer"][-1]
        values = np.full(grid, np.nan)
        for position, skill in rows.filter(pl.col("layer") == layer).select("position", "skill").iter_rows():
            values[places[position]] = skill
        image = axes.imshow(np.ma.masked_invalid(values), cmap=SEQUENTIAL, vmin=0, vmax=1)
        axes.set_facecolor(MISSING)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(f"{name_of(attribute)}\nlayer {layer}, best of {means.height}", fontsize=8)
    bar = figure.colorbar(image, ax=panels, shrink=0.7, aspect=30, pad=0.01)
    bar.set_label("skill of one token's probe")
    head(figure, f"What single vision tokens know, by place on the image · {title}{_where(tap)} · grey: not probed")
    return figure


def _where(tap: str) -> str:
    """Heading text for a tap other than the decoder's states."""
    return "" if tap == "decoder" else f" · {TAP_NAMES.get(tap, tap)}"


def _layer_words(tap: str) -> str:
    return "decoder layer (0 = input)" if tap == "decoder" else "decoder layer of the cross-attention"


def _scores(probes: pl.DataFrame) -> pl.DataFrame:
    """Mean score and mean interval over the places of each position kind."""
    return (
        with_skill(best_linear(probes))
        .filter(pl.col("score").is_not_null())
        .group_by("tap", "layer", "position_kind", "attribute", "kind", maintain_order=True)
        .agg(pl.col("score", "ci_low", "ci_high", "baseline", "control").mean())
    )
