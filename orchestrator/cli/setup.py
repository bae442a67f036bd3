"""Commands before and around a study: data, starter file, models, checks of the machine, jobs on clusters."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from orchestrator.cli.common import File, Json, Overrides, app, complete_keys, complete_models, emit, say


@app.command(epilog="Examples:  vtsweep data questions.jsonl --html data.html    vtsweep data sweeps/pope.yaml")
def data(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Question file, or sweep file with a data section")],
    overrides: Overrides = None,
    layout: Annotated[str, typer.Option(help="Layout of a question file: rows, gqa, pope, vqa, ...")] = "rows",
    html: Annotated[str | None, typer.Option(help="Write six pictures and the tables as a page")] = None,
    as_json: Json = False,
) -> None:
    """Show what a source holds: rows, families, balance of answers, sizes, missing files, attributes."""
    from orchestrator.cli.data import data_command, print_overview

    overview = data_command(file, overrides or [], layout, html)
    emit(overview.as_json(), as_json, lambda: print_overview(overview))


@app.command(epilog="Example:  vtsweep init my_study.yaml --model reference-cross --data coco --root /data/coco")
def init(
    file: Annotated[str, typer.Argument(help="Sweep file to write")] = "study.yaml",
    model: Annotated[
        str, typer.Option(help="Catalogue name, repository id or local folder", autocompletion=complete_models)
    ] = "reference-joint",
    data: Annotated[str, typer.Option(help="scenes, coco, folder, questions, gqa or pope")] = "scenes",
    root: Annotated[str | None, typer.Option(help="Folder of the images")] = None,
) -> None:
    """Write a commented sweep file for a chosen model and data."""
    from orchestrator.cli.init import write_starter

    write_starter(file, model, data, root)
    typer.echo(f"wrote {file}\nnext:  vtsweep plan {shlex.quote(file)}    vtsweep run {shlex.quote(file)}")


@app.command(epilog="Examples:  vtsweep settings    vtsweep settings finetune.")
def settings(
    key: Annotated[str, typer.Argument(help="Beginning of a key", autocompletion=complete_keys)] = "",
    as_json: Json = False,
) -> None:
    """List every setting with what it takes, its default and its meaning."""
    from orchestrator.cli.render import print_rows
    from orchestrator.config.reference import setting_rows
    from orchestrator.errors import ConfigError, did_you_mean

    all_rows = setting_rows()
    rows = [row for row in all_rows if row["key"].startswith(key)]
    if not rows:
        raise ConfigError(f"no setting begins with {key!r}.{did_you_mean(key, [row['key'] for row in all_rows])}")
    emit(rows, as_json, lambda: print_rows("Settings", rows))


@app.command(epilog="Example:  vtsweep models --json")
def models(as_json: Json = False) -> None:
    """List known models with family, kind, parameters and needs."""
    from orchestrator.cli.render import print_rows
    from orchestrator.models.catalogue import catalogue_rows

    rows = catalogue_rows()
    # What a terminal of 80 columns holds; --json has kind, licence, repository and memory too.
    shown = [{key: row[key] for key in ("name", "family", "parameters_b", "needs")} for row in rows]
    emit(rows, as_json, lambda: print_rows("Models (parameters in billions; more with --json)", shown))


@app.command(epilog="Examples:  vtsweep doctor    vtsweep doctor org/model    vtsweep doctor org/model model.fit=crop")
def doctor(
    model: Annotated[
        str | None, typer.Argument(help="Catalogue name, repository id or local folder", autocompletion=complete_models)
    ] = None,
    overrides: Overrides = None,
    adapter: Annotated[str | None, typer.Option(help="Folder of a LoRA adapter on top of it")] = None,
    revision: Annotated[str | None, typer.Option(help="Commit of a repository")] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Allow the repository's own code (needs --revision)")] = False,
    as_json: Json = False,
) -> None:
    """Check this machine, or whether a model can be used here: access, extras, memory, adapter, one image.

    Of KEY=VALUE only keys of the section `model` are taken.
    """
    from orchestrator.cli.doctor import diagnose, model_of
    from orchestrator.cli.render import print_rows

    flags = {"adapter": adapter, "revision": revision, "trust_remote_code": trust_remote_code or None}
    config = model_of(model, overrides or [], {key: value for key, value in flags.items() if value is not None})
    say(f"checking {config.label if config else 'this machine'} ...", as_json)
    findings = diagnose(config)
    rows = [{"check": f.check, "status": f.status, "found": f.found, "fix": f.fix} for f in findings]
    emit(rows, as_json, lambda: print_rows(f"vtsweep doctor {config.label if config else ''}".strip(), rows))
    if any(f.status == "fail" for f in findings):
        raise typer.Exit(1)


@app.command(
    epilog="Example:  vtsweep submit sweeps/quickstart.yaml storage=/shared/results --address http://head:8265"
)
def submit(
    file: File,
    overrides: Overrides = None,
    address: Annotated[str | None, typer.Option(help="Job server; RAY_API_SERVER_ADDRESS or this machine")] = None,
    env: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, or NAME to pass on; not for secrets")] = None,
    follow: Annotated[bool, typer.Option(help="Print the job's log until it ends")] = True,
    as_json: Json = False,
) -> None:
    """Run a study as a job on a Ray cluster: pack what it needs, submit, follow its log, end with its exit code."""
    from dataclasses import asdict

    from orchestrator.cluster.submit import submit as submit_job

    job = submit_job(file, overrides or (), address=address, env=env or (), follow=follow and not as_json)
    emit(asdict(job), as_json, lambda: typer.echo(f"job {job.job_id}: {job.status}"))
    if job.exit_code:
        raise typer.Exit(job.exit_code)


@app.command(
    epilog="Example:  vtsweep slurm sweeps/quickstart.yaml storage=/shared/results --nodes 2 --gpus 4 --out job.sh"
)
def slurm(
    file: File,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(help="Nodes")] = 1,
    cpus: Annotated[int, typer.Option(help="CPUs of a node")] = 8,
    gpus: Annotated[int, typer.Option(help="GPUs of a node")] = 0,
    time: Annotated[str, typer.Option(help="Time limit; near it the job queues itself again and resumes")] = "12:00:00",
    memory: Annotated[str, typer.Option(help="Memory of a node, for example 64G")] = "",
    partition: Annotated[str, typer.Option(help="Partition")] = "",
    account: Annotated[str, typer.Option(help="Account")] = "",
    setup: Annotated[str, typer.Option(help="Shell line before anything, as `source /shared/venv/bin/activate`")] = "",
    extra: Annotated[list[str] | None, typer.Option(help="Further option of sbatch, as --constraint=a100")] = None,
    out: Annotated[str | None, typer.Option(help="File to write; standard output when absent")] = None,
) -> None:
    """Write an sbatch script that runs a study on a Slurm cluster and resumes it by requeue."""
    from pathlib import Path

    from orchestrator.cluster.slurm import SlurmJob, slurm_script

    job = SlurmJob(nodes, cpus, gpus, time, memory, partition, account, setup, tuple(extra or ()))
    text = slurm_script(file, overrides or (), job)
    if out is None:
        typer.echo(text, nl=False)
        return
    Path(out).write_text(text, encoding="utf-8")
    typer.echo(f"wrote {out}\nnext:  sbatch {shlex.quote(out)}")
