"""The self-contained HTML page: one file that makes no network requests."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
import polars as pl
from markupsafe import Markup

from orchestrator.report import style
from orchestrator.report.answer import answers
from orchestrator.report.contrast import agreements, differences
from orchestrator.report.glossary import GLOSSARY
from orchestrator.report.intervals import depth_table
from orchestrator.report.model import PointResults, StudyResults, distinct_points
from orchestrator.report.payload import payload
from orchestrator.report.probe_views import first_layers
from orchestrator.report.shown_tables import ShownTable, lens_tables, winner_tables
from orchestrator.report.statement import interval, number
from orchestrator.report.words import summary
from orchestrator.scrub import scrub

SCRIPTS = ("core.js", "charts.js", "sections.js", "causal.js", "reading.js", "main.js")
MOST_ROWS = 400
"""Maximum rows of a further table on the page; the stage's table has all."""


@dataclass(frozen=True)
class ChartSection:
    anchor: str
    needs: str
    """Key of a point in the payload without which the section is left out."""
    short: str
    title: str
    words: str


CHARTS = (
    ChartSection("compression", "curves", "By layer", "Compression by layer",
                 "How each model spreads what it sees over its tokens, layer by layer."),
    ChartSection("correlation", "rho", "Image attributes", "Compression and what is in the image",
                 "Rank correlation of each image's compression with its attributes, layer by layer."),
    ChartSection("probes", "probes", "Probes", "What tokens know",
                 "Linear probes read image attributes from vision and text tokens of held-out images."),
    ChartSection("tokens", "maps", "Token maps", "Where on the image",
                 "Norms of visual tokens laid back on the image, layer by layer."),
    ChartSection("deletion", "deletion", "Deletion", "Deleting visual tokens",
                 "How many visual tokens a kind of question needs."),
    ChartSection("rivals", "rivals", "Rivals", "Ways to drop tokens, compared",
                 "Which way to drop or merge visual tokens keeps most accuracy at an equal average number of tokens."),
    ChartSection("knockout", "knockout", "Knock-out", "Blocking attention to vision",
                 "In which layers the text reads the image."),
    ChartSection("routes", "routes", "Routes", "Routes of visual information",
                 "What may not be read by what, in which layers, and what that does to the right answer."),
    ChartSection("replacing", "replacing", "Replacing", "Replacing visual states",
                 "What zeros, the mean state or noise in place of visual states cost, layer by layer."),
    ChartSection("patching", "patching", "Patching", "Patching vision states",
                 "Up to which layer the answer still follows the vision tokens."),
    ChartSection("lens", "lens", "Lenses", "When the answer is there",
                 "The layer at which the right answer stands above its rivals, read from single tokens."),
    ChartSection("attention", "attention", "Attention", "What the question looks at",
                 "How much of the attention goes to the image and to its objects, and where on the picture."),
    ChartSection("trials", "trials", "Complexity ratio", "Complexity of training data",
                 "Does more complex training data change compression, and does it buy accuracy?"),
)  # fmt: skip


@cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("orchestrator.report"), autoescape=True, undefined=jinja2.StrictUndefined
    )


def render_page(results: StudyResults) -> str:
    """The page as HTML text."""
    data = payload(results)
    points = distinct_points(results.points)
    summary_sections = summary(results)
    present = {key for p in data["points"] for key, value in p.items() if value} | (
        {"trials"} if data["trials"] else set()
    )
    charts = [c for c in CHARTS if c.needs in present]
    further = [_shown(t, f"{p.label}: {style.name_of(n)}") for p in points for n, t in p.further.items()]
    versus = list(_contrast_tables(points)) if len(points) > 1 else []
    sections = [
        ("findings", "Findings"),
        *([("contrast", "Contrasts")] if versus else []),
        *((c.anchor, c.short) for c in charts),
    ]
    sections += [("tables", "Further tables")] * bool(further) + [("words", "Definitions"), ("run", "Run again")]
    sections += [("next", "Next steps")] * bool(results.next_steps)
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return _templates().get_template("report.html.jinja").render(
        study=results,
        created=_in_words(results.created),
        points=points,
        sections=sections,
        charts=[(c.anchor, c.title, c.words) for c in charts],
        summary=summary_sections,
        answers=answers(results, summary_sections),
        versus=versus,
        glossary=GLOSSARY,
        finding_tables=[_shown(p.findings, p.label) for p in points if p.findings is not None and p.findings.height],
        tables={
            "compression": list(_depth_tables(points)),
            "probes": list(_first_tables(points)),
            "rivals": list(winner_tables(points)),
            "lens": list(lens_tables(points)),
        },
        further_tables=further,
        stage_table=_shown(results.stages, "Stages") if results.stages is not None else None,
        style=Markup(_style_sheet()),
        data=Markup(text.replace("</", "<\\/").replace("<!--", "<\\u0021--")),
        script=Markup("".join(_template_text(name) for name in SCRIPTS)),
    )  # fmt: skip


def _contrast_tables(points: list[PointResults]) -> Iterator[ShownTable]:
    """Agreement by hypothesis, and differences with intervals."""
    if rows_of_verdicts := list(agreements(points)):
        head = ["statement", *(p.label for p in points), "agreement"]
        rows = [[a.statement, *(a.verdicts[p.label] for p in points), a.agreement] for a in rows_of_verdicts]
        yield ShownTable("Verdicts by hypothesis", head, sorted(rows, key=lambda row: row[-1] != "disagree"))
    if changes := list(differences(points)):
        head = ["difference", "quantity", "third", "value and 95 % interval", "reading", "intervals"]
        rows = [
            [f"{d.second} − {d.first}", d.quantity, d.part, f"{number(d.value, 3)} {_ends(d.ci_low, d.ci_high)}",
             d.reading, d.basis]
            for d in changes
        ]  # fmt: skip
        yield ShownTable("Differences: compression of vision tokens, and effects of hypotheses", head, rows)


def _ends(low: float | None, high: float | None) -> str:
    return interval(low, high, lambda v: number(v, 3))


def _in_words(moment: str) -> str:
    """`2026-11-25T21:12:28+00:00` -> `25 November 2026, 21:12 UTC`; other text unchanged."""
    try:
        return f"{datetime.datetime.fromisoformat(moment).astimezone(datetime.UTC):%-d %B %Y, %H:%M} UTC"
    except ValueError:
        return moment


def _depth_tables(points: list[PointResults]) -> Iterator[ShownTable]:
    """Headline metrics by third of depth, all points in one table, for each token group."""
    for group in ("vision", "text"):
        rows = []
        for point in points:
            table = depth_table(point, style.headline_metrics(point.metrics))
            if table is None:
                continue
            part = table.filter((pl.col("group") == group) & pl.col("mean").is_finite())
            if part.is_empty():
                continue
            for metric in style.headline_metrics(part["metric"].unique().to_list()):
                lines = part.filter(pl.col("metric") == metric)
                by_third = {r["third"]: r for r in lines.iter_rows(named=True)}
                cells = [_with_interval(by_third.get(third)) for third in ("early", "middle", "late")]
                direction = style.direction_words(metric)
                rows.append([point.label, style.metric_short(metric), direction, *cells])
        if rows:
            head = ["model and data", "metric", "direction", "early", "middle", "late"]
            yield ShownTable(f"Compression of {group} tokens by third of depth: mean and 95 % interval", head, rows)


def _with_interval(row: dict[str, float] | None) -> str:
    if row is None:
        return "n/a"
    return f"{number(row['mean'], 3)} {interval(row['ci_low'], row['ci_high'], lambda v: number(v, 3))}"


def _first_tables(points: list[PointResults]) -> Iterator[ShownTable]:
    for point in points:
        if point.probes is None or point.probes.is_empty():
            continue
        table = first_layers(point.probes).filter(pl.col("position_kind") == "text_mean")
        held = next(iter(point.probes["beyond"].drop_nulls()), None)
        layers = max(table["n_layers"].to_list(), default=0)
        best = [f"best score of {layers} layers", "at layer", "baseline"]
        beyond = [f"beyond {style.name_of(held)}"] if held else []
        head = ["attribute", "first layer", *best, *beyond, "classes"]
        rows = [
            [
                style.name_of(r["attribute"]),
                "nowhere" if r["first_layer"] is None else str(r["first_layer"]),
                f"{'accuracy' if r['kind'] == 'classification' else 'R²'} {number(r['best_score'])}",
                str(r["best_layer"]),
                number(r["baseline"]),
                *([_beyond(r)] if held else []),
                _classes(r),
            ]
            for r in table.iter_rows(named=True)
        ]
        yield ShownTable(f"First of {layers} layers at which text tokens know an attribute: {point.label}", head, rows)


def _beyond(row: Mapping[str, Any]) -> str:
    """Rank correlation with the truth given the covariates, with its interval."""
    if row["skill_beyond"] is None:
        return ""
    return f"{number(row['skill_beyond'])} {interval(row['beyond_low'], row['beyond_high'])}"


def _classes(row: Mapping[str, Any]) -> str:
    """Number of classes of a probe, its balanced score, and the number of samples of classes left out as too rare."""
    if row["n_classes"] is None:
        return ""
    rare = f"; {row['n_left_out']} images of rarer classes left out" if row["n_left_out"] else ""
    return f"{row['n_classes']}, mean recall {number(row['balanced_score'])}{rare}"


def _shown(table: pl.DataFrame, caption: str) -> ShownTable:
    """A frame as text, at most `MOST_ROWS` rows."""
    rows = [[_cell(v) for v in row] for row in table.head(MOST_ROWS).iter_rows()]
    cut = f" (first {MOST_ROWS} of {table.height} rows)" if table.height > MOST_ROWS else ""
    return ShownTable(caption + cut, [c.replace("_", " ") for c in table.columns], rows)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}".replace("-", "−") if isinstance(value, float) else scrub(str(value))


def _template_text(name: str) -> str:
    return files("orchestrator.report").joinpath("templates", name).read_text(encoding="utf-8")


def _style_sheet() -> str:
    """The style sheet with the colours of `style.py`, light and dark."""
    names = (*style.GROUP_COLOURS,)

    def variables(dark: bool) -> str:
        lines = [f"--{t}: {style.colour_of(t, dark=dark)};" for t in names]
        lines += [f"--family-{f}: {style.colour_of(f, dark=dark)};" for f in style.FAMILIES]
        lines += [f"--series-{i}: {style.colour_of('', i, dark)};" for i in range(len(style.SERIES_COLOURS))]
        return " ".join(lines)

    dark = (
        "--dark: 1; --paper: #14181d; --panel: #1b2128; --ink: #e8ecf1; --soft: #a3afbb; --rule: #323b45;"
        " --accent: #6cb6ff; --missing: #2b333c; --good: #4fd0a0; --bad: #ff8f75; --open: #e3c94f;"
        f" --control: {style.CONTROL_COLOUR_DARK}; --shadow: none; {variables(True)}"
    )
    text = _template_text("report.css")
    return text.replace("{{ light }}", variables(False)).replace("{{ dark_base }}", dark)
