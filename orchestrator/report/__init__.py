"""Figures and the self-contained HTML page of a study."""

from orchestrator.report.build import make_comparison, make_report
from orchestrator.report.model import PointResults, StudyResults, TokenMap

__all__ = ["PointResults", "StudyResults", "TokenMap", "make_comparison", "make_report"]
