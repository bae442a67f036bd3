"""Progress of studies, read from their files alone. Imports neither report nor science modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from orchestrator.cli.render import print_rows
from orchestrator.store.study_list import versions_of
from orchestrator.store.study_record import Study, View, describe_run


def study_status(study: Study) -> dict[str, Any]:
    """Progress of a study, from its files alone."""
    rows = []
    for name in study.stages:
        views = {v.stage.digest: v for v in study.views(name)}
        planned: dict[str, str] = {}
        for point in study.record["points"]:
            if name in point["stages"]:
                label = point["label"]
                if name != "finetune":  # one such stage serves every trial of its model and data
                    label = describe_run(study.run_of(point))
                planned.setdefault(point["stages"][name], label)
        for stage_digest, label in planned.items():
            view = views.get(stage_digest)
            rows.append({"stage": name, "point": view.label if view else label, **_state(view), "digest": stage_digest})
    record = study.record
    return {
        "study": study.name,
        "created": record["created"],
        "command": record["command"],
        "stages": rows,
        "versions": versions_of(study.storage, study.name),
    }


def _state(view: View | None) -> dict[str, Any]:
    if view is None:
        return {"state": "not begun", "shards": 0}
    shards = len(view.stage.finished_shards())
    if view.stage.is_done():
        return {"state": "done", "shards": shards}
    return {"state": "unfinished", "shards": shards}


def print_status(status: dict[str, Any]) -> None:
    """Print `study_status`, with the command that resumes the study."""
    console = Console(soft_wrap=True, highlight=False)
    print_rows(f"{status['study']}, begun {status['created']}", status["stages"], console)
    if any(row["state"] != "done" for row in status["stages"]):
        console.print(f"resume:  [cyan]{status['command']}[/]")
    if status["versions"]:
        console.print(f"other versions: {', '.join(status['versions'])}")


def print_studies(storage: str, studies: Sequence[Mapping[str, Any]]) -> None:
    """Print the studies of a storage."""
    console = Console(soft_wrap=True, highlight=False)
    if not studies:
        console.print(f"no study in {storage!r} yet; begin with:  [cyan]vtsweep run sweeps/quickstart.yaml[/]")
        return
    rows = [
        {
            "study": study["name"],
            "points": study["points"],
            "stages done": f"{study['stages_done']} of {study['stages']}" if not study["problem"] else study["problem"],
            "report": "yes" if study["report"] else "-",
            "begun": study["created"][:16].replace("T", " "),
        }
        for study in studies
    ]
    print_rows(f"Studies in {storage}", rows, console)
