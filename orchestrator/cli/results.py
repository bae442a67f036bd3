"""Commands that read finished or running studies: report, status, verify, compare, MLflow."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from orchestrator.cli.common import Json, Quiet, StudyName, app, complete_studies, emit, say


@app.command(epilog="Example:  vtsweep report quickstart")
def report(study: StudyName, as_json: Json = False) -> None:
    """Write the report of a finished study again, from its tables."""
    from orchestrator.store.study_record import Study

    loaded = Study.load(study)
    say(f"reading the tables of {loaded.name}", as_json)
    from orchestrator.cli.closing import print_next
    from orchestrator.study.run import write_report

    written = write_report(loaded, quiet=as_json)
    emit({"report": written}, as_json, lambda: print_next(loaded, written[0]))


@app.command(epilog="Examples:  vtsweep status    vtsweep status quickstart    vtsweep status s3://bucket/results")
def status(
    study: Annotated[
        str | None,
        typer.Argument(help="Name of a study in `results`, its folder, or a storage", autocompletion=complete_studies),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show how far a running or interrupted study is, from its files alone; without a name list the studies."""
    from orchestrator.cli.status import print_status, print_studies, study_status
    from orchestrator.store.filesystem import Storage
    from orchestrator.store.study_list import list_studies
    from orchestrator.store.study_record import DEFAULT_STORAGE, Study

    if study is None or Storage(study).exists("studies"):
        listed = [vars(listing) for listing in list_studies(Storage(study or DEFAULT_STORAGE))]
        emit({"studies": listed}, as_json, lambda: print_studies(study or DEFAULT_STORAGE, listed))
        return
    state = study_status(Study.load(study))
    emit(state, as_json, lambda: print_status(state))


@app.command(epilog="Example:  vtsweep verify quickstart")
def verify(
    study: StudyName,
    redo: Annotated[bool, typer.Option(help="Take damaged shards back, so that the next run does them again")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Read every file of a study's stages against the checksums of when it was written; 5 when something is damaged."""
    from orchestrator.cli.closing import print_verified, verified
    from orchestrator.store.study_record import Study

    result = verified(Study.load(study), redo=redo, quiet=quiet or as_json)
    emit(result, as_json, lambda: print_verified(result))
    if result["damaged"]:
        raise typer.Exit(5)


@app.command(epilog="Example:  vtsweep compare quickstart quickstart.v2 --out comparison")
def compare(
    studies: Annotated[
        list[str], typer.Argument(help="Two or more studies, by name or folder", autocompletion=complete_studies)
    ],
    out: Annotated[str, typer.Option(help="Folder of the comparison")] = "comparison",
    as_json: Json = False,
) -> None:
    """Put models or studies side by side: one report, differences with intervals, agreement by hypothesis."""
    from orchestrator.store.study_record import Study

    loaded = [Study.load(study) for study in studies]
    say(f"comparing {', '.join(study.name for study in loaded)}", as_json)
    from orchestrator.cli.compare import compare_studies, print_comparison

    comparison = compare_studies(loaded, out, quiet=as_json)
    emit(comparison, as_json, lambda: print_comparison(comparison))


@app.command(epilog="Example:  vtsweep ui results")
def ui(
    storage: Annotated[str, typer.Argument(help="Storage folder of your studies, or a tracking URI")] = "results",
    port: Annotated[int | None, typer.Option(help="Port of MLflow on this machine; a free one when absent")] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in this machine's browser")] = True,
) -> None:
    """Open a page of all studies with findings, reports and MLflow's comparison views, on this machine only."""
    say("starting the MLflow server ...")
    from orchestrator.tracking.ui import serve_ui

    serve_ui(storage, port, open_page=browser and bool(os.environ.get("DISPLAY") or sys.platform == "darwin"))


@app.command(epilog="Example:  vtsweep track results")
def track(
    storage: Annotated[str, typer.Argument(help="Storage folder of your studies")] = "results",
    uri: Annotated[str | None, typer.Option(help="Tracking server; STORAGE/mlflow.db when absent")] = None,
    as_json: Json = False,
) -> None:
    """Log every finished stage and trial that MLflow does not have yet, from the files in storage."""
    say(f"logging what MLflow lacks of {storage}", as_json)
    from orchestrator.config import TrackConfig
    from orchestrator.store.filesystem import Storage
    from orchestrator.tracking.entries import track_studies

    sent, waiting = track_studies(Storage(storage), TrackConfig(uri=uri))
    emit(
        {"sent": sent, "waiting": waiting}, as_json, lambda: typer.echo(f"logged {sent} run(s), {waiting} still to log")
    )
    if waiting:
        raise typer.Exit(1)


@app.command(epilog="Example:  vtsweep pack quickstart --out packed --licence cc-by-4.0")
def pack(
    study: StudyName,
    out: Annotated[str, typer.Option(help="Folder to write: empty, or packed before")] = "packed",
    licence: Annotated[str, typer.Option(help="Licence of these results, as the hub names it")] = "other",
    features: Annotated[bool, typer.Option(help="Include kept token features")] = True,
    pictures: Annotated[
        bool | None, typer.Option(help="Include the report, which shows images; of scenes only when not said")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a study as a folder others can read: tables, features, adapters, report and a card. Sends nothing."""
    from orchestrator.store.study_record import Study

    loaded = Study.load(study)
    say(f"packing {loaded.name} into {out}", as_json)
    from orchestrator.cli.publish import pack_study

    packed = pack_study(loaded, out, licence=licence, features=features, pictures=pictures, quiet=as_json)
    emit(
        vars(packed),
        as_json,
        lambda: typer.echo(
            f"{packed.folder}: {len(packed.files)} files, {packed.n_bytes / 1e6:.1f} MB\n"
            f"next:  vtsweep push {out} OWNER/NAME"
        ),
    )


@app.command(epilog="Example:  vtsweep push packed my-name/quickstart")
def push(
    folder: Annotated[str, typer.Argument(help="Folder that `vtsweep pack` wrote")],
    repo: Annotated[str, typer.Argument(help="OWNER/NAME of a data set on the Hugging Face hub; made when absent")],
    public: Annotated[bool, typer.Option(help="Let everybody see it")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before sending")] = False,
    as_json: Json = False,
) -> None:
    """Send a packed study to the Hugging Face hub, after asking. Private unless `--public`."""
    from pathlib import Path

    sizes = [path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()]
    audience = "everybody" if public else "its owner alone"
    if not yes:
        typer.confirm(f"Send {len(sizes)} files, {sum(sizes) / 1e6:.1f} MB, to {repo}, seen by {audience}?", abort=True)
    say(f"sending to {repo}", as_json)
    from orchestrator.cli.publish import push_study

    address = push_study(folder, repo, private=not public)
    emit({"address": address}, as_json, lambda: typer.echo(address))
