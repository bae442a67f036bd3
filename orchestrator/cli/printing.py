"""Plans and policy evaluations on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from orchestrator.cli.render import format_cell, print_rows
from orchestrator.data.summary import AttributeSummary
from orchestrator.study.plan import Plan


def print_plan(plan: Plan) -> None:
    """Print a plan for people."""
    console = Console()
    console.print(f"[bold]{plan.name}[/]  storage: {plan.storage}")
    print_rows("Stages", [asdict(stage) for stage in plan.stages], console)
    if plan.models:
        # What a terminal of 80 columns holds; --json has the arithmetic and bytes an image too.
        rows = [
            {
                "model": model.model,
                "source": model.source,
                "images": model.images,
                "layers": model.layers,
                "tokens": model.vision_tokens,
                "actor GB": model.actor_memory_gb,
                "total GB": model.total_gb,
            }
            for model in plan.models
        ]
        print_rows("Models and data (tokens of vision; more with --json)", rows, console)
    if plan.attributes:
        several = len({one.source for one in plan.attributes}) > 1
        print_rows("Attributes", [_attribute_row(one, several) for one in plan.attributes], console)
    console.print(f"workers: {plan.pools}")
    if plan.power:
        console.print(f"power: {plan.power}", highlight=False)
    for problem in plan.problems:
        console.print(f"[yellow]not known here:[/] {problem}", highlight=False)
    left = sum(stage.done != "done" for stage in plan.stages)
    console.print(f"{format_cell(left)} of {len(plan.stages)} stages left to do")


def _attribute_row(one: AttributeSummary, with_source: bool) -> dict[str, Any]:
    spelled = ", ".join(f"{spelling!r}" for spelling in one.spellings if spelling)
    missing = f"{one.n_missing} of {one.n_images}" + (f" ({spelled})" if spelled else "")
    source = {"source": one.source} if with_source else {}
    return {**source, "attribute": one.attribute, "kind": one.kind, "missing": missing, "range": one.range}


def print_evaluations(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Print table `evaluation` of each model for people."""
    for model, rows in tables.items():
        shown = [
            {
                "questions": f"{row['tier']} {row['family']}",
                "system": row["system"],
                "right": row["accuracy"],
                "change": row["difference"],
                "from": row["difference_low"],
                "to": row["difference_high"],
                "tokens": row["kept_tokens"],
                "ms": 1000 * row["seconds"],
                "gflop": row["gflop"],
            }
            for row in sorted(rows, key=lambda r: (r["tier"] == "high", r["family"] != "all", r["family"]))
        ]
        print_rows(f"{model}: policy on fresh questions (change: from, to: 95 % interval)", shown)
