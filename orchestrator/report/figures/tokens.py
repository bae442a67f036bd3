"""Contact sheet: energy of visual tokens on the image, by layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped
from matplotlib.figure import Figure

from orchestrator.report.figures.base import MISSING, head, new_panels, styled
from orchestrator.report.model import TokenMap
from orchestrator.report.style import SEQUENTIAL

MOST_LAYERS = 9


def some_layers(n: int) -> list[int]:
    """At most `MOST_LAYERS` of `n` indices, evenly spaced, including the first and the last."""
    return sorted({round(i) for i in np.linspace(0, n - 1, min(n, MOST_LAYERS))})


def relative_share(share: Shaped[np.ndarray, "rows columns"]) -> Shaped[np.ndarray, "rows columns"]:
    """Energy share times the number of tokens: 1 is uniform."""
    return share * np.isfinite(share).sum()


@styled
def token_map_figure(maps: Sequence[TokenMap], title: str) -> Figure:
    """One row per image: the image, then its tokens' share of the layer's energy by layer (1 = uniform)."""
    columns = some_layers(len(maps[0].layers))
    figure, panels = new_panels(len(maps) * (len(columns) + 1), width=1.25, height=1.35, columns=len(columns) + 1)
    limit = float(max(np.nanquantile(relative_share(m.energy_share[c]), 0.99) for m in maps for c in columns))
    for row, token_map in enumerate(maps):
        axes = panels[row * (len(columns) + 1)]
        axes.imshow(token_map.thumbnail)
        axes.set_title(token_map.image_id, fontsize=6.5, fontweight="normal")
        for k, column in enumerate(columns):
            axes = panels[row * (len(columns) + 1) + 1 + k]
            values = relative_share(token_map.energy_share[column])
            image = axes.imshow(np.ma.masked_invalid(values), cmap=SEQUENTIAL, vmin=0, vmax=limit)
            axes.set_facecolor(MISSING)
            if row == 0:
                axes.set_title(f"layer {token_map.layers[column]}", fontsize=8)
    for axes in panels:
        axes.set_xticks([])
        axes.set_yticks([])
    figure.colorbar(image, ax=panels, label="share of energy (1 = equal share)", shrink=0.6, aspect=30, pad=0.01)
    head(figure, f"Energy of visual tokens on the image · {title}")
    return figure
