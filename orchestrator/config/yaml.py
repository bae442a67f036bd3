"""YAML as people mean it: `3e-4` is a number, and a key that stands twice in a mapping is an error."""

from __future__ import annotations

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Looked at here, where the text still is as written: later, merge keys (`<<`) have been copied in.
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} stands twice", key.start_mark
                    )
                seen.add((key.tag, key.value))
        return node


# YAML 1.1 takes a number with an exponent for text unless it has both a point and the exponent's sign.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def read_yaml(text: str) -> Any:
    """The one document in `text`, as plain Python values.

    Raises:
        yaml.YAMLError: it is not valid, or a mapping has a key twice.
    """
    return yaml.load(text, _Loader)
