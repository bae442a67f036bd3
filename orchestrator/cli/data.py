"""`vtsweep data`: what a source holds, on the terminal, as JSON, and with six pictures as a page."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from orchestrator.cli.render import print_rows
from orchestrator.config import QuestionsConfig
from orchestrator.config.sweep import load_sweep
from orchestrator.data.overview import Overview, survey
from orchestrator.data.sample import Source
from orchestrator.data.source import make_source
from orchestrator.errors import ConfigError, DataError

N_PICTURES = 6
WIDTH = 320
"""Largest width of a picture on the page, px."""


def open_source(file: str, layout: str = "rows", overrides: list[str] | None = None) -> Source:
    """The data of a sweep file's first point, or a question file with the images beside it."""
    if file.endswith((".yaml", ".yml")):
        return make_source(load_sweep(file, overrides or ()).points[0].run.data)
    if overrides:
        raise ConfigError(f"overrides such as {overrides[0]!r} need a sweep file, found {file}")
    root, _, name = file.rpartition("/")
    return make_source(QuestionsConfig(root=root or ".", file=(name,), layout=layout, max_rejected_fraction=1.0))


def print_overview(found: Overview) -> None:
    """Print an overview for people."""
    console = Console()
    rejected = f", {found.n_rejected_rows} of them cannot be used" if found.n_rejected_rows else ""
    console.print(f"[bold]{found.source}[/]: {found.n_rows:,} rows{rejected}", highlight=False)
    if found.families:
        print_rows("Families", found.families, console)
    for key, (least, median, most) in found.sizes.items():
        console.print(f"{key}: {least} to {most} px, median {median:g}", highlight=False)
    console.print(f"images opened: {found.n_opened}, of which {len(found.faults)} cannot be loaded", highlight=False)
    for fault in found.faults[:10]:
        console.print(f"  {fault}", highlight=False, markup=False)
    if found.attributes:
        shown = ("attribute", "kind", "n_missing", "range")
        print_rows("Attributes", [{k: asdict(one)[k] for k in shown} for one in found.attributes], console)
    if found.correlations:
        print_rows("Strongest correlations of attributes (Spearman)", found.correlations, console)


def write_page(source: Source, found: Overview, path: str) -> str:
    """Write six pictures with their question and attributes, and the tables, as one HTML page without scripts."""
    pictures = []
    for index in np.linspace(0, len(source) - 1, min(len(source), N_PICTURES)).round().astype(int).tolist():
        try:
            sample = source.load(index)
        except DataError as error:
            pictures.append(f"<figure><figcaption>{html.escape(str(error))}</figcaption></figure>")
            continue
        asked = f"<b>{html.escape(sample.prompt)}</b><br>" if sample.prompt else ""
        facts = ", ".join(f"{key}: {value}" for key, value in sample.attributes.items())
        caption = f"{html.escape(sample.image_id)}<br>{asked}{html.escape(facts)}"
        pictures.append(f'<figure><img src="{_embedded(sample.image)}"><figcaption>{caption}</figcaption></figure>')
    tables = _table("Families", found.families) + _table("Attributes", [asdict(one) for one in found.attributes])
    page = (
        '<!doctype html><meta charset="utf-8"><title>Data</title><style>body{font:14px sans-serif;max-width:1100px;'
        "margin:2em auto}figure{display:inline-block;width:320px;vertical-align:top;margin:8px}img{max-width:100%}"
        "td,th{padding:2px 8px;text-align:left}</style>"
        f"<h1>{html.escape(found.source)}: {found.n_rows:,} rows</h1>{''.join(pictures)}{tables}"
        + _table("Correlations", found.correlations)
    )
    try:
        Path(path).write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
    return path


def _embedded(image: np.ndarray) -> str:
    picture = Image.fromarray(image)
    picture.thumbnail((WIDTH, WIDTH))
    buffer = io.BytesIO()
    picture.save(buffer, format="jpeg", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _table(title: str, rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{html.escape(str(key))}</th>" for key in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(v))}</td>" for v in row.values()) + "</tr>" for row in rows)
    return f"<h2>{title}</h2><table><tr>{head}</tr>{body}</table>"


def data_command(file: str, overrides: list[str], layout: str, page: str | None) -> Overview:
    """Survey a source, and write its page where one is named."""
    source = open_source(file, layout, overrides)
    found = survey(source)
    if page is not None:
        write_page(source, found, page)
    return found
