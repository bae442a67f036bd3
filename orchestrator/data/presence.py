"""Whether the files of a data source are on this machine, by their names alone: answered before heavy imports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.errors import DataError, did_you_mean


def is_here(data: Any) -> bool:
    """Whether the files of a data section are on this machine, by their names; False for places elsewhere."""
    if "://" in (getattr(data, "root", None) or ""):
        return False
    try:
        check_presence(data)
    except DataError:
        return False
    return True


def check_presence(data: Any) -> None:
    """Refuse a data section whose folder or table is not there; places elsewhere (`s3://...`) are not asked.

    Raises:
        DataError: naming the key, what was looked for and the nearest name that is there.
    """
    root = getattr(data, "root", None)
    if root is None or "://" in root:
        return
    folder = Path(root)
    if not folder.is_dir():
        near = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
        kind = " It is a file." if folder.is_file() else did_you_mean(folder.name, near)
        raise DataError(f"data.root: no folder {root}.{kind}")
    tables = [data.table] if data.source == "folder" else list(data.file) if data.source == "questions" else []
    for name in tables:
        key = "table" if data.source == "folder" else "file"
        if "://" not in name and not any(mark in name for mark in "*?[") and not (folder / name).exists():
            present = [path.name for path in folder.iterdir() if path.suffix in (".csv", ".jsonl", ".json", ".parquet")]
            only = (
                f" It holds {present[0]!r}: data.{key}={present[0]}"
                if len(present) == 1
                else did_you_mean(name, present)
            )
            raise DataError(f"data.{key}: {root} holds no {name}.{only}")
