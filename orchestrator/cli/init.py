"""`vtsweep init`: a commented sweep file for a chosen model and data."""

from __future__ import annotations

import re
import shlex
import unicodedata
from pathlib import Path
from typing import Any

import yaml

from orchestrator.config import ModelConfig
from orchestrator.config.sweep import make_sweep
from orchestrator.errors import ConfigError, did_you_mean

_SOURCES: dict[str, dict[str, Any]] = {
    "scenes": {"source": "scenes", "n_images": 400, "design": {}, "seed": 0},
    "coco": {"source": "coco", "root": "DIR", "split": "val2017", "n_images": 500},
    "questions": {"source": "questions", "root": "DIR", "file": "questions.jsonl"},
    "gqa": {"source": "questions", "root": "DIR", "layout": "gqa", "n_images": 1000},
    "pope": {"source": "questions", "root": "DIR", "layout": "pope", "n_images": 1000},
    "folder": {"source": "folder", "root": "DIR", "table": "attributes.csv"},
}

_TEMPLATE = """\
# vtsweep run {shell_file}
#
# See what it would do first:  vtsweep plan {shell_file}
# Any setting can be changed on the command line:  vtsweep run {shell_file} data.n_images=50 storage=/data/results
name: {name}
description: {description}

# What runs, in this order: capture, correlate, probe, finetune, ablate. A report and MLflow runs follow.
stages: [capture, correlate, probe]

# Settings shared by all points. What is left out has the default of orchestrator/config/.
base:
  model: {model}
  data: {data}
  capture:
    prompt: "{prompt}"   # one fixed question for every image
    # layers: [0, 4, 8]                 # decoder tap points; all when absent
    # metrics: [gini, stable_rank]      # all when absent
  correlate: {{n_bootstrap: 500}}
  probe: {{solvers: [ridge, logistic]}}
  # finetune: {{n_steps: 200, language: {{rank: 16, learning_rate: 5.0e-5}}}}
  how:
    backend: ray                        # `local` runs in this process
    batch_size: 16

# One run for each combination of these values.
# axes:
#   finetune.complexity_ratio: [0.0, 0.25, 0.5, 1.0]
#   finetune.seed: [0, 1]
"""


def write_starter(file: str, model: str, source: str, root: str | None) -> Path:
    """Write a sweep file and return its path.

    Raises:
        ConfigError: an unknown source, a missing `root`, or a file that already exists or cannot be written.
        ModelError: an unknown model.
    """
    from orchestrator.models.catalogue import resolve

    if source not in _SOURCES:
        raise ConfigError(f"--data {source!r}: expected one of {', '.join(_SOURCES)}.{did_you_mean(source, _SOURCES)}")
    if source != "scenes" and root is None:
        raise ConfigError(f"--data {source} needs --root DIR, the folder of its images")
    resolve(ModelConfig(name=model))
    path = Path(file)
    if path.exists():
        raise ConfigError(f"{file} is there already; choose another name")
    data = dict(_SOURCES[source])
    if root is not None and source != "scenes":
        data |= _place(data, root)
    text = _TEMPLATE.format(
        shell_file=shlex.quote(file),
        name=_flow(_study_name(path.stem)),
        description=_flow(f"What does {model} do with the complexity of its images?"),
        model=_flow({"name": model}),
        data=_flow(data),
        prompt=_prompt(model),
    )
    make_sweep(yaml.safe_load(text), file=file)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}") from error
    return path


def _place(data: dict[str, Any], root: str) -> dict[str, Any]:
    """Folder and file of a source: the file is `root` itself if it is a file, else the only table in it."""
    key = {"folder": "table", "questions": "file"}.get(str(data["source"]), "")
    path = Path(root)
    if key and path.is_file():
        return {"root": str(path.parent), key: path.name}
    if key in data and path.is_dir() and not (path / data[key]).exists():
        kinds = (".csv",) if key == "table" else (".jsonl", ".json", ".csv", ".parquet")
        tables = sorted(entry.name for entry in path.iterdir() if entry.suffix in kinds)
        if len(tables) == 1:
            return {"root": root, key: tables[0]}
    return {"root": root}


def _study_name(stem: str) -> str:
    """The name of a study from a file name: ASCII letters, digits, dots and dashes."""
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", plain).strip("-._") or "study"


def _flow(value: Any) -> str:
    """`value` as YAML on one line, quoted if necessary."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _prompt(model: str) -> str:
    return "describe the image ." if model.startswith("reference-") else "Describe the image."
