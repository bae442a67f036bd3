"""The command line. Every command imports what it needs when it runs, so that `--help` is instant."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from orchestrator.config import StageName

# Nothing is sent anywhere by the libraries below; must be set before they are imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

app = typer.Typer(
    name="vtsweep",
    help="Measure how vision-language models spread visual information over their tokens, and sweep what changes it.",
    epilog="Start with:  vtsweep run sweeps/quickstart.yaml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

File = Annotated[str, typer.Argument(metavar="FILE", help="Sweep file, for example sweeps/quickstart.yaml")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, for example data.n_images=500 storage=/data/results"),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, for machines.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress; errors and the result only.")]


def _emit(value: Any, as_json: bool, text: Any) -> None:
    """Print `value` as JSON, or call `text()` to print for people."""
    if as_json:
        typer.echo(json.dumps(value, indent=1, default=str))
    else:
        text()


def _run(
    name: str, file: str, overrides: list[str] | None, stages: list[StageName] | None, as_json: bool, quiet: bool
) -> None:
    from orchestrator.cli.closing import outcome, print_outcome
    from orchestrator.config.sweep import load_sweep
    from orchestrator.study.run import run_study

    command = shlex.join(["vtsweep", name, file, *(overrides or ())])
    study, report = run_study(load_sweep(file, overrides or ()), stages=stages, quiet=quiet or as_json, command=command)
    _emit(outcome(study, report) if as_json else None, as_json, lambda: print_outcome(study, report))


@app.command(epilog="Example:  vtsweep run sweeps/coco.yaml data.root=/data/coco storage=/data/results")
def run(file: File, overrides: Overrides = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """Run every stage of a study, then write its report and MLflow runs. Resumes what is unfinished."""
    _run("run", file, overrides, None, as_json, quiet)


@app.command(epilog="Example:  vtsweep plan sweeps/paper_molmo.yaml")
def plan(file: File, overrides: Overrides = None, as_json: Json = False) -> None:
    """Show points, digests, what is already done, estimates, and whether the machine can hold it. Starts nothing."""
    from orchestrator.cli.printing import print_plan
    from orchestrator.config.sweep import load_sweep
    from orchestrator.study.plan import make_plan

    made = make_plan(load_sweep(file, overrides or ()))
    _emit(made.as_json(), as_json, lambda: print_plan(made))


@app.command(epilog="Example:  vtsweep capture sweeps/quickstart.yaml data.n_images=50")
def capture(file: File, overrides: Overrides = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """Capture activations and measure compression (the first stage of a study)."""
    _run("capture", file, overrides, ["capture"], as_json, quiet)


@app.command(epilog="Example:  vtsweep correlate sweeps/quickstart.yaml correlate.n_bootstrap=2000")
def correlate(file: File, overrides: Overrides = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """Correlate compression with what is in the image."""
    _run("correlate", file, overrides, ["capture", "correlate"], as_json, quiet)


@app.command(epilog="Example:  vtsweep probe sweeps/probes.yaml probe.attributes=[n_objects]")
def probe(file: File, overrides: Overrides = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """Fit probes on the kept token features."""
    _run("probe", file, overrides, ["capture", "probe"], as_json, quiet)


@app.command(epilog="Example:  vtsweep finetune sweeps/complexity_ratio.yaml finetune.seed=3")
def finetune(file: File, overrides: Overrides = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """Fine-tune one LoRA trial for each point, evaluate it and measure compression again."""
    _run("finetune", file, overrides, ["finetune"], as_json, quiet)


@app.command(epilog="Example:  vtsweep ablate sweeps/ablation.yaml ablate.n_per_family=200")
def ablate(file: File, overrides: Overrides = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """Delete, knock out and patch visual tokens to see what the decoder uses."""
    _run("ablate", file, overrides, ["ablate"], as_json, quiet)


@app.command(epilog="Example:  vtsweep evaluate --policy results/ablate/DIGEST/policy.yaml sweeps/ablation.yaml")
def evaluate(
    file: File,
    overrides: Overrides = None,
    policy: Annotated[str, typer.Option(help="policy.yaml of an ablation")] = ...,  # type: ignore[assignment]
    as_json: Json = False,
) -> None:
    """Apply a policy to fresh questions: accuracy, tokens, time and operations against all tokens and rivals."""
    from orchestrator.ablate.evaluate import evaluate_sweep
    from orchestrator.cli.printing import print_evaluations
    from orchestrator.config.sweep import load_sweep

    found = evaluate_sweep(load_sweep(file, overrides or ()), policy)
    tables = {run.model.name: stage.scan("evaluation").collect().to_dicts() for run, stage in found}
    _emit(tables, as_json, lambda: print_evaluations(tables))


@app.command(epilog="Example:  vtsweep report results/studies/quickstart")
def report(
    study: Annotated[str, typer.Argument(help="Folder of a study: STORAGE/studies/NAME")], as_json: Json = False
) -> None:
    """Write the report of a finished study again, from its tables."""
    from orchestrator.cli.closing import print_next
    from orchestrator.store.study_record import Study
    from orchestrator.study.run import write_report

    loaded = Study.load(study)
    written = write_report(loaded, quiet=as_json)
    _emit({"report": written}, as_json, lambda: print_next(loaded, written[0]))


@app.command(epilog="Example:  vtsweep status results/studies/quickstart")
def status(
    study: Annotated[str, typer.Argument(help="Folder of a study: STORAGE/studies/NAME")], as_json: Json = False
) -> None:
    """Show how far a running or interrupted study is, from its files alone."""
    from orchestrator.cli.status import print_status, study_status
    from orchestrator.store.study_record import Study

    found = study_status(Study.load(study))
    _emit(found, as_json, lambda: print_status(found))


@app.command(epilog="Example:  vtsweep verify results/studies/quickstart")
def verify(
    study: Annotated[str, typer.Argument(help="Folder of a study: STORAGE/studies/NAME")],
    redo: Annotated[bool, typer.Option(help="Take damaged shards back, so that the next run does them again")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Read every file of a study's stages against the checksums of when it was written; 5 when something is damaged."""
    from orchestrator.cli.closing import print_verified, verified
    from orchestrator.store.study_record import Study

    found = verified(Study.load(study), redo=redo, quiet=quiet or as_json)
    _emit(found, as_json, lambda: print_verified(found))
    if found["damaged"]:
        raise typer.Exit(5)


@app.command(epilog="Example:  vtsweep compare results/studies/joint results/studies/cross --out comparison")
def compare(
    studies: Annotated[list[str], typer.Argument(help="Two or more study folders")],
    out: Annotated[str, typer.Option(help="Folder of the comparison")] = "comparison",
    as_json: Json = False,
) -> None:
    """Put models or studies side by side in one report."""
    from orchestrator.cli.closing import compare_studies

    written = compare_studies(studies, out, quiet=as_json)
    _emit({"report": written}, as_json, lambda: typer.echo(f"comparison: {written}"))


@app.command(epilog="Example:  vtsweep ui results")
def ui(
    storage: Annotated[str, typer.Argument(help="Storage folder of your studies, or a tracking URI")] = "results",
    port: Annotated[int | None, typer.Option(help="Port on this machine; a free one when absent")] = None,
) -> None:
    """Open the MLflow comparison UI, on this machine only."""
    from orchestrator.tracking.ui import serve_ui

    serve_ui(storage, port)


@app.command(epilog="Example:  vtsweep track results")
def track(
    storage: Annotated[str, typer.Argument(help="Storage folder of your studies")] = "results",
    uri: Annotated[str | None, typer.Option(help="Tracking server; STORAGE/mlflow.db when absent")] = None,
    as_json: Json = False,
) -> None:
    """Log every finished stage and trial that MLflow does not have yet, from the files in storage."""
    from orchestrator.config import TrackConfig
    from orchestrator.store.filesystem import Storage
    from orchestrator.tracking.entries import track_studies

    sent, waiting = track_studies(Storage(storage), TrackConfig(uri=uri))
    _emit(
        {"sent": sent, "waiting": waiting}, as_json, lambda: typer.echo(f"logged {sent} run(s), {waiting} still to log")
    )
    if waiting:
        raise typer.Exit(1)


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

    found = data_command(file, overrides or [], layout, html)
    _emit(found.as_json(), as_json, lambda: print_overview(found))


@app.command(epilog="Example:  vtsweep init my_study.yaml --model reference-cross --data coco --root /data/coco")
def init(
    file: Annotated[str, typer.Argument(help="Sweep file to write")] = "study.yaml",
    model: Annotated[str, typer.Option(help="Catalogue name, repository id or local folder")] = "reference-joint",
    data: Annotated[str, typer.Option(help="scenes, coco, folder, questions, gqa or pope")] = "scenes",
    root: Annotated[str | None, typer.Option(help="Folder of the images")] = None,
) -> None:
    """Write a commented sweep file for a chosen model and data."""
    from orchestrator.cli.init import write_starter

    write_starter(file, model, data, root)
    typer.echo(f"wrote {file}\nnext:  vtsweep plan {shlex.quote(file)}    vtsweep run {shlex.quote(file)}")


@app.command(epilog="Example:  vtsweep models --json")
def models(as_json: Json = False) -> None:
    """List known models with family, kind, parameters and needs."""
    from orchestrator.cli.render import print_rows
    from orchestrator.models.catalogue import catalogue_rows

    rows = catalogue_rows()
    # What a terminal of 80 columns holds; --json has kind, licence, repository and memory too.
    shown = [{key: row[key] for key in ("name", "family", "parameters_b", "needs")} for row in rows]
    _emit(rows, as_json, lambda: print_rows("Models (parameters in billions; more with --json)", shown))


@app.command(epilog="Examples:  vtsweep doctor    vtsweep doctor reference-joint    vtsweep doctor org/model")
def doctor(
    model: Annotated[str | None, typer.Argument(help="Catalogue name, repository id or local folder")] = None,
    revision: Annotated[str | None, typer.Option(help="Commit of a repository")] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Allow the repository's own code (needs --revision)")] = False,
    as_json: Json = False,
) -> None:
    """Check this machine, or whether a model can be used here: access, extras, memory, one image."""
    from orchestrator.cli.doctor import diagnose
    from orchestrator.cli.render import print_rows

    findings = diagnose(model, revision, trust_remote_code)
    rows = [{"check": f.check, "status": f.status, "found": f.found, "mend": f.mend} for f in findings]
    _emit(rows, as_json, lambda: print_rows(f"vtsweep doctor {model or ''}".strip(), rows))
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
    _emit(asdict(job), as_json, lambda: typer.echo(f"job {job.job_id}: {job.status}"))
    if job.exit_code:
        raise typer.Exit(job.exit_code)


def _fail(error: BaseException, code: int, as_json: bool) -> NoReturn:
    from orchestrator.scrub import scrub

    message = scrub(str(error))
    if as_json:
        typer.echo(json.dumps({"error": type(error).__name__, "message": message, "exit_code": code}))
    else:
        typer.secho(f"error: {message}", fg="red", err=True)
    raise SystemExit(code)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of `vtsweep`, `python -m orchestrator` and the modules in `jobs/`; always exits."""
    from orchestrator import interrupt
    from orchestrator.errors import VtsweepError

    args = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in args
    result: Any = 1
    with interrupt.handled():
        try:
            result = app(args=args, prog_name="vtsweep", standalone_mode=False)
        except (KeyboardInterrupt, typer.Abort):
            result = interrupt.exit_code() or 130
        except Exception as error:
            if interrupt.exit_code():
                pass  # what a library made of the interruption
            elif isinstance(error, VtsweepError):
                _fail(error, error.exit_code, as_json)
            # Click's own errors (unknown option, missing argument) know how to print themselves and their exit code.
            elif hasattr(error, "show") and hasattr(error, "exit_code"):
                error.show()
                raise SystemExit(error.exit_code) from None
            else:
                raise
        result = interrupt.exit_code() or result
    if result in (130, 143):
        typer.secho("stopped; what was finished is kept. Run the same command again to resume.", fg="yellow", err=True)
    raise SystemExit(result if isinstance(result, int) else 0)
