"""`vtsweep data`: an overview of a data source on the terminal, as JSON, or as an HTML page (`data_page.py`)."""

from __future__ import annotations

from dataclasses import asdict

from rich.console import Console

from orchestrator.cli.data_page import write_page
from orchestrator.cli.render import print_rows
from orchestrator.config import QuestionsConfig
from orchestrator.config.sweep import load_sweep
from orchestrator.data.overview import Overview, survey
from orchestrator.data.sample import Source
from orchestrator.data.source import make_source
from orchestrator.errors import ConfigError


def open_source(file: str, layout: str = "rows", overrides: list[str] | None = None) -> Source:
    """The source of a sweep file's first point, or a question file with images in the same folder."""
    if file.endswith((".yaml", ".yml")):
        return make_source(load_sweep(file, overrides or ()).points[0].run.data)
    if overrides:
        raise ConfigError(f"overrides such as {overrides[0]!r} need a sweep file, found {file}")
    root, _, name = file.rpartition("/")
    return make_source(QuestionsConfig(root=root or ".", file=(name,), layout=layout, max_rejected_fraction=1.0))


def print_overview(overview: Overview) -> None:
    """Print an overview for people."""
    console = Console()
    rejected = f", {overview.n_rejected_rows} of them cannot be used" if overview.n_rejected_rows else ""
    console.print(f"[bold]{overview.source}[/]: {overview.n_rows:,} rows{rejected}", highlight=False)
    if overview.families:
        print_rows("Families", overview.families, console)
    for key, (smallest, median, largest) in overview.sizes.items():
        console.print(f"{key}: {smallest} to {largest} px, median {median:g}", highlight=False)
    console.print(
        f"images opened: {overview.n_opened}, of which {len(overview.faults)} cannot be loaded", highlight=False
    )
    for fault in overview.faults[:10]:
        console.print(f"  {fault}", highlight=False, markup=False)
    if overview.attributes:
        shown = ("attribute", "kind", "n_missing", "range")
        print_rows(
            "Attributes", [{k: asdict(attribute)[k] for k in shown} for attribute in overview.attributes], console
        )
    if overview.correlations:
        print_rows(
            f"Strongest of {overview.n_correlations} correlations of attributes (Spearman)",
            overview.correlations,
            console,
        )


def data_command(file: str, overrides: list[str], layout: str, page: str | None) -> Overview:
    """Survey a source; write the overview to `page` if given."""
    source = open_source(file, layout, overrides)
    overview = survey(source)
    if page is not None:
        write_page(source, overview, page)
    return overview
