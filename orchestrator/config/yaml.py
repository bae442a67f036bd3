"""YAML loader: `3e-4` is a number, duplicate keys are errors, and alias expansion is bounded."""

from __future__ import annotations

import re
from typing import Any

import yaml

MAX_CHARACTERS = 200_000
MAX_DEPTH = 40
MAX_ALIASES = 200
MAX_VALUES = 20_000
"""Maximum number of values of a document after alias expansion."""
MAX_DIGITS = 18
"""Maximum digits of an integer: 64 bits."""


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
                raise _refused("an alias refers to a value that contains it", mark)
            return node
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _refused(f"nested deeper than {MAX_DEPTH}", mark)
        try:
            node = super().compose_node(parent, index)
        finally:
            self._depth -= 1
        # Children are composed before their parent, so that the size of an alias's target is known.
        children = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        size = 1 + sum(self._sizes.get(id(child), 1) for child in children)
        if size > MAX_VALUES:
            raise _refused(f"more than {MAX_VALUES} values after alias expansion", mark)
        self._sizes[id(node)] = size
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Checked here, on the document as written: later, merge keys (`<<`) have been expanded.
        node = super().compose_mapping_node(anchor)
        keys: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in keys:
                    raise _refused(f"duplicate key {key.value[:80]!r}", key.start_mark)
                keys.add((key.tag, key.value))
        return node

    def construct_yaml_int(self, node: Any) -> int:
        if sum(c.isalnum() for c in str(node.value)) > MAX_DIGITS:
            raise _refused(f"an integer of more than {MAX_DIGITS} digits", node.start_mark)
        return super().construct_yaml_int(node)


def _refused(problem: str, mark: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
# YAML 1.1 reads a number with an exponent as text unless it has both a point and a signed exponent.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def read_yaml(text: str) -> Any:
    """The one document in `text`, as plain Python values.

    Raises:
        yaml.YAMLError: it is not valid, a mapping has a duplicate key, or it exceeds the limits of size and depth after
            alias expansion.
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
    """Reject text that cannot be encoded: an escaped unpaired surrogate."""
    if isinstance(value, str):
        if any("\ud800" <= c <= "\udfff" for c in value):
            raise yaml.YAMLError("a text contains an unpaired surrogate, which is not a character")
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_text(key)
            _check_text(item)
    elif isinstance(value, list):
        for item in value:
            _check_text(item)
