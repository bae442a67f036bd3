"""Records on their way to a tracking server, kept in the study's storage until the server has them.

    STORAGE/studies/NAME/outbox/KEY/
      record.json       params, metrics, curves, tags, data set; written last, so that it stands for a whole entry
      artifacts/...     tables, figures, resolved configuration

A server that is down, or a driver that dies while sending, loses nothing. This module knows no MLflow.
"""

from __future__ import annotations

import io
import math
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from orchestrator.config import RunConfig
from orchestrator.scrub import scrub, scrub_tree
from orchestrator.store.stage_folder import Storage, digest

Scalar = str | int | float | bool
Curve = Sequence[tuple[int, float]]

CSV_ROWS = 5000
"""Tables up to this many rows are kept as CSV, which MLflow shows as a table; longer ones as Parquet."""


@dataclass(frozen=True)
class Content:
    """What a run shows.

    Args:
        params: flat and short, e.g. `{"complexity_ratio": 0.5, "lora_rank": 16}`.
        metrics: grouped names, e.g. `{"accuracy/high": 0.71}`; None and values that are not finite are left out.
        curves: metric name -> (layer, value) pairs; the layer becomes the step.
        tables: name -> frame; artifacts below `tables/`.
        figures: file name with suffix -> bytes; artifacts below `figures/`; `.html` files at the top.
        note: description of the run, Markdown.
        seconds: how long the work took.
    """

    params: Mapping[str, Scalar | None] = field(default_factory=dict)
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    tables: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    figures: Mapping[str, bytes] = field(default_factory=dict)
    note: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Outbox:
    """The outbox of one study."""

    storage: Storage
    study: str

    @property
    def folder(self) -> Storage:
        return self.storage.sub(f"studies/{self.study}/outbox")

    def put(self, key: str, run: RunConfig | None, content: Content, identity: Mapping[str, Any]) -> None:
        """Keep a record under `key`, replacing one that is there.

        Args:
            key: file name of the entry.
            run: the resolved configuration, kept as `config.yaml` and as the run's data set.
            content: what the run shows.
            identity: experiment, stage, digest, title and parent, as plain JSON values.
        """
        box = self.folder.sub(key)
        for name, data in _artifacts(run, content):
            box.write(f"artifacts/{name}", data)
        box.write_json("record.json", {**identity, **_record(run, content)})

    def waiting(self) -> list[str]:
        """Keys of whole entries, in the order they were put."""
        keys = [k for k in self.folder.files("") if self.folder.exists(f"{k}/record.json")]
        return sorted(keys, key=lambda k: (self.folder.read_json(f"{k}/record.json")["time"], k))

    def read(self, key: str) -> tuple[dict[str, Any], dict[str, bytes]]:
        """Record and artifacts (name -> bytes) of an entry."""
        box = self.folder.sub(key)
        root = box.path("artifacts")
        found = [str(p) for p in box.fs.find(root)] if box.fs.exists(root) else []
        names = [p[len(root.rstrip("/")) + 1 :] for p in found]
        return box.read_json("record.json"), {n: box.read(f"artifacts/{n}") for n in names}

    def remove(self, key: str) -> None:
        self.folder.fs.rm(self.folder.path(key), recursive=True)


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _record(run: RunConfig | None, content: Content) -> dict[str, Any]:
    params = scrub_tree(dict(content.params))
    return {
        "time": round(time.time() * 1000),
        "seconds": content.seconds,
        "note": scrub(content.note),
        "commit": source_commit(),
        "version": version("vtsweep"),
        "params": {k: str(v) for k, v in params.items() if v is not None},
        "metrics": {k: float(v) for k, v in content.metrics.items() if v is not None and _finite(v)},
        "curves": {k: [[int(s), float(v)] for s, v in curve if _finite(v)] for k, curve in content.curves.items()},
        "dataset": _dataset(run) if run else None,
    }


def _dataset(run: RunConfig) -> dict[str, Any]:
    settings = scrub_tree(run.data.model_dump(mode="json"))
    what = settings.get("split") or f"seed {settings['seed']}"
    name = f"{settings['source']} {what}, {settings.get('n_images') or 'all'} images"
    return {"name": name, "digest": digest(settings), "settings": settings}


def _artifacts(run: RunConfig | None, content: Content) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each artifact."""
    if run is not None:
        yield "config.yaml", yaml.safe_dump(scrub_tree(run.model_dump(mode="json")), sort_keys=False).encode()
    for name, table in content.tables.items():
        if table.height <= CSV_ROWS:
            yield f"tables/{name}.csv", table.write_csv(float_precision=6).encode()
        else:
            buffer = io.BytesIO()
            table.write_parquet(buffer, compression="zstd")
            yield f"tables/{name}.parquet", buffer.getvalue()
    for name, data in content.figures.items():
        at_top = name.endswith(".html") or name.startswith("figures/")
        yield (name if at_top else f"figures/{name}"), data


@cache
def source_commit() -> str:
    """Commit of the checkout this package runs from, with `+` when it has changes; `unknown` for an installed copy."""
    here = ["git", "-C", str(Path(__file__).parent)]
    try:
        subprocess.run([*here, "ls-files", "--error-unmatch", __file__], capture_output=True, check=True, timeout=5)
        head = subprocess.run([*here, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=5)
        changed = subprocess.run([*here, "diff", "--quiet", "HEAD", "--", "."], capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head.stdout.strip() + "+" * bool(changed.returncode)
