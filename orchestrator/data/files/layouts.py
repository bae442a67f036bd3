"""Layouts of question files: how the files of a folder become records of the row model.

A layout turns the files of a folder into records of the row model (`rows.FIELDS`). Others are registered under the
entry-point group `vtsweep.questions` (docs/data.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.data.files.records import Record, json_members, json_pairs, read_records


class Files:
    """Question files as a layout sees them."""

    def __init__(self, fs: Any, paths: Mapping[str, str]) -> None:
        self.fs, self.paths = fs, dict(paths)

    @property
    def names(self) -> list[str]:
        return list(self.paths)

    def records(self, name: str) -> Iterator[Record]:
        return read_records(self.fs, self.paths[name], name)

    def members(self, name: str, key: str) -> Iterator[Any]:
        """Members of the list `key` of a JSON document, one by one."""
        return json_members(self.fs, self.paths[name], name, key)

    def pairs(self, name: str) -> Iterator[tuple[str, Any]]:
        """Keys and values of a JSON document that is an object, one by one."""
        return json_pairs(self.fs, self.paths[name], name)


@dataclass(frozen=True)
class Layout:
    """How a published data set is read and scored."""

    read: Callable[[Files], Iterator[tuple[str, Record]]]
    """Files -> (file name, record in the row model's fields)."""
    files: tuple[str, ...] = ()
    """Official file names below the root, used if the study gives none."""
    images: tuple[str, ...] = ("{image}",)
    """Path of an image below the root; of several the first that exists."""
    scoring: str = "exact"
    """Rule of `files.scoring`."""
    source: str = ""
    """Source of layout and rule."""


def plain(files: Files) -> Iterator[tuple[str, Record]]:
    """Layout of files that already have the row model's fields."""
    for name in files.names:
        for record in files.records(name):
            yield name, record


def mapped(fields: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Callable[[Files], Iterator[tuple[str, Record]]]:
    """A layout that converts records one by one. A missing or malformed field invalidates the row, not the file."""

    def read(files: Files) -> Iterator[tuple[str, Record]]:
        for name, record in plain(files):
            yield name, convert(record, fields)

    return read


def convert(record: Record, fields: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Record:
    if record.reason is not None:
        return record
    try:
        return record._replace(value=fields(record.value))
    except KeyError as error:
        return record._replace(value=None, reason=f"no field {error}")
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        return record._replace(value=None, reason=f"malformed: {error}")
