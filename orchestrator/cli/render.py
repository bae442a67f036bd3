"""Rendering of tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestrator.progress import format_number

_STYLES = {"ok": "green", "done": "green", "warn": "yellow", "fail": "red", "failed": "red", "contradicted": "magenta"}


def format_cell(value: Any) -> str:
    """`0.12345` -> `0.123`, None -> `-`, a list joined by commas."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return format_number(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(format_cell(v) for v in value)
    return str(value)


def print_rows(title: str, rows: Sequence[Mapping[str, Any]], console: Console | None = None) -> None:
    """Print rows with equal keys; numbers are right-aligned, states are coloured."""
    console = console or Console()
    table = Table(title=title, title_justify="left", header_style="bold", show_lines=False)
    columns = list(rows[0]) if rows else []
    for column in columns:
        numeric = all(isinstance(row[column], int | float) for row in rows)
        table.add_column(column.replace("_", " "), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        cells = [format_cell(row[column]) for column in columns]
        table.add_row(*[f"[{_STYLES[c]}]{c}[/]" if c in _STYLES else c.replace("[", r"\[") for c in cells])
    console.print(table)
