"""Reference of every setting as Markdown, generated from the configuration models."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from orchestrator.config.overrides import plain_types
from orchestrator.config.study import RunConfig, StudyConfig

HEAD = """# Settings

Every key of a sweep file, generated from the configuration models when this site is built
(`vtsweep settings` prints it).
Keys of a study are at the top level of the file; all others are below `base`, in `axes`, or on the command line as
`KEY=VALUE`.

A key of section `how` or `track` changes no result; any other key does, and is part of the digest of the stages that
read it. Absent keys take the default.
"""


def _sections(field: FieldInfo) -> list[type[BaseModel]]:
    return [t for t in plain_types(field.annotation) if isinstance(t, type) and issubclass(t, BaseModel)]


def _type_words(annotation: Any) -> str:
    words = []
    for plain_type in plain_types(annotation):
        origin = get_origin(plain_type)
        if origin is Literal:
            words += [f"`{value}`" for value in get_args(plain_type)]
        elif origin in (tuple, list):
            inner = [a for a in get_args(plain_type) if a is not Ellipsis]
            n = f"{len(inner)} " if Ellipsis not in get_args(plain_type) and origin is tuple else ""
            words.append(f"list of {n}{_type_words(inner[0])}")
        elif origin is dict or plain_type is dict:
            words.append("mapping")
        elif plain_type is type(None):
            words.append("absent")
        else:
            words.append(
                {int: "whole number", float: "number", str: "text", bool: "`true` or `false`"}.get(plain_type, "value")
            )
    return ", ".join(dict.fromkeys(words))


def _limits(field: FieldInfo) -> str:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    bounds = {name: getattr(m, name) for m in field.metadata for name in signs if getattr(m, name, None) is not None}
    for annotation in (field.annotation, *get_args(field.annotation)):
        for m in getattr(annotation, "__metadata__", ()):
            for part in (m, *getattr(m, "metadata", ())):
                bounds |= {name: getattr(part, name) for name in signs if getattr(part, name, None) is not None}
    return "".join(f", {signs[name]} {value:g}" for name, value in bounds.items())


def _default(field: FieldInfo) -> str:
    if field.is_required() or field.default is PydanticUndefined:
        default = field.default_factory() if field.default_factory else None  # type: ignore[call-arg]
        return "required" if default is None else f"`{default}`"
    value = field.default
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value == "":
        return "empty"
    return "absent" if value is None else f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _table(model: type[BaseModel], prefix: str, title: str, level: int = 2) -> Iterator[str]:
    about = _cell(model.__doc__ or "")
    yield f"\n{'#' * level} {title}\n\n{about}\n\n| key | takes | default | meaning |\n|---|---|---|---|"
    below: list[tuple[type[BaseModel], str, str]] = []
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        if sections := _sections(field):
            for section in sections:
                kind = (
                    f" (source: {section.model_fields['source'].default})" if "source" in section.model_fields else ""
                )
                if len(sections) == 1 or kind:
                    below.append((section, f"{key}.", f"`{key}`{kind}"))
            if prefix == "" and model is RunConfig:
                continue
            yield f"| `{key}` | section | see below | {_cell(field.description or '')} |"
            continue
        accepted = _type_words(field.annotation) + _limits(field)
        yield f"| `{key}` | {_cell(accepted)} | {_cell(_default(field))} | {_cell(field.description or '')} |"
    for section, path, heading in below:
        yield from _table(section, path, heading, level)


def settings_page() -> str:
    """The page as Markdown."""
    lines = [HEAD, *_table(StudyConfig, "", "Study")]
    for name, field in RunConfig.model_fields.items():
        for section in _sections(field):
            kind = f" (source: {section.model_fields['source'].default})" if "source" in section.model_fields else ""
            lines += _table(section, f"{name}.", f"`{name}`{kind}")
    return "\n".join(lines).rstrip() + "\n"


def setting_rows() -> list[dict[str, str]]:
    """One row per setting: key, accepted values, default, meaning; without Markdown markup."""
    rows = []
    for line in settings_page().splitlines():
        if line.startswith("| `"):
            key, accepted, default, meaning = (
                cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip("|"))
            )
            row = {"key": key, "takes": accepted, "default": default, "meaning": meaning}
            rows.append({name: text.replace("`", "") for name, text in row.items()})
    return rows
