"""Reproduce the published study: ``python -m jobs.results`` redraws `docs/results` from its tables, in seconds.

``python -m jobs.results run STORAGE`` runs all sweeps (hours; run again to resume), ``collect STORAGE`` extracts small
tables for the page from the finished studies. The page is a template filled from these tables: none of its numbers is
written by hand. ``--out FOLDER`` writes tables and page there, not over the published ones; ``--small`` rehearses
``run`` in minutes, at sizes from which nothing can be concluded.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, StrictUndefined

from jobs.published.figures import FIGURES
from jobs.published.numbers import numbers, ratio_numbers
from jobs.published.tables import (
    COCO,
    FOLDER,
    MODELS,
    ROOT,
    SMALL,
    SWEEPS,
    collect,
    collect_claims,
    collect_plans,
    collect_runs,
    collect_tokens,
)

SHORT = """\
With {{ first|share }} of the training scenes crowded instead of none, `reference-joint` counts right in \
{{ j[1].mean|percent }} of crowded scenes instead of {{ j[0].mean|percent }}, and `reference-cross` in \
{{ c[1].mean|percent }} instead of {{ c[0].mean|percent }}; with all of them crowded, in \
{{ j[-1].mean|percent }} and {{ c[-1].mean|percent }}. At one half, counting in simple scenes stays at \
{{ jl[-2].mean|percent }} and {{ cl[-2].mean|percent }}; at all it falls to {{ jl[-1].mean|percent }} and \
{{ cl[-1].mean|percent }}. The visual tokens hardly notice: their centred stable rank in the middle layers \
changes by {{ jr.effect|signed }} ({{ jr.ci_low|signed }} to {{ jr.ci_high|signed }}; {{ jr.verdict }}) and \
{{ cr.effect|signed }} ({{ cr.ci_low|signed }} to {{ cr.ci_high|signed }}; {{ cr.verdict }}).
"""
"""The finding in three sentences: opens the page and the project's README."""
MARKS = ("<!-- published study: written by python -m jobs.results -->\n", "<!-- end -->")


def environment() -> Environment:
    """Filters of the templates: shares as per cent, signed differences."""
    found = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    found.filters["percent"] = lambda value: f"{100 * value:.1f} %"
    found.filters["share"] = lambda value: f"{100 * value:g} %"
    found.filters["two"] = lambda value: "-" if value is None else f"{value:.2f}"
    found.filters["signed"] = lambda value, digits=3: "-" if value is None else f"{value:+.{digits}f}"
    return found


def short(folder: Path = FOLDER) -> str:
    """The finding in three sentences."""
    ratio = ratio_numbers(pl.read_parquet(folder / "ratio_trials.parquet"))
    values: dict[str, Any] = {"first": ratio["ratios"][1]}
    for letter, model in zip("jc", MODELS, strict=True):
        count = next(f for f in ratio[model]["families"] if f["family"] == "count")
        values |= {letter: count["high"]["rows"], f"{letter}l": count["low"]["rows"]}
        values[f"{letter}r"] = next(p for p in ratio[model]["primary"] if "stable_rank" in p["outcome"])
    return environment().from_string(SHORT).render(**values)


def readme(text: str, folder: Path = FOLDER) -> str:
    """The project's README with the finding between its marks."""
    before, rest = text.split(MARKS[0])
    return before + MARKS[0] + short(folder) + MARKS[1] + rest.split(MARKS[1], 1)[1]


def page(folder: Path = FOLDER) -> str:
    """The page, filled from the tables."""
    template = (FOLDER / "README.md.j2").read_text(encoding="utf-8")
    return environment().from_string(template).render(short=short(folder), **numbers(folder))


def write(folder: Path = FOLDER) -> None:
    """Draw every figure and write the page; the published one opens the project's README too."""
    for name, (table, draw) in FIGURES.items():
        if (folder / table).exists():
            draw(pl.read_parquet(folder / table), folder / name)
    (folder / "README.md").write_text(page(folder), encoding="utf-8")
    if folder == FOLDER:
        top = ROOT / "README.md"
        top.write_text(readme(top.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {folder / 'README.md'} and {len(FIGURES)} figures")


def run(storage: str, coco: str | None, small: bool) -> None:
    """Run every sweep in turn, each in a process of its own; end at the first that fails, with its exit code."""
    runs = [[sweep] for sweep in SWEEPS]
    if coco:
        runs.append([*COCO, f"data.root={coco}"])
    for sweep, *words in runs:
        sizes = SMALL[sweep] if small else ()
        words = ["run", str(ROOT / "sweeps" / f"{sweep}.yaml"), *words, *sizes, f"storage={storage}"]
        code = subprocess.run([sys.executable, "-m", "orchestrator", *words], check=False).returncode
        if code:
            print(f"sweeps/{sweep}.yaml ended with exit code {code}; the same command resumes")
            sys.exit(code)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", nargs="?", choices=["run", "collect"], help="nothing: draw the page from its tables")
    parser.add_argument("storage", nargs="?", default="results", help="where the studies lie")
    parser.add_argument("--coco", default=None, help="a COCO 2017 folder: `run` studies its photographs too")
    parser.add_argument("--out", type=Path, default=FOLDER, help="where tables, figures and page are written")
    parser.add_argument("--small", action="store_true", help="rehearse `run` in minutes; needs --out")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    if arguments.small and out == FOLDER:
        parser.error("--small needs --out: a rehearsal must not replace the published tables")
    if arguments.action == "run":
        run(arguments.storage, arguments.coco, arguments.small)
    if arguments.action in ("run", "collect"):
        out.mkdir(parents=True, exist_ok=True)
        if out != FOLDER:  # measured when the models were trained, not by a sweep
            shutil.copy(FOLDER / "reference_accuracy.parquet", out)
        collect(arguments.storage, out)
        collect_claims(arguments.storage, out)
        collect_tokens(arguments.storage, out)
        collect_plans(out)
        collect_runs(arguments.storage, out)
    write(out)


if __name__ == "__main__":
    main()
