"""First screen of the report: the study's main result in one sentence, with estimate, interval, verdict and figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from orchestrator.compression.depth import third_expression
from orchestrator.correlate.consensus import main_tap
from orchestrator.report.model import PointResults, StudyResults, distinct_points, merged_trials, missing_trials
from orchestrator.report.ratio_words import accuracy_words, change_words, contrast_rows
from orchestrator.report.statement import Statement, interval, number
from orchestrator.report.style import direction_of, headline_metrics, metric_short
from orchestrator.report.trial_views import finished
from orchestrator.stats.intervals import MIN_SEEDS

MOST_DOTS = 600
"""Maximum number of images in the headline figure."""


@dataclass(frozen=True)
class Answer:
    """One sentence, its verdicts as (subject, verdict), and the section with the evidence."""

    sentence: str
    verdicts: tuple[tuple[str, str], ...] = ()
    anchor: str = "findings"


def answers(results: StudyResults, summary: Sequence[tuple[str, list[Statement]]]) -> list[Answer]:
    """The main results: effect of the ratio if it was varied, and of the number of objects if images were captured.

    Without either, the first statement with a verdict, else the first statement.
    """
    missing = missing_trials(results.points)
    chosen = [_of_ratio(p.model, p.sweep, missing.get(p.model)) for p in results.points if contrast_rows(p.sweep)]
    chosen += [answer for p in distinct_points(results.points) if (answer := _of_objects(p)) is not None]
    if chosen:
        return list(dict.fromkeys(chosen))[:3]
    statements = [s for _, part in summary for s in part]
    statements = [s for s in statements if s.topic != "population"] or statements
    best = next((s for s in statements if s.verdict), next(iter(statements), None))
    if best is None:
        return []
    # without the verdict the claim would read as supported
    sentence = f"{best.verdict.capitalize()}: {best.text}" if best.verdict and best.topic == "hypothesis" else best.text
    return [Answer(f"{sentence} ({best.evidence})", ((best.topic, best.verdict),) * bool(best.verdict))]


def _of_ratio(model: str, sweep: Mapping[str, Any], held: tuple[int, int] | None) -> Answer:
    rows = contrast_rows(sweep)
    compression = next((r for r in rows.values() if r["primary"] and r["outcome"].startswith("delta/")), None)
    high, low = rows.get("accuracy/high"), rows.get("accuracy/low")
    any_row = next(iter(rows.values()))
    changes = [change_words(compression)] if compression else []
    changes += [f"accuracy on crowded scenes changes by {accuracy_words(high)}"] if high else []
    changes += [f"on simple scenes by {accuracy_words(low)}"] if low else []
    ratios = f"{number(any_row['low_ratio'])} to {number(any_row['high_ratio'])}"
    sentence = f"{model}: from complexity ratio {ratios}, {_joined(changes)}."
    named = [("compression", compression), ("crowded scenes", high)]
    verdicts = tuple((name, str(row["verdict"])) for name, row in named if row and row["verdict"])
    if any_row["n_seeds"] < MIN_SEEDS:
        sentence += f" {any_row['n_seeds']} of {MIN_SEEDS} seeds a ratio that an interval needs: nothing is decided."
    if held is not None:
        sentence += f" Only {held[0]} of {held[1]} trials are finished."
    return Answer(sentence, verdicts, "trials")


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1] if parts else "nothing is known"


def _of_objects(point: PointResults) -> Answer | None:
    """Verdicts on "the more objects, the less compressed", one per metric family, with rank correlations."""
    if point.findings is None or not {"claim", "family", "holds", "effect", "ci_low", "ci_high"} <= set(
        point.findings.columns
    ):
        return None
    rows = point.findings.filter((pl.col("claim") == "objects") & pl.col("effect").is_not_null()).to_dicts()
    rows = [r for r in rows if r.get("group", "vision") == "vision"]
    if not rows:
        return None
    verdicts = [
        f"{r['holds']} by {r['family']} metrics ({number(r['effect'])} {interval(r['ci_low'], r['ci_high'])})"
        for r in rows
    ]
    sentence = (
        f"{point.label}: that vision tokens are less compressed the more objects there are is {_joined(verdicts)}; rank"
        " correlation, positive where more objects go with less compression."
    )
    return Answer(sentence, tuple((f"{r['family']} metrics", str(r["holds"])) for r in rows), "compression")


def headline(results: StudyResults) -> list[dict[str, Any]]:
    """Data of the headline figure: the sweep of each model, or compression against the number of objects."""
    drawn: list[dict[str, Any]] = [
        {"kind": "ratio", "model": model}
        for model, trials in merged_trials(results.points).items()
        if finished(trials).height > 1
    ]
    return drawn or [dots for p in distinct_points(results.points) if (dots := _dots(p)) is not None][:3]


def _dots(point: PointResults) -> dict[str, Any] | None:
    """Compression of each image's vision tokens in the middle third of the depth, against its number of objects."""
    if point.layer_metrics is None or point.images is None or "n_objects" not in point.images.columns:
        return None
    tap = main_tap(point.layer_metrics, "vision")
    metric = next((m for m in ("stable_rank_centred", *headline_metrics(point.metrics)) if m in point.metrics), None)
    if tap is None or metric is None:
        return None
    rows = point.layer_metrics.filter((pl.col("tap") == tap) & (pl.col("group") == "vision"))
    n_points = int(rows["layer"].max() or 0) + 1  # type: ignore[arg-type]
    middle = rows.with_columns(third=third_expression(n_points)).filter(pl.col("third") == "middle")
    means = middle.group_by("image_id").agg(pl.col(metric).cast(pl.Float64).fill_nan(None).mean().alias("y"))
    joined = (
        point.images.select("image_id", pl.col("n_objects").alias("x"))
        .join(means, on="image_id")
        .drop_nulls()
        .sort("image_id")
    )
    if joined.height < 5 or joined["x"].n_unique() < 3:
        return None
    kept = joined.gather_every(max(1, joined.height // MOST_DOTS))
    return {
        "kind": "objects",
        "label": point.label,
        "metric": f"{metric_short(metric)}, vision, middle layers",
        "direction": direction_of(metric),
        "x": kept["x"].to_list(),
        "y": [round(v, 5) for v in kept["y"].to_list()],
    }
