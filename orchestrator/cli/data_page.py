"""Overview of a data source as one HTML page without scripts: six example images with questions, and tables."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from orchestrator.data.overview import Overview
from orchestrator.data.sample import Sample, Source
from orchestrator.errors import ConfigError, DataError
from orchestrator.progress import format_number

N_PICTURES = 6
WIDTH = 360
"""Largest width and height of a picture on the page, px."""
MAX_FAULTS = 20
"""Maximum number of image faults listed on the page."""

_STYLE = """
:root{color-scheme:light dark;--ink:#1c1e21;--muted:#5f6672;--line:#d9dce1;--card:#fff;--page:#f5f6f8}
@media(prefers-color-scheme:dark){:root{--ink:#e8e9eb;--muted:#a2a9b4;--line:#3a3f47;--card:#22252a;--page:#17191c}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page)}
body{max-width:1120px;margin:0 auto;padding:24px}
h1{font-size:24px;margin:0 0 4px}h2{font-size:18px;margin:32px 0 10px}p{margin:0;color:var(--muted)}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr));gap:16px;margin-top:20px}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:8px;overflow:hidden}
.frame{height:230px;display:flex;align-items:center;justify-content:center;background:var(--page)}
.frame img{max-width:100%;max-height:100%;object-fit:contain}
figcaption{padding:10px 14px 14px;overflow-wrap:anywhere}
.id{font-size:12px;color:var(--muted)}.asked{font-weight:600;white-space:pre-line}.fault{color:#b3261e;padding:12px}
dl{display:grid;grid-template-columns:auto 1fr;gap:0 12px;margin:8px 0 0;font-size:13px}
dt{color:var(--muted)}dd{margin:0;text-align:right}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:8px}
table{border-collapse:collapse;width:100%;font-size:14px}
th,td{padding:6px 14px;text-align:left;border-bottom:1px solid var(--line);white-space:nowrap}
td:last-child{white-space:normal}tr:last-child td{border-bottom:0}
th{font-weight:600;color:var(--muted)}.number{text-align:right;font-variant-numeric:tabular-nums}
"""


def write_page(source: Source, overview: Overview, path: str) -> str:
    """Write the page and return its path; ConfigError if it cannot be written."""
    indices = np.linspace(0, len(source) - 1, min(len(source), N_PICTURES)).round().astype(int).tolist()
    ranges = {
        key: f"{smallest}" if smallest == largest else f"{smallest} to {largest}"
        for key, (smallest, _, largest) in overview.sizes.items()
    }
    sizes = [f"{key} {range_} px" for key, range_ in ranges.items()]
    opened = f"{overview.n_opened} images opened, {len(overview.faults)} cannot be loaded"
    facts = [opened, *sizes, *([f"{overview.n_rejected_rows} rows cannot be used"] if overview.n_rejected_rows else [])]
    attributes = [
        {
            "attribute": attribute.attribute,
            "kind": attribute.kind,
            "missing": attribute.n_missing,
            "values": attribute.range,
        }
        for attribute in overview.attributes
    ]
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(overview.source)}: {overview.n_rows:,} rows</title><style>{_STYLE}</style>"
        f"<h1>{html.escape(overview.source)}: {overview.n_rows:,} rows</h1><p>{html.escape('; '.join(facts))}.</p>"
        f'<div class="pictures">{"".join(_figure(source, index) for index in indices)}</div>'
        + _table("Families", overview.families)
        + _table("Attributes", attributes)
        + _table(f"Strongest of {overview.n_correlations} correlations of attributes (Spearman)", overview.correlations)
        + _table("Images that cannot be loaded", [{"fault": fault} for fault in overview.faults[:MAX_FAULTS]])
    )
    try:
        Path(path).write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
    return path


def _figure(source: Source, index: int) -> str:
    try:
        sample = source.load(index)
    except DataError as error:
        return f'<figure><p class="fault">{html.escape(str(error))}</p></figure>'
    question = f'<div class="asked">{html.escape(sample.prompt)}</div>' if sample.prompt else ""
    return (
        f'<figure><div class="frame"><img src="{_embedded(sample.image)}" alt=""></div><figcaption>'
        f'<div class="id">{html.escape(sample.image_id)}</div>{question}{_facts(sample)}</figcaption></figure>'
    )


def _facts(sample: Sample) -> str:
    present = ((key, value) for key, value in sample.attributes.items() if value is not None)
    return "<dl>" + "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(_text(v))}</dd>" for k, v in present) + "</dl>"


def _embedded(image: np.ndarray) -> str:
    picture = Image.fromarray(image)
    picture.thumbnail((WIDTH, WIDTH))
    buffer = io.BytesIO()
    picture.save(buffer, format="jpeg", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _text(value: Any) -> str:
    return format_number(value) if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _cells(tag: str, row: Mapping[str, Any], texts: Iterable[str]) -> str:
    numbers = (isinstance(value, int | float) for value in row.values())
    pairs = zip(numbers, texts, strict=True)
    return "".join(f"<{tag}{' class=number' if number else ''}>{html.escape(text)}</{tag}>" for number, text in pairs)


def _table(title: str, rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    head = _cells("th", rows[0], map(str, rows[0]))
    body = "".join(f"<tr>{_cells('td', row, map(_text, row.values()))}</tr>" for row in rows)
    return f'<h2>{title}</h2><div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
