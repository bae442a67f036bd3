"""Common parts of static figures: style, panel grids, heat maps, and PNG + SVG output. No pyplot, no global state."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator, PercentFormatter

from orchestrator.report.style import DIVERGING, SEQUENTIAL
from orchestrator.store.filesystem import Storage

RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "figure.titlesize": 10,
    "figure.titleweight": "bold",
    "axes.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.7,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "vtsweep",
}
MISSING = "#DDDDDD"
"""Colour of a cell without a value."""

P = ParamSpec("P")


class ShownFigure(Figure):
    """A figure that a notebook displays without pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=90)
        return buffer.getvalue()


def styled(function: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorator: draw with the report's style; the caller's matplotlib settings have no effect and are not changed."""

    @wraps(function)
    def draw(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(RC):
            return function(*args, **kwargs)

    return draw


def head(figure: Figure, text: str) -> None:
    """The figure's heading, wrapped to its width."""
    figure.suptitle(textwrap.fill(text, int(12.5 * figure.get_figwidth())), x=0.01, ha="left")


def legend(figure: Figure, panels: Sequence[Axes], loc: str, ncols: int = 1) -> None:
    """One legend for all panels, with each label once."""
    handles: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(list(handles.values()), list(handles), loc=loc, ncols=ncols, fontsize=8.5)  # type: ignore[call-overload]


def new_panels(
    n: int, width: float = 3.1, height: float = 2.3, columns: int = 4, share_y: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure with `n` equal panels (size in inches), at most `columns` per row."""
    columns = min(columns, n)
    rows = math.ceil(n / columns)
    figure = ShownFigure(figsize=(width * columns + 0.4, height * rows + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=share_y)
    axes = [a for row in grid for a in row]
    for spare in axes[n:]:
        spare.set_visible(False)
    return figure, axes[:n]


def layer_axis(axes: Axes, label: str = "decoder layer (0 = input)") -> None:
    """Integer ticks for a layer axis."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))
    axes.set_xlabel(label)
    axes.grid(True)
    axes.set_axisbelow(True)


def accuracy_axis(axes: Axes) -> None:
    """A vertical axis of shares, in percent from 0 to 100."""
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylim(-0.02, 1.02)


def band(
    axes: Axes,
    x: Sequence[float],
    mean: Sequence[float | None],
    low: Sequence[float | None],
    high: Sequence[float | None],
    colour: str,
    label: str,
    dash: str = "-",
    marker: str = "o",
) -> None:
    """A curve with its interval as a band; a single point is a marker with an error bar. None is a gap."""
    middle, below, above = (np.asarray(values, dtype=np.float64) for values in (mean, low, high))
    if len(x) == 1:
        error = np.nan_to_num(np.maximum(0.0, np.stack([middle - below, above - middle])))
        axes.errorbar(x, middle, yerr=error, color=colour, label=label, fmt=marker, capsize=3)
        return
    axes.fill_between(x, below, above, color=colour, alpha=0.2, linewidth=0)
    axes.plot(x, middle, color=colour, label=label, linestyle=dash, marker=marker, markersize=3)


def heat_map(
    axes: Axes,
    values: Float[np.ndarray, "rows columns"],
    row_names: Sequence[str],
    column_names: Sequence[str],
    *,
    diverging: bool,
    limits: tuple[float, float],
    marked: Bool[np.ndarray, "rows columns"] | None = None,
) -> AxesImage:
    """A heat map with a value in each cell; `marked` cells (not significant) carry a cross and no bold number.

    NaN cells are grey and empty.
    """
    colour_map = mpl.colormaps[DIVERGING if diverging else SEQUENTIAL].with_extremes(bad=MISSING)
    norm = Normalize(*limits)
    image = axes.imshow(np.ma.masked_invalid(values), cmap=colour_map, norm=norm, aspect="auto", origin="lower")
    axes.set_xticks(range(len(column_names)), column_names, rotation=40, ha="right", rotation_mode="anchor")
    step = max(1, math.ceil(len(row_names) / 17))
    axes.set_yticks(range(0, len(row_names), step), row_names[::step])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    crowded = len(row_names) > 14
    for light in (False, True):
        crosses = []
        for r, c in zip(*np.nonzero(np.isfinite(values)), strict=True):
            red, green, blue, _ = colour_map(norm(values[r, c]))
            if (0.299 * red + 0.587 * green + 0.114 * blue > 0.5) != light:
                continue
            if marked is not None and marked[r, c]:
                crosses.append((c, r))
            elif not crowded:
                text = f"{values[r, c]:.2f}".replace("0.", ".").replace("1.00", "1")
                ink = "#111111" if light else "#FFFFFF"
                cell = axes.text(c, r, text, ha="center", va="center", fontsize=6.5, color=ink)
                cell.set_in_layout(False)
        if crosses:
            x, y = zip(*crosses, strict=True)
            size = 6 if crowded else 18
            axes.scatter(x, y, s=size, marker="x", linewidths=0.8, color="#111111" if light else "#FFFFFF", alpha=0.75)
    return image


def save(figure: Figure, folder: Storage, name: str, dpi: int = 130) -> list[str]:
    """Write `figure` as `name.png` and `name.svg` into `folder`; returns both names. Fixes the figure's layout."""
    png, svg = io.BytesIO(), io.BytesIO()
    with mpl.rc_context(RC):
        # `savefig` draws a figure twice for every format: once for its size, which is known here.
        figure.set_dpi(dpi)
        FigureCanvasAgg(figure).print_png(png)
        figure.set_layout_engine("none")  # the second format reuses the first one's layout, at half the cost
        FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None})
    folder.write(f"{name}.png", png.getvalue())
    folder.write(f"{name}.svg", svg.getvalue())
    return [f"{name}.png", f"{name}.svg"]
