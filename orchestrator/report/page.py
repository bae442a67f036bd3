"""The self-contained HTML page: everything a browser needs is inside one file, and it asks the network for nothing."""

from __future__ import annotations

from functools import cache

import jinja2

from orchestrator.report.model import StudyResults


@cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("orchestrator.report"), autoescape=True, undefined=jinja2.StrictUndefined
    )


def render_page(results: StudyResults) -> str:
    """The page as HTML text."""
    return _templates().get_template("report.html.jinja").render(study=results)
