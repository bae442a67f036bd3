"""Commands that plan and run a study, or one kind of its stages."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.common import File, Json, Overrides, Quiet, app, emit, say
from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.config import StageName
    from orchestrator.config.sweep import Sweep


def _load(file: str, overrides: list[str] | None, quiet: bool) -> Sweep:
    """The sweep, read before anything heavy is imported, and a line that says so."""
    from orchestrator.config.sweep import load_sweep

    sweep = load_sweep(file, overrides or ())
    axes = ", ".join(f"{len({str(p.axes[k]) for p in sweep.points if k in p.axes})} x {k}" for k in _axes(sweep))
    points = f"{len(sweep.points)} point{'s' * (len(sweep.points) > 1)}"
    say(f"{sweep.study.name}: {points}{f' ({axes})' if axes else ''}, storage {sweep.study.storage}", quiet)
    return sweep


def _check_data(sweep: Sweep) -> None:
    """Refuse data that are not here before anything heavy is imported."""
    from orchestrator.data.presence import check_presence

    for data in {repr(point.run.data): point.run.data for point in sweep.points}.values():
        check_presence(data)


def _axes(sweep: Sweep) -> list[str]:
    return list(dict.fromkeys(key for point in sweep.points for key in point.axes))


def _run(
    name: str, file: str, overrides: list[str] | None, stages: list[StageName] | None, as_json: bool, quiet: bool
) -> None:
    sweep = _load(file, overrides, quiet or as_json)
    _check_data(sweep)
    from orchestrator.study.run import REPORT_FILE, finished_study, run_study

    if finished := finished_study(sweep, stages):
        say("nothing to do: every stage, the report and the MLflow runs are there", quiet or as_json)
        study, report = finished, finished.folder.locate(REPORT_FILE)
    else:
        from orchestrator.study.across import across_words

        for words in across_words([point.run for point in sweep.points], stages or sweep.study.stages):
            say(words, quiet or as_json)
        command = shlex.join(["vtsweep", name, file, *(overrides or ())])
        study, report = run_study(sweep, stages=stages, quiet=quiet or as_json, command=command)
    if study.name != sweep.study.name:
        say(f"kept as {study.name}: {sweep.study.name} holds other settings", quiet or as_json)
    from orchestrator.cli.closing import outcome, print_outcome

    emit(outcome(study, report) if as_json else None, as_json, lambda: print_outcome(study, report))


@app.command(epilog="Example:  vtsweep run sweeps/coco.yaml data.root=/data/coco storage=/data/results")
def run(file: File, overrides: Overrides = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """Run every stage of a study, then write its report and MLflow runs. Resumes what is unfinished."""
    _run("run", file, overrides, None, as_json, quiet)


@app.command(epilog="Example:  vtsweep plan sweeps/paper_molmo.yaml --gpu h100 --gpus 8")
def plan(
    file: File,
    overrides: Overrides = None,
    as_json: Json = False,
    gpu: Annotated[
        str | None, typer.Option(help="Also plan for this GPU: h200, h100, a100, l40s or rtx4090.", metavar="NAME")
    ] = None,
    gpus: Annotated[int, typer.Option(help="How many of them.", min=1)] = 1,
) -> None:
    """Show points, digests, what is already done, estimates, and whether the machine can hold it. Starts nothing."""
    sweep = _load(file, overrides, as_json)
    from orchestrator.cli.printing import print_plan
    from orchestrator.errors import ResourceError
    from orchestrator.study.plan import make_plan

    study_plan = make_plan(sweep, gpu, gpus)
    emit(study_plan.as_json(), as_json, lambda: print_plan(study_plan))
    if study_plan.too_large:
        typer.secho("error: " + "\n".join(study_plan.too_large), fg="red", err=True)
        raise typer.Exit(ResourceError.exit_code)


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


@app.command(epilog="Example:  vtsweep finetune sweeps/complexity_ratio.yaml finetune.seed=3,4")
def finetune(file: File, overrides: Overrides = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """Fine-tune one LoRA trial for each point, evaluate it and measure compression again."""
    _run("finetune", file, overrides, ["finetune"], as_json, quiet)


@app.command(epilog="Example:  vtsweep ablate sweeps/ablation.yaml ablate.n_per_family=200")
def ablate(file: File, overrides: Overrides = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """Delete, knock out and patch visual tokens to see what the decoder uses."""
    _run("ablate", file, overrides, ["ablate"], as_json, quiet)


@app.command(epilog="Example:  vtsweep export merged model.adapter=results/finetune/DIGEST/adapter")
def export(
    folder: Annotated[str, typer.Argument(help="new folder for the checkpoint")],
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Save a model, a trial's adapter merged into its weights, as a checkpoint that transformers loads by itself."""
    from orchestrator.config.sweep import make_sweep

    sweep = make_sweep({"name": "export", "stages": ["capture"]}, list(overrides or ()))
    if len(sweep.points) != 1:
        raise ConfigError(f"export: expected one model, found {len(sweep.points)} points")
    from orchestrator.models.export import export_model

    model = sweep.points[0].run.model
    say(f"{model.name}, adapter {model.adapter or 'none'}", as_json)
    place = export_model(model, folder)
    emit({"folder": str(place)}, as_json, lambda: typer.echo(f"{place}: use it as model.name={place}"))


@app.command(epilog="Example:  vtsweep evaluate --policy results/ablate/DIGEST/policy.yaml sweeps/ablation.yaml")
def evaluate(
    file: File,
    overrides: Overrides = None,
    policy: Annotated[str, typer.Option(help="policy.yaml of an ablation")] = ...,  # type: ignore[assignment]
    as_json: Json = False,
) -> None:
    """Apply a policy to fresh questions: accuracy, tokens, time and operations against all tokens and rivals."""
    sweep = _load(file, overrides, as_json)
    from orchestrator.ablate.policy_file import load_policy

    _check_data(sweep)
    load_policy(policy)  # refused before models and data are looked at
    from orchestrator.ablate.evaluate import evaluate_points
    from orchestrator.cli.printing import print_evaluations
    from orchestrator.study.resolve import resolve

    evaluated = evaluate_points(resolve(sweep, ["ablate"]), policy)
    names = [run.model.label for run, _ in evaluated]
    marks = [
        f" ({stage.digest[:6]})" if names.count(n) > 1 else "" for n, (_, stage) in zip(names, evaluated, strict=True)
    ]
    rows = [stage.scan("evaluation").collect().to_dicts() for _, stage in evaluated]
    tables = {name + mark: table for name, mark, table in zip(names, marks, rows, strict=True)}
    emit(tables, as_json, lambda: print_evaluations(tables))
