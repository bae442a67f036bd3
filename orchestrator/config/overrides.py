"""Command-line overrides: `KEY=VALUE` texts -> values of the study, values of every point, and sweep axes."""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from orchestrator.config.study import RunConfig, StudyConfig
from orchestrator.config.yaml import read_yaml
from orchestrator.errors import ConfigError, did_you_mean

_NESTED = ("axes", "zip", "search")
"""Mappings of a study whose keys are dotted."""


@dataclass(frozen=True)
class Overrides:
    """Parsed overrides.

    `study`: keys of the sweep file; `run`: keys of every point; `axes`: dotted keys with several values each.
    """

    study: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, list[Any]] = field(default_factory=dict)


def split_overrides(overrides: Sequence[str]) -> Overrides:
    """Read `KEY=VALUE` texts; values are YAML.

    Commas not followed by a space, outside quotes and brackets, separate values. A list-valued key gets a list
    (`capture.metrics=gini,hoyer`; one value is a list of one). Any other key becomes an axis of the sweep
    (`finetune.seed=0,1,2`), as does a key with several bracketed lists (`data.n_objects=[1,10],[1,200]`). Quotes
    protect a comma.

    Raises:
        ConfigError: the text is not `KEY=VALUE`, its key is unknown, or its value is not YAML.
    """
    result = Overrides()
    for text in overrides:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise ConfigError(f"override {text!r}: expected KEY=VALUE, for example data.n_images=500")
        head = key.split(".")[0]
        if head not in StudyConfig.model_fields and head not in RunConfig.model_fields:
            keys = list(StudyConfig.model_fields) + dotted_keys(RunConfig)
            raise ConfigError(f"override {text!r}: unknown key {key!r}.{did_you_mean(key, keys)}")
        parts = _split(value)
        model = StudyConfig if head in StudyConfig.model_fields else RunConfig
        if len(parts) == 1:
            parsed: Any = _read(text, value)
            if isinstance(parsed, str | int | float) and takes_only_lists(model, key):
                parsed = [parsed]
        else:
            parsed = [_read(text, part) for part in parts]
            takes_list = head in _NESTED or takes_a_list(model, key)
            if head in RunConfig.model_fields and (not takes_list or any(isinstance(v, list) for v in parsed)):
                result.axes[key] = parsed
                continue
        (result.study if head in StudyConfig.model_fields else result.run)[key] = parsed
    return result


def _read(text: str, value: str) -> Any:
    try:
        parsed = read_yaml(value) if value else ""
    except yaml.YAMLError as error:
        raise ConfigError(f"override {text!r}: the value is not valid YAML: {error}") from error
    if "#" in value and "#" not in str(parsed):
        raise ConfigError(f"override {text!r}: # starts a comment in YAML; quote the value to keep it")
    return parsed


def _split(value: str) -> list[str]:
    """`value` split at commas outside quotes and brackets that are not followed by a space."""
    parts, depth, quote, start = [], 0, "", 0
    for at, letter in enumerate(value):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"" and not value[start:at].strip():
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        elif letter == "," and depth == 0 and value[at + 1 : at + 2].strip():
            parts.append(value[start:at])
            start = at + 1
    return [*parts, value[start:]] if parts else [value]


def nested_key(key: str) -> tuple[str, str] | None:
    """`axes.finetune.seed` -> (`axes`, `finetune.seed`); None for a key that is not below a mapping of dotted keys."""
    head, _, rest = key.partition(".")
    return (head, rest) if head in _NESTED and rest else None


def plain_types(annotation: Any) -> Iterator[Any]:
    """The plain types that an annotation allows, without `Annotated` and unions."""
    if get_origin(annotation) is Annotated:
        yield from plain_types(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from plain_types(part)
    else:
        yield annotation


def _fields(model: type[BaseModel], key: str) -> Iterator[Any]:
    """Annotations of the fields that a dotted key may mean: several if a section has several forms."""
    head, _, rest = key.partition(".")
    if head not in model.model_fields:
        return
    for annotation in plain_types(model.model_fields[head].annotation):
        if not rest:
            yield annotation
        elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _fields(annotation, rest)


def takes_a_list(model: type[BaseModel], key: str) -> bool:
    """Whether a dotted key of `model` takes a list."""
    return any((get_origin(annotation) or annotation) in (tuple, list, set) for annotation in _fields(model, key))


def takes_only_lists(model: type[BaseModel], key: str) -> bool:
    """Whether every form of a dotted key takes a list (or null), so that one value means a list of one."""
    kinds = {get_origin(annotation) or annotation for annotation in _fields(model, key)} - {type(None)}
    return bool(kinds) and kinds <= {tuple, list, set}


def dotted_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key of `model`, sections before their keys, in order of definition."""
    keys: dict[str, None] = {}
    for name, about in model.model_fields.items():
        keys[prefix + name] = None
        for annotation in plain_types(about.annotation):
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                keys.update(dict.fromkeys(dotted_keys(annotation, f"{prefix}{name}.")))
    return list(keys)


def allowed_values(key: str) -> list[str]:
    """Allowed values for completion: the words of a choice, `true` and `false` of a boolean."""
    words: list[str] = []
    for annotation in (
        _fields(RunConfig, key) if key.split(".")[0] in RunConfig.model_fields else _fields(StudyConfig, key)
    ):
        inner = get_args(annotation) if get_origin(annotation) in (tuple, list) else (annotation,)
        for part in inner:
            if get_origin(part) is Literal:
                words += [str(word) for word in get_args(part)]
            elif part is bool:
                words += ["true", "false"]
    return list(dict.fromkeys(words))
