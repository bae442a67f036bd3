"""A sweep file and command-line overrides -> validated runs, before work starts. Imports neither torch nor ray."""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from orchestrator.config import RunConfig, StudyConfig
from orchestrator.config.overrides import nested_key, split_overrides
from orchestrator.config.yaml import read_yaml
from orchestrator.errors import ConfigError, did_you_mean

MAX_NAMED = 20
"""Maximum number of problems in one message."""
MAX_POINTS = 10_000
"""Maximum number of points of a study; more indicates an error in an axis."""


@dataclass(frozen=True)
class Point:
    """One run of a study, and the axis values that distinguish it from the others."""

    run: RunConfig
    axes: Mapping[str, Any]

    @property
    def label(self) -> str:
        """`ratio=0.5 seed=1`; `base` if the study has a single point."""
        short = [key.rsplit(".", 1)[-1] for key in self.axes]
        names = [key if short.count(name) > 1 else name for key, name in zip(self.axes, short, strict=True)]
        names = [name.replace("complexity_ratio", "ratio") for name in names]
        return " ".join(map("{}={}".format, names, map(_short, self.axes.values()))) or "base"


@dataclass(frozen=True)
class Sweep:
    """A study with every point expanded and validated."""

    study: StudyConfig
    points: tuple[Point, ...]
    file: str
    text: str
    """The sweep file as written; stored with the study."""


def load_sweep(file: str | Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep file, apply `key=value` overrides, expand and validate every point.

    Overrides win over the file, axes included. `storage`, `name`, `stages` and `track.*` belong to the study; every
    other key belongs to each point. Values are YAML (`capture.layers=[0,4]`, `model.name=reference-cross`); several
    values make an axis (`finetune.seed=0,1,2`), see `overrides.split_overrides`.

    Raises:
        ConfigError: the file or an override is invalid; names file, key, found and expected value, and the closest
            known name.
    """
    path = Path(file)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        siblings = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ConfigError(f"no sweep file {str(file)!r}.{did_you_mean(path.name, siblings)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from error
    try:
        raw = read_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{file}: expected a mapping with `name`, `base`, ...; found {type(raw).__name__}")
    return make_sweep(raw, overrides, file=str(file), text=text)


def make_sweep(raw: Mapping[str, Any], overrides: Sequence[str] = (), *, file: str = "study", text: str = "") -> Sweep:
    """As `load_sweep`, from a parsed mapping."""
    parsed = split_overrides(overrides)
    run_keys = parsed.run
    tree: dict[str, Any] = dict(raw)
    for key, value in parsed.study.items():
        if nested := nested_key(key):
            tree[nested[0]] = {**_mapping(tree, nested[0]), nested[1]: value}
        else:
            tree = set_key(tree, key, value, where="override")
    if parsed.axes:
        tree["axes"] = {**_mapping(tree, "axes"), **parsed.axes}
        tree["zip"] = {key: value for key, value in _mapping(tree, "zip").items() if key not in parsed.axes}
    study = validate(StudyConfig, tree, file)
    _check_axes(study, file)
    points: dict[str, Point] = {}
    for axes in _expand(study):
        tree = dict(study.base)
        # Sections before their keys: `data` would otherwise overwrite `data.seed`.
        for key, value in [*sorted(axes.items(), key=lambda axis: axis[0].count(".")), *run_keys.items()]:
            tree = set_key(tree, key, value, where=file)
        if "search" in tree:
            raise ConfigError(f"{file}: base.search: `search` is a section of the study, beside `base`")
        try:
            run = validate(RunConfig, tree, file, prefix="base")
        except ConfigError as error:
            place = f"\n{file}: at the point {Point(RunConfig(), axes).label}" if axes else ""
            raise ConfigError(f"{error}{place}") from None
        searched = {key: axis for key, axis in study.search.items() if key.startswith("probe.")}
        run = run.model_copy(update={"search": searched})
        kept = {key: value for key, value in axes.items() if not _overridden(key, run_keys)}
        point = Point(run, kept)
        first = points.setdefault(run.model_dump_json(exclude={"how"}), point)
        if first.run.how != run.how:
            raise ConfigError(
                f"{file}: the points {first.label!r} and {point.label!r} differ only in `how`, which changes no "
                "result; set it in `base`"
            )
    return Sweep(study, tuple(points.values()), file, text)


def _mapping(tree: Mapping[str, Any], section: str) -> dict[str, Any]:
    section_values = tree.get(section) or {}
    return dict(section_values) if isinstance(section_values, Mapping) else {}


def _check_axes(study: StudyConfig, file: str) -> None:
    for section in ("axes", "zip"):
        for key, values in getattr(study, section).items():
            if not values:
                raise ConfigError(f"{file}: {section}.{key}: expected at least one value, found an empty list")
    for key in study.zip:
        if key in study.axes:
            raise ConfigError(f"{file}: {key}: is in both `axes` and `zip`; expected one of them")
    n_points = math.prod(len(values) for values in study.axes.values())
    if n_points > MAX_POINTS:
        raise ConfigError(f"{file}: axes: {n_points} points, expected at most {MAX_POINTS}")
    lengths = {key: len(values) for key, values in study.zip.items()}
    if len(set(lengths.values())) > 1:
        raise ConfigError(f"{file}: zip: lists must be equally long, found {lengths}")


def _expand(study: StudyConfig) -> Iterator[dict[str, Any]]:
    zipped = [dict(zip(study.zip, values, strict=True)) for values in zip(*study.zip.values(), strict=True)] or [{}]
    for values in itertools.product(*study.axes.values()):
        for together in zipped:
            yield {**dict(zip(study.axes, values, strict=True)), **together}


def _overridden(key: str, overrides: Mapping[str, Any]) -> bool:
    return any(f"{key}.".startswith(f"{k}.") for k in overrides)


def set_key(tree: Mapping[str, Any], key: str, value: Any, *, where: str) -> dict[str, Any]:
    """A copy of `tree` with dotted `key` set to `value`."""
    head, _, rest = key.partition(".")
    copy = dict(tree)
    if rest:
        child = copy.get(head, {})
        if not isinstance(child, Mapping):
            raise ConfigError(f"{where}: {key}: {head!r} holds {child!r}, not a section")
        value = set_key(child, rest, value, where=where)
    copy[head] = value
    return copy


# ---------------------------------------------------------------- validation with helpful messages


Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], tree: Any, file: str, prefix: str = "") -> Model:
    """`model.model_validate(tree)`, every problem reported as `file: key: found, expected, closest name`."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        lines = [_describe(model, problem, prefix) for problem in error.errors(include_url=False)]
        distinct = list(dict.fromkeys(lines))
        more = [f"and {len(distinct) - MAX_NAMED} more"] if len(distinct) > MAX_NAMED else []
        raise ConfigError("\n".join(f"{file}: {line}" for line in distinct[:MAX_NAMED] + more)) from None


def _describe(model: type[BaseModel], problem: Mapping[str, Any], prefix: str) -> str:
    # Pydantic puts the discriminator's tag (`scenes`) into the path of a union; a user's file has no such key.
    path = [str(part) for part in problem["loc"]]
    tags = {"scenes", "coco", "folder"}
    shown = [part for i, part in enumerate(path) if not (i == 1 and part in tags and path[0] == "data")]
    key = ".".join(([prefix] if prefix else []) + shown)
    value = problem.get("input")
    if problem["type"] == "extra_forbidden":
        siblings = _siblings(model, path[:-1])
        return f"{key}: unknown key {path[-1]!r}.{did_you_mean(path[-1], siblings)}"
    if problem["type"] == "union_tag_invalid":
        tag = str(problem.get("ctx", {}).get("tag"))
        return f"{key}.source: found {tag!r}.{did_you_mean(tag, tags)}"
    if problem["type"] == "union_tag_not_found":
        return f"{key}: `source` is missing; expected one of {sorted(tags)}"
    if problem["type"] == "literal_error":
        expected = str(problem["ctx"]["expected"])
        options = [option.strip(" '\"") for option in expected.replace(" or ", ",").split(",")]
        return f"{key}: found {_short(value)!r}, expected {expected}.{_nearest(_short(value), options)}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{key}: {message}" + ("" if problem["type"] == "value_error" else f"; found {_short(value)!r}")


def _nearest(name: str, options: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.55)
    return f" Did you mean {near[0]!r}?" if near else ""


def _siblings(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Field names of the section that `path` leads to from `model`."""
    current: type[BaseModel] = model
    rest = list(path)
    while rest:
        part = rest.pop(0)
        field = current.model_fields.get(part)
        if field is None:
            break
        options = [a for a in (field.annotation, *get_args(field.annotation)) if isinstance(a, type)]
        sections = [a for a in options if issubclass(a, BaseModel)]
        if len(sections) > 1 and rest:
            tag = rest.pop(0)
            sections = [s for s in sections if s.model_fields["source"].default == tag] or sections
        if not sections:
            break
        current = sections[0]
    return list(current.model_fields)


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("name") or value.get("source") or value)[:60]
    return str(value)[:60]
