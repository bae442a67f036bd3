"""Summaries that commands print at their end: results of a study, its next commands, and checked files."""

from __future__ import annotations

import shlex
from typing import Any

import polars as pl
from rich.console import Console
from rich.markup import escape

from orchestrator.capture.first_shard import FIRST_SHARD, PARTS
from orchestrator.cli.render import print_rows
from orchestrator.compression.depth import THIRDS
from orchestrator.compression.registry import METRICS
from orchestrator.progress import Progress, format_seconds
from orchestrator.report.collect import next_steps
from orchestrator.report.hypothesis_rules import HYPOTHESIS_FILE, NOT_MEASURED
from orchestrator.report.probe_views import by_kind, first_layers, vision_tap
from orchestrator.report.summaries import HEADLINE, depth_means, main_tap, strongest_correlations
from orchestrator.store.study_record import Study, View
from orchestrator.store.tables.core import TABLES


def finished(study: Study, stage: Any) -> list[View]:
    """The study's finished stages of one kind; empty if the study does not have the kind."""
    return [v for v in study.views(stage) if v.stage.is_done()] if stage in study.stages else []


def outcome(study: Study, report: str | None = None) -> dict[str, Any]:
    """A finished study as plain values, for `--json`."""
    return {
        "study": study.name,
        "storage": study.storage.uri,
        "report": report,
        "views": view_links(study),
        "seconds": study.record["seconds"],
        "first_shard_s": {v.label: parts for v in finished(study, "capture") if (parts := first_shard(v))},
        "stages": [
            {"stage": name, "point": view.label, "digest": view.stage.digest, "path": view.stage.store.uri}
            for name in study.stages
            for view in finished(study, name)
        ],
        "compression": {v.label: depth_rows(v) for v in finished(study, "capture")},
        "strongest_correlations": {v.label: strongest_correlations(v).to_dicts() for v in finished(study, "correlate")},
        "probes": {v.label: probe_rows(v) for v in finished(study, "probe")},
        "trials": trial_rows(study),
        "hypotheses": hypothesis_rows(study) if report else [],
        "policies": {v.label: policy_rows(v) for v in finished(study, "ablate")},
    }


def first_shard(view: View) -> dict[str, float]:
    """Seconds from the command to a capture's first finished shard, by part and in `total`; empty if not recorded."""
    seconds = view.stage.summary().get(FIRST_SHARD, {})
    return {name: seconds[name] for name in (*PARTS, "total") if name in seconds}


def first_shard_line(label: str, parts: dict[str, float]) -> str:
    """One line: the time to the first shard, in total and by part."""
    shares = ", ".join(f"{name} {format_seconds(s)}" for name, s in parts.items() if name != "total")
    return f"First shard of {label} {format_seconds(parts['total'])} after the command: {shares}"


def depth_rows(view: View) -> list[dict[str, Any]]:
    """One row per headline metric: its mean over vision tokens by depth third, and its direction."""
    means = depth_means(view).filter(pl.col("group") == "vision")
    values = {row["third"]: row for row in means.iter_rows(named=True)}
    rows = []
    for metric in HEADLINE:
        if metric in means.columns:
            meaning = "more" if METRICS[metric].direction > 0 else "less"
            row = {"metric": metric, **{t: values[t][metric] for t in THIRDS if t in values}}
            rows.append({**row, "larger means": f"{meaning} compressed"})
    return rows


def probe_rows(view: View) -> list[dict[str, Any]]:
    """One row per attribute: best held-out score from mean vision and text tokens, and the first layer of text."""
    probes = view.stage.scan("probes").collect()
    tap = vision_tap(probes)
    vision = by_kind(probes).filter((pl.col("tap") == tap) & (pl.col("position_kind") == "vision_mean"))
    best = dict(vision.group_by("attribute").agg(pl.col("score").max()).iter_rows())
    pixels = dict(probes.filter(pl.col("tap") == "pixels").group_by("attribute").agg(pl.col("score").max()).iter_rows())
    return [
        {
            "attribute": row["attribute"],
            "vision": best.get(row["attribute"]),
            "text": row["best_score"],
            "text from layer": "nowhere" if row["first_layer"] is None else row["first_layer"],
            "pixels": pixels.get(row["attribute"]),
            "baseline": row["baseline"],
        }
        for row in first_layers(probes).filter(pl.col("position_kind") == "text_mean").iter_rows(named=True)
    ]


def trial_rows(study: Study) -> list[dict[str, Any]]:
    """One row per finished trial: accuracy of both tiers before and after training."""
    rows = []
    for view in finished(study, "finetune"):
        row = view.stage.scan("trials").collect().row(0, named=True)
        shown = {"ratio": row["complexity_ratio"], "seed": row["seed"]}
        for tier in ("low", "high"):
            shown |= {f"{tier} before": row.get(f"accuracy_base/{tier}"), f"{tier} after": row.get(f"accuracy/{tier}")}
        rows.append(shown)
    return rows


def policy_rows(view: View) -> list[dict[str, Any]]:
    """One row per kind of policy over all families of a tier, judged on held-out images; empty without a policy."""
    if "policy" not in view.run.ablate.checks:
        return []
    table = view.stage.scan("policy").filter(pl.col("family") == "all").collect().fill_nan(None)
    return [
        {
            "policy": f"{row['policy']}, {row['tier']} tier",
            "kept": row["kept_share"],
            "accuracy": row["accuracy"],
            "all tokens": row["accuracy_full"],
            "difference": f"{row['difference']:+.3f} [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]",
            "random": row["accuracy_random"],
            "smaller": row["accuracy_downsample"],
        }
        for row in table.iter_rows(named=True)
    ]


def hypothesis_rows(study: Study) -> list[dict[str, Any]]:
    """Measured rows of table `hypotheses` from the study's report; empty without a report."""
    folder = study.folder.sub("report")
    if not folder.exists(HYPOTHESIS_FILE):
        return []
    schema = {name: column.dtype for name, column in TABLES["hypotheses"].columns.items()}
    table = pl.read_csv(folder.read(HYPOTHESIS_FILE), schema=schema)
    return table.filter(pl.col("verdict") != NOT_MEASURED).to_dicts()


def print_hypotheses(rows: list[dict[str, Any]], console: Console) -> None:
    """Print the paper's claims with verdict, effect and their predefined rule."""
    for point in dict.fromkeys(row["point"] for row in rows):
        console.print(f"\n[bold]The studied paper's claims[/] ({escape(point)})", highlight=False)
        for row in (row for row in rows if row["point"] == point):
            ends = "no interval" if row["ci_low"] is None else f"{row['ci_low']:.3g} to {row['ci_high']:.3g}"
            effect = "" if row["effect"] is None else f" {row['effect']:.3g} ({ends})"
            claim = f"[bold]{row['verdict']}[/]: {escape(row['claim'])}"
            n = "" if row["n"] is None else f", n = {row['n']}"
            console.print(f"{claim}\n  {escape(row['effect_name'])}{effect}{n}", highlight=False)
            console.print(f"  [dim]rule: {escape(row['rule'])}[/]", highlight=False)


def print_outcome(study: Study, report: str | None = None) -> None:
    """Print the closing summary: compression by depth, strongest correlations, probes, trials, next commands."""
    console = Console()
    for view in finished(study, "capture"):
        title = f"Compression of visual tokens by depth ({view.label}, {main_tap(view)})"
        print_rows(title, depth_rows(view), console)
        if parts := first_shard(view):
            console.print(f"[dim]{escape(first_shard_line(view.label, parts))}[/]", highlight=False)
    for view in finished(study, "correlate"):
        rows = strongest_correlations(view).to_dicts()
        if rows:
            # The column `tap` is left out if it is constant, to fit an 80-column terminal.
            taps = {row["tap"] for row in rows} - {"decoder"}
            shown = ("attribute", "metric", *(["tap"] if taps else []), "layer", "rho", "ci_low", "ci_high", "n")
            tried = view.stage.scan("correlations").select(pl.len()).collect().item()
            title = f"Strongest of {tried} correlations with what is in the image ({view.label})"
            print_rows(title, [{k: row[k] for k in shown} for row in rows], console)
            console.print(f"The largest of {tried} correlations: each interval holds for its row, not for the choice.")
        else:
            console.print(f"No significant correlation of compression with what is in the image ({view.label}).")
    for view in finished(study, "probe"):
        if rows := probe_rows(view):
            layers = (
                view.stage.scan("probes").filter(pl.col("tap") != "pixels").select("layer").unique().collect().height
            )
            title = f"Best of {layers} layers: held-out score of a probe, R² or accuracy of classes ({view.label})"
            print_rows(title, rows, console)
        for reason, n in view.stage.summary().get("skipped", {}).items():
            console.print(f"{n} probes not fitted ({view.label}): {reason}")
    if rows := trial_rows(study):
        print_rows("Accuracy by tier, before and after fine-tuning", rows, console)
    for view in finished(study, "ablate"):
        if rows := policy_rows(view):
            print_rows(
                f"Accuracy with fewer visual tokens, on images no rule was chosen on ({view.label})", rows, console
            )
    if report:
        print_hypotheses(hypothesis_rows(study), console)
    print_next(study, report)


def view_links(study: Study) -> dict[str, str]:
    """Title -> address of the study's shared MLflow views; a local database has the addresses of `vtsweep ui`."""
    from orchestrator.tracking.views import FIRST_PORT, page

    tracked = study.record.get("mlflow") or {}
    address = tracked.get("address") or f"http://127.0.0.1:{FIRST_PORT}"
    return {title: page(address, tracked["experiment"], key) for title, key in tracked.get("views", {}).items()}


def print_next(study: Study, report: str | None = None) -> None:
    """Print the report's path, links to MLflow's shared views, and suggested next commands."""
    console = Console(soft_wrap=True, highlight=False)
    if report:
        console.print(f"\nreport: [bold]{report}[/]")
    if links := view_links(study):
        served = study.record["mlflow"].get("address")
        condition = "" if served else f" (while [cyan]vtsweep ui {shlex.quote(study.storage.uri)}[/] runs)"
        console.print(f"MLflow{condition}:")
        for title, address in links.items():
            console.print(f"  {escape(title)}: {address}")
    console.print("next:")
    for command, why in next_steps(study):
        console.print(f"  [cyan]{command}[/]  {why}")


def verified(study: Study, *, redo: bool, quiet: bool = False) -> dict[str, Any]:
    """Check the files of a study's stages against their checksums; with `redo`, delete damaged shards to be redone."""
    from orchestrator.store.verify import redo as take_back
    from orchestrator.store.verify import verify_study

    with Progress(f"verify {study.name}", None, "shards", quiet=quiet) as progress:
        findings = verify_study(study, progress.advance)
    taken = take_back(study, findings) if redo else []
    rows = [
        {
            "stage": f.stage,
            "digest": f.digest,
            "shards": f.n_shards,
            "MB": round(f.n_bytes / 1e6, 1),
            "damaged": len(f.problems),
        }
        for f in findings
    ]
    problems = [{"stage": f.stage, "digest": f.digest, "problem": p} for f in findings for p in f.problems]
    command = study.record["command"]
    return {"study": study.name, "stages": rows, "damaged": problems, "taken_back": taken, "command": command}


def print_verified(result: dict[str, Any]) -> None:
    """Print the result of `verified`, and the command that repairs damage."""
    console = Console(soft_wrap=True, highlight=False)
    print_rows(f"{result['study']}: every file against its checksum", result["stages"], console)
    for row in result["damaged"]:
        console.print(f"[red]{row['stage']} {row['digest']}[/]: {escape(row['problem'])}")
    if result["taken_back"]:
        console.print(f"taken back; run again:  [cyan]{result['command']}[/]")
    elif result["damaged"]:
        console.print("do it again:  [cyan]vtsweep verify --redo STUDY[/], then the study's own command")
