"""Content of one MLflow run as plain values: parameters, metrics, curves, artifacts, data set. No MLflow import."""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl
import yaml

from orchestrator.config import RunConfig
from orchestrator.scrub import scrub, scrub_tree

Scalar = str | int | float | bool
Curve = Sequence[tuple[int, float]]

CSV_ROWS = 5000
"""Maximum rows of a table logged as CSV, which MLflow displays; longer tables are logged as Parquet."""
_LONGEST_NAME = 200
_LONGEST_PARAM = 6000


@dataclass(frozen=True)
class Content:
    """Content of a run.

    Args:
        params: flat and short, e.g. `{"complexity_ratio": 0.5, "lora_rank": 16}`.
        metrics: grouped names, e.g. `{"accuracy/high": 0.71}`; None and non-finite values are omitted.
        curves: metric name -> (step, value) pairs; the step is a layer, an optimiser step or a percentage.
        tables: name -> frame; artifacts below `tables/`.
        figures: file name with suffix -> bytes; artifacts below `figures/`; `.html` files at the top.
        model: file name -> bytes of a trained adapter, kept as a logged model with the run's metrics.
        note: description of the run, Markdown.
        seconds: how long the work took.
    """

    params: Mapping[str, Scalar | None] = field(default_factory=dict)
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    tables: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    figures: Mapping[str, bytes] = field(default_factory=dict)
    model: Mapping[str, bytes] = field(default_factory=dict)
    note: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Entry:
    """One run to be logged.

    Args:
        stage: kind of stage, or the title of a summary (`report`).
        digest: digest of everything that determines the content; a finished run with it is not logged again.
        title: name of the run.
        content: makes the content; called only if the run does not exist.
        parent: title of the parent run; None for a top-level run.
        run: the resolved configuration, logged as `config.yaml` and as the run's data set.
        ended: end of the work, seconds since 1970.
        replaces: whether runs of the same stage and title with another digest are deleted first (summaries).
    """

    stage: str
    digest: str
    title: str
    content: Callable[[], Content]
    parent: str | None = None
    run: RunConfig | None = None
    ended: float = 0.0
    replaces: bool = False


@dataclass(frozen=True)
class Beat:
    """Progress of an unfinished stage; each beat contains everything of the earlier ones.

    Args:
        state: in words, e.g. `training, step 23 of 300`.
        params: those that are known from the start.
        curves: name -> (step, value) pairs.
    """

    state: str
    params: Mapping[str, Scalar | None] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)


def finite_metrics(content: Content) -> list[tuple[str, int, float]]:
    """(name, step, value) of every finite metric and curve value, under distinct names that MLflow accepts."""
    rows = [(name, 0, value) for name, value in content.metrics.items()]
    rows += [(name, int(step), value) for name, curve in content.curves.items() for step, value in curve]
    names = server_names(dict.fromkeys(name for name, _, _ in rows))
    return [(names[n], step, float(v)) for n, step, v in rows if v is not None and math.isfinite(v)]


def text_params(content: Content) -> dict[str, str]:
    """Parameters as text without secrets, under distinct names that MLflow accepts."""
    params = {k: v for k, v in scrub_tree(dict(content.params)).items() if v is not None}
    names = server_names(params)
    return {names[k]: str(v)[:_LONGEST_PARAM] for k, v in params.items()}


def server_names(names: Iterable[str]) -> dict[str, str]:
    """Name -> a name that MLflow accepts, a different one for each.

    MLflow accepts word characters, `/ . : -` and spaces, in a normalised relative path. If cleaning makes names equal,
    the one that needed no cleaning is unchanged and a digest of the original is appended to the others.
    """
    originals = list(names)
    cleaned = {name: _clean(name) for name in originals}
    renamed: dict[str, str] = {}
    for name, clean in cleaned.items():
        alike = [original for original in originals if cleaned[original].lower() == clean.lower()]
        mark = "_" + hashlib.sha256(name.encode()).hexdigest()[:6] if len(alike) > 1 and name != clean else ""
        renamed[name] = clean[: _LONGEST_NAME - len(mark)] + mark
    return renamed


def _clean(name: str) -> str:
    parts = [part.strip() for part in re.sub(r"[^\w/. :-]", "_", name).split("/")]
    short = "/".join("_" if part in ("", ".", "..") else part for part in parts)
    if len(short) <= _LONGEST_NAME:
        return short
    return short[: _LONGEST_NAME - 7] + "_" + hashlib.sha256(name.encode()).hexdigest()[:6]


def artifacts(run: RunConfig | None, content: Content) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each artifact."""
    if run is not None:
        yield "config.yaml", yaml.safe_dump(scrub_tree(run.model_dump(mode="json")), sort_keys=False).encode()
    for name, table in content.tables.items():
        if table.height <= CSV_ROWS:
            yield f"tables/{name}.csv", scrub(table.write_csv(float_precision=6)).encode()
        else:
            buffer = io.BytesIO()
            table.write_parquet(buffer, compression="zstd")
            yield f"tables/{name}.parquet", buffer.getvalue()
    for name, data in content.figures.items():
        at_top = name.endswith(".html") or name.startswith("figures/")
        yield (name if at_top else f"figures/{name}"), data
