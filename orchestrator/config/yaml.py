"""YAML as people mean it: `3e-4` is a number, a key twice is an error, and no small text becomes a large value."""

from __future__ import annotations

import re
from typing import Any

import yaml

MAX_CHARACTERS = 200_000
MAX_DEPTH = 40
MAX_ALIASES = 200
MAX_VALUES = 20_000
"""Values that a document may hold once its aliases are written out."""
MAX_DIGITS = 18
"""Of a whole number: what 64 bits hold."""


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._aliases = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            self._aliases += 1
            if self._aliases > MAX_ALIASES:
                raise _refused(f"more than {MAX_ALIASES} aliases", mark)
            node = super().compose_node(parent, index)
            if id(node) not in self._sizes:
                raise _refused("an alias stands inside what it stands for", mark)
            return node
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _refused(f"nested more than {MAX_DEPTH} deep", mark)
        try:
            node = super().compose_node(parent, index)
        finally:
            self._depth -= 1
        # Children are composed before their parent, so each alias adds the known size of what it stands for.
        children = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            children = [one for pair in node.value for one in pair]
        size = 1 + sum(self._sizes.get(id(child), 1) for child in children)
        if size > MAX_VALUES:
            raise _refused(f"more than {MAX_VALUES} values, aliases written out", mark)
        self._sizes[id(node)] = size
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Looked at here, where the text still is as written: later, merge keys (`<<`) have been copied in.
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise _refused(f"the key {key.value[:80]!r} stands twice", key.start_mark)
                seen.add((key.tag, key.value))
        return node

    def construct_yaml_int(self, node: Any) -> int:
        if sum(c.isalnum() for c in str(node.value)) > MAX_DIGITS:
            raise _refused(f"a whole number of more than {MAX_DIGITS} digits", node.start_mark)
        return super().construct_yaml_int(node)


def _refused(problem: str, mark: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
# YAML 1.1 takes a number with an exponent for text unless it has both a point and the exponent's sign.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def read_yaml(text: str) -> Any:
    """The one document in `text`, as plain Python values.

    Raises:
        yaml.YAMLError: it is not valid, a mapping has a key twice, or it is larger or deeper than a settings file can
            sensibly be, aliases written out.
    """
    if len(text) > MAX_CHARACTERS:
        raise yaml.YAMLError(f"{len(text)} characters, expected at most {MAX_CHARACTERS}")
    try:
        value = yaml.load(text, _Loader)
    except (ValueError, OverflowError, TypeError, RecursionError) as error:  # a date of month 13, an unhashable key
        raise yaml.YAMLError(f"{type(error).__name__}: {str(error)[:200]}") from error
    _check_text(value)
    return value


def _check_text(value: Any) -> None:
    """Refuse text that no file can hold: an escaped half of a surrogate pair."""
    if isinstance(value, str):
        if any("\ud800" <= c <= "\udfff" for c in value):
            raise yaml.YAMLError("a text holds half of a surrogate pair, which is no character")
    elif isinstance(value, dict):
        for key, one in value.items():
            _check_text(key)
            _check_text(one)
    elif isinstance(value, list):
        for one in value:
            _check_text(one)
