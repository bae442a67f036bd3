"""Static figures: each function takes tables and returns a matplotlib `Figure`, for files and notebooks."""

from orchestrator.report.figures.causal import deletion_figure, knockout_figure, patching_figure, rivals_figure
from orchestrator.report.figures.compression import layer_curves_figure, rho_figure
from orchestrator.report.figures.probes import probe_curves_figure, probe_heat_figure, probe_places_figure
from orchestrator.report.figures.routes import (
    attention_figure,
    attention_map_figure,
    lens_figure,
    rank_figure,
    replacing_figure,
    routes_figure,
)
from orchestrator.report.figures.tokens import token_map_figure
from orchestrator.report.figures.trials import ratio_figure, trials_figure

__all__ = [
    "attention_figure",
    "attention_map_figure",
    "lens_figure",
    "rank_figure",
    "replacing_figure",
    "routes_figure",
    "deletion_figure",
    "knockout_figure",
    "rivals_figure",
    "layer_curves_figure",
    "patching_figure",
    "probe_curves_figure",
    "probe_heat_figure",
    "probe_places_figure",
    "ratio_figure",
    "rho_figure",
    "token_map_figure",
    "trials_figure",
]
