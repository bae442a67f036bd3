"""Plans and policy evaluations on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape

from orchestrator.cli.render import format_cell, print_rows
from orchestrator.data.associations import Pair
from orchestrator.data.summary import AttributeSummary
from orchestrator.progress import format_seconds
from orchestrator.study.cards import CardPlan
from orchestrator.study.planned import Plan, PlannedStage
from orchestrator.study.planned_design import PlannedDesign

MOST_STAGES = 16
"""Stages shown on the terminal: a plan fits a screen."""
MOST_IMPOSSIBLE = 4
"""Impossible combinations of levels shown."""


def print_plan(plan: Plan) -> None:
    """Print a plan on the terminal."""
    console = Console()
    console.print(f"[bold]{plan.name}[/]  storage: {plan.storage}")
    if plan.kept_as != plan.name:
        console.print(f"{plan.name} holds other settings there: these results are kept as [bold]{plan.kept_as}[/]")
    for key, values in plan.axes.items():
        console.print(f"axis {key}: {', '.join(map(format_cell, values))}", highlight=False)
    print_rows("Stages", [_stage_row(stage) for stage in plan.stages[:MOST_STAGES]], console)
    if len(plan.stages) > MOST_STAGES:
        console.print(f"... and {len(plan.stages) - MOST_STAGES} more (--json has all)")
    if plan.models:
        # Columns that fit 80 characters; --json also has operations and bytes per image.
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
    for source in dict.fromkeys(attribute.source for attribute in plan.attributes):
        listed = ", ".join(_attribute(attribute) for attribute in plan.attributes if attribute.source == source)
        console.print(f"attributes of {source}: {listed}", highlight=False)
    for design in plan.designs:
        for line in _design(design):
            console.print(line, highlight=False)
    for pictures in plan.pictures:
        console.print(pictures.words, highlight=False)
    for words in (*plan.without_image, *plan.across):
        console.print(words, highlight=False)
    console.print(f"workers: {plan.pools}")
    if plan.probes:
        console.print(f"probes: {plan.probes}", highlight=False)
    if plan.selection:
        dear = [price for price in plan.selection if price.choosing_gflop > 0.2 * price.saved_gflop]
        shares = [f"{price.method} on {price.model} {price.choosing_gflop / price.saved_gflop:.1f}" for price in dear]
        exceptions = f", but for {', '.join(shares)}" if shares else ""
        console.print(
            f"choosing tokens takes at most a fifth of what a quarter of them saves{exceptions}"
            " (operations; more with --json)",
            highlight=False,
        )
    if plan.power:
        console.print(f"power: {plan.power}", highlight=False)
    for problem in plan.problems:
        console.print(f"[yellow]not known here:[/] {problem}", highlight=False)
    left = sum(stage.done != "done" for stage in plan.stages)
    points = f"{plan.points} point{'s' * (plan.points > 1)}"
    stages = f"{format_cell(left)} of {len(plan.stages)} stages left to do"
    if plan.stages:
        console.print(f"[bold]{points}, {stages}: {_duration(plan)}[/]", highlight=False)
    else:
        console.print(f"[bold]{points}; what is left to do is not known here[/]", highlight=False)
    if plan.card is not None:
        _print_card(plan.card, console)


def _print_card(card: CardPlan, console: Console) -> None:
    """Print rates, hours and memory on the requested GPU."""
    source = "rates measured on this card" if card.measured else "rates of an H200, scaled by the card's data sheet"
    rows = [
        {
            "model": rate.model,
            "images/s": rate.images_per_s,
            "of a bare pass": rate.pass_share,
            "GB": rate.memory_gb,
            "fits": "yes" if rate.fits else "no",
        }
        for rate in card.rates
    ]
    print_rows(f"Capture on one {card.card} ({source})", rows, console)
    if card.seconds is None:
        console.print(f"on {card.n} x {card.card}: duration not known here")
        return
    hours = f"{format_seconds(card.seconds)}, {card.gpu_hours:.2g} GPU-hours"
    console.print(f"[bold]on {card.n} x {card.card}: about {hours}[/] ({source})", highlight=False)


def _stage_row(stage: PlannedStage) -> dict[str, Any]:
    took = "-" if stage.done == "done" or stage.seconds is None else format_seconds(stage.seconds)
    return {"stage": stage.stage, "label": stage.label, "points": stage.points, "done": stage.done, "about": took}


def _duration(plan: Plan) -> str:
    """Remaining hours on this machine, with the basis of the estimate."""
    if not any(stage.done != "done" for stage in plan.stages):
        return "nothing"
    if plan.seconds is None:
        return "duration not known here"
    gpu = f", {plan.gpu_hours:.2g} GPU-hours" if plan.gpu_hours else ""
    return f"about {format_seconds(plan.seconds)}{gpu} on {plan.machine} (half to twice that)"


def _attribute(summary: AttributeSummary) -> str:
    spelled = "".join(f" {spelling!r}" for spelling in summary.spellings if spelling)
    missing = f"; {summary.n_missing} of {summary.n_images} missing{spelled}" if summary.n_missing else ""
    return escape(f"{summary.attribute} ({summary.kind}, {summary.range}{missing})")


def _design(design: PlannedDesign) -> Iterator[str]:
    """Factors with their levels, their largest rank correlation, derived attributes and impossible cells, in words."""
    summary = design.summary
    factors = "; ".join(f"{name} {', '.join(map(str, levels))}" for name, levels in summary.factors.items())
    yield escape(f"designed scenes, {summary.n_possible} of {summary.n_cells} cells: {factors}")
    if design.among_factors:
        top = design.among_factors[0]
        pairs = f"largest of {len(design.among_factors)} rank correlations of factors, {design.n_images} scenes"
        yield f"{pairs}: {top.rho:+.3f} ({_names(top)})"
    shown: dict[str, str] = {}
    for pair in design.derived:
        name, factor = (pair.first, pair.second) if pair.first_role == "derived" else (pair.second, pair.first)
        shown.setdefault(name, f"{name} ({pair.rho:+.2f} with {factor})")
    if shown:
        yield f"derived from several factors: {', '.join(shown.values())}"
    for combination in summary.impossible[:MOST_IMPOSSIBLE]:
        together = ", ".join(f"{name} {level}" for name, level in combination.levels.items())
        yield escape(f"left out, {combination.n_cells} cells: {together}: {combination.reason}")
    if (n_more := len(summary.impossible) - MOST_IMPOSSIBLE) > 0:
        yield f"left out: {n_more} more combinations of levels (--json has all)"


def _names(pair: Pair) -> str:
    return f"{pair.first} with {pair.second}"


def print_evaluations(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Print table `evaluation` of each model."""
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
