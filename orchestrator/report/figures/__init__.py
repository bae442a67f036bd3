"""Static figures: each function takes tables and returns a matplotlib `Figure`, for files and for notebooks."""

from orchestrator.report.figures.compression import layer_curves_figure, rho_figure

__all__ = ["layer_curves_figure", "rho_figure"]
