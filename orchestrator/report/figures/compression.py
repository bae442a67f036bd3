"""Figures 1 to 3: compression by layer, and its rank correlation with image attributes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from jaxtyping import Bool, Float
from matplotlib.figure import Figure

from orchestrator.report.figures.base import band, head, heat_map, layer_axis, legend, new_panels, styled
from orchestrator.report.style import (
    TAP_NAMES,
    colour_of,
    direction_of,
    direction_words,
    headline_metrics,
    main_metrics,
    metric_short,
    metric_unit,
    name_of,
)
from orchestrator.store.tables.core import GROUPS

SIGNIFICANT_Q = 0.05
"""Benjamini-Hochberg q below which a correlation is significant."""
LAYER_AXIS = {
    "decoder": "decoder layer (0 = input)",
    "encoder": "vision encoder layer",
    **dict.fromkeys(("cross_k", "cross_v", "cross_out"), "cross-attention layer"),
}
STATISTIC_NAMES = {
    "spearman": "Spearman ρ",
    "conditional_spearman": "conditional Spearman ρ (correlate.hold_fixed held fixed)",
    "epsilon_squared": "ε² (share of rank variance between categories)",
}


@styled
def layer_curves_figure(
    curves: pl.DataFrame, title: str, metrics: Sequence[str] | None = None, tap: str = "decoder"
) -> Figure:
    """Figure 1: mean of each metric over images by layer, vision and text, with 95 % bootstrap intervals.

    Args:
        curves: table of `report.intervals.layer_curves`.
        title: subject, e.g. model and data.
        metrics: metrics to draw; None for the plain and centred ones.
        tap: tap to draw.
    """
    curves = curves.filter((pl.col("tap") == tap) & pl.col("mean").is_finite())
    measured = curves["metric"].unique(maintain_order=True).to_list()
    chosen = [m for m in (metrics or main_metrics(measured)) if m in measured]
    figure, panels = new_panels(len(chosen), columns=4)
    for axes, metric in zip(panels, chosen, strict=True):
        for group in GROUPS:
            part = curves.filter((pl.col("metric") == metric) & (pl.col("group") == group)).sort("layer")
            if part.height:
                x, mean, low, high = (part[c].to_list() for c in ("layer", "mean", "ci_low", "ci_high"))
                band(axes, x, mean, low, high, colour_of(group), f"{group} tokens")
        axes.set_title(metric_short(metric))
        axes.set_ylabel(metric_unit(metric))
        axes.margins(y=0.18)
        if direction := direction_of(metric):
            words = "up = more compressed" + " (axis turned)" * (direction < 0)
            axes.annotate(words, (0.02, 0.985), xycoords="axes fraction", va="top", fontsize=7, color="#555555")
            if direction < 0:
                axes.invert_yaxis()
        layer_axis(axes, LAYER_AXIS.get(tap, "layer"))
    legend(figure, panels, "outside upper right", 2)
    n = int(curves["n"].max() or 0)  # type: ignore[arg-type]
    tap_name = "" if tap == "decoder" else f"{TAP_NAMES.get(tap, tap)} · "
    head(
        figure, f"Compression by layer · {tap_name}{title} · n = {n} images, band = 95 % bootstrap interval of the mean"
    )
    return figure


def rho_grid(
    correlations: pl.DataFrame, metric: str, group: str, statistic: str = "spearman", tap: str = "decoder"
) -> tuple[list[int], list[str], Float[np.ndarray, "layers attributes"], Bool[np.ndarray, "layers attributes"]]:
    """Layers, attributes, value (NaN where null) and whether it is not significant (q >= 0.05) as a grid."""
    part = correlations.filter(
        (pl.col("metric") == metric)
        & (pl.col("group") == group)
        & (pl.col("statistic") == statistic)
        & (pl.col("tap") == tap)
    )
    layers = sorted(part["layer"].unique().to_list())
    attributes = part["attribute"].unique(maintain_order=True).to_list()
    values = np.full((len(layers), len(attributes)), np.nan)
    weak = np.zeros(values.shape, dtype=bool)
    for layer, attribute, rho, q in part.select("layer", "attribute", "rho", "q").iter_rows():
        place = layers.index(layer), attributes.index(attribute)
        if rho is not None:
            values[place] = rho
            weak[place] = q is None or not q < SIGNIFICANT_Q
    return layers, attributes, values, weak


@styled
def rho_figure(
    correlations: pl.DataFrame,
    title: str,
    group: str = "vision",
    statistic: str = "spearman",
    metrics: Sequence[str] | None = None,
    tap: str = "decoder",
) -> Figure:
    """Figures 2 and 3: layer x attribute heat maps of rho, one panel per metric; crosses mark q >= 0.05."""
    measured = (
        correlations.filter((pl.col("tap") == tap) & (pl.col("group") == group) & (pl.col("statistic") == statistic))[
            "metric"
        ]
        .unique(maintain_order=True)
        .to_list()
    )
    chosen = [m for m in (metrics or headline_metrics(measured)) if m in measured]
    first_layers, first_attributes, _, _ = rho_grid(correlations, chosen[0], group, statistic, tap)
    figure, panels = new_panels(
        len(chosen),
        width=max(2.4, 0.9 + 0.30 * len(first_attributes)),
        height=1.5 + 0.17 * min(len(first_layers), 20),
        columns=4,
    )
    diverging = statistic != "epsilon_squared"
    limits = (-1.0, 1.0) if diverging else (0.0, 1.0)
    for k, (axes, metric) in enumerate(zip(panels, chosen, strict=True)):
        layers, attributes, values, weak = rho_grid(correlations, metric, group, statistic, tap)
        last_row = k >= len(chosen) - min(4, len(chosen))
        names = [name_of(a) for a in attributes] if last_row else [""] * len(attributes)
        image = heat_map(
            axes, values, [str(layer) for layer in layers], names, diverging=diverging, limits=limits, marked=weak
        )
        axes.set_title(metric_short(metric) + "\n" * diverging, fontsize=8.5)
        if diverging:
            axes.annotate(direction_words(metric), (0, 1.02), xycoords="axes fraction", fontsize=7, color="#555555")
        if k % 4 == 0:
            axes.set_ylabel(LAYER_AXIS.get(tap, "layer"))
    bar = figure.colorbar(image, ax=panels, shrink=0.6, aspect=30, pad=0.01)
    bar.set_label(STATISTIC_NAMES[statistic])
    bar.outline.set_visible(False)  # type: ignore[operator]
    n = int(correlations["n"].max() or 0)  # type: ignore[arg-type]
    words = f"Compression of {group} tokens against image attributes · {title} · n = {n} images · × marks q ≥ 0.05"
    head(figure, words if diverging else words.replace("attributes", "categories"))
    return figure
