"""Common parts of all commands: the Typer application, arguments with shell completion, and output."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

# Disables telemetry of the libraries; must be set before they are imported.
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


def _version(requested: bool) -> None:
    if requested:
        from vtsweep.version import __version__

        typer.echo(f"vtsweep {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of vtsweep itself."""


# ---------------------------------------------------------------- shell completion


def complete_sweep_files(incomplete: str) -> list[str]:
    """Sweep files and folders that begin with the typed path; those of `sweeps/` for an empty one."""
    folder = Path(incomplete).parent if incomplete else Path()
    paths = [*sorted(folder.glob("*.yaml")), *(p for p in sorted(folder.iterdir()) if p.is_dir() and p.name[0] != ".")]
    shown = [f"{path}/" if path.is_dir() else str(path) for path in paths]
    if not incomplete:
        shown = [str(p) for p in sorted(Path("sweeps").glob("*.yaml"))] or shown
    return [path for path in shown if path.startswith(incomplete)]


def complete_keys(incomplete: str) -> list[str]:
    """Dotted keys."""
    from orchestrator.config import RunConfig, StudyConfig
    from orchestrator.config.overrides import dotted_keys

    return [key for key in dotted_keys(StudyConfig) + dotted_keys(RunConfig) if key.startswith(incomplete)]


def complete_overrides(incomplete: str) -> list[str]:
    """Dotted keys up to `=`, then the allowed values of a key; model names."""
    from orchestrator.config import RunConfig, StudyConfig
    from orchestrator.config.overrides import allowed_values, dotted_keys

    key, sign, value = incomplete.partition("=")
    if not sign:
        keys = [k for k in dotted_keys(StudyConfig) if k not in ("base", "axes", "zip", "search")] + dotted_keys(
            RunConfig
        )
        return [f"{k}=" for k in keys if k.startswith(key)]
    words = complete_models(value) if key == "model.name" else allowed_values(key)
    return [f"{key}={word}" for word in words if word.startswith(value)]


def complete_models(incomplete: str) -> list[str]:
    """Names of the catalogue."""
    from orchestrator.models.catalogue import catalogue_rows

    return [row["name"] for row in catalogue_rows() if row["name"].startswith(incomplete)]


def complete_studies(incomplete: str) -> list[str]:
    """Names of studies in the storage `results`, or in the typed storage."""
    from orchestrator.store.study_record import DEFAULT_STORAGE, STUDY_FILE

    if "/" not in incomplete:
        names = [path.parent.name for path in sorted(Path(DEFAULT_STORAGE).glob(f"studies/*/{STUDY_FILE}"))]
        return [name for name in names if name.startswith(incomplete)]
    root = incomplete.partition("/studies")[0].rstrip("/")
    return [str(p.parent) for p in sorted(Path(root).glob(f"studies/*/{STUDY_FILE}")) if str(p).startswith(incomplete)]


File = Annotated[
    str,
    typer.Argument(
        metavar="FILE", help="Sweep file, for example sweeps/quickstart.yaml", autocompletion=complete_sweep_files
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Overrides: data.n_images=500 storage=/data/results; several values make an axis: finetune.seed=0,1,2",
        autocompletion=complete_overrides,
    ),
]
StudyName = Annotated[
    str,
    typer.Argument(
        help="Name of a study in `results`, or its folder STORAGE/studies/NAME", autocompletion=complete_studies
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, for machines.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress; errors and the result only.")]


def emit(value: Any, as_json: bool, text: Any) -> None:
    """Print `value` as JSON if `as_json`, else call `text()`."""
    if as_json:
        typer.echo(json.dumps(value, indent=1, default=str))
    else:
        text()


def say(text: str, quiet: bool = False) -> None:
    """Print a progress line on standard error before work that takes time."""
    if not quiet:
        typer.secho(text, err=True, dim=True)


def since(started: float) -> str:
    """Seconds since `started` (`time.monotonic`), for people."""
    return f"{time.monotonic() - started:.1f} s"
