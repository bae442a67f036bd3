"""Right inputs, altered: values of a tree put in another's place, spans of a text cut, doubled or overwritten."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

from hypothesis import strategies as st

NASTY: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7.5, -0.0, 1e-300, 1e308, float("inf"), float("-inf"), float("nan"),
    10**9, 10**18, 10**30, -(10**30), "", " ", "a", "0", "1", "NaN", "1e999", "../../x", "/etc/passwd", "a\x00b",
    "\ud800", "é" * 300, "x" * 3000, "%s{0}{{", "null", [], {}, [[]], [None], {"": None}, [1, [2, [3, [4]]]],
    ["a"] * 50, {"a": {"a": {"a": {}}}}, [float("nan")] * 4, [1e308] * 4, [True] * 4, ["1"] * 4, list(range(100)),
)  # fmt: skip
SPANS = (
    b"", b"NaN", b"Infinity", b"-1", b"1e999", b"0" * 400, b"9" * 40, b"null", b"true", b"[" * 3000, b"{", b"}", b"]",
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\\ud800", b'"', b"'", b",", b":", b"\n", b"\r", b"\t", b"- ", b"&a [*a]",
    b"*a", b"<<: ", b"!!python/object/apply:os.system [ls]", b"!!binary x", b"..", b"a;b;c", b"x" * 5000,
)  # fmt: skip


def places(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values of a tree, its own first."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [at, *(place for key, value in inner for place in places(value, (*at, key)))]


@st.composite
def trees(draw: st.DrawFn, tree: Any, most: int = 3) -> Any:
    """`tree` with up to `most` values replaced, removed, doubled, or swapped with another's."""
    made = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, most))):
        place = draw(st.sampled_from(places(made)))
        if not place:
            continue
        parent = made
        for key in place[:-1]:
            parent = parent[key]
        key = place[-1]
        match draw(st.sampled_from(["replace", "replace", "replace", "remove", "double", "rename", "swap"])):
            case "replace":
                parent[key] = copy.deepcopy(draw(st.sampled_from(NASTY)))
            case "remove":
                del parent[key]
            case "double" if isinstance(parent, list):
                parent.append(copy.deepcopy(parent[key]))
            case "rename" if isinstance(parent, dict):
                parent[draw(st.sampled_from(["", "id", "x" * 200, "\ud800", "name", "__class__"]))] = parent.pop(key)
            case "swap":
                other = made
                for one in draw(st.sampled_from(places(made))):
                    other = other[one]
                parent[key] = copy.deepcopy(other)
    return made


@st.composite
def texts(draw: st.DrawFn, text: bytes, most: int = 3) -> bytes:
    """`text` with up to `most` spans overwritten, cut or doubled."""
    made = bytearray(text)
    for _ in range(draw(st.integers(1, most))):
        start = draw(st.integers(0, len(made)))
        end = min(len(made), start + draw(st.sampled_from([0, 1, 2, 5, 20, 200, 10**6])))
        span = draw(st.sampled_from(SPANS) | st.binary(max_size=6) | st.just(bytes(made[start:end]) * 2))
        made[start:end] = span
    return bytes(made)


def as_json(tree: Any) -> bytes:
    """As a careless program writes it: NaN and Infinity by name, half surrogates as escapes."""
    return json.dumps(tree).encode()


@st.composite
def documents(draw: st.DrawFn, tree: Any) -> bytes:
    """JSON of a tree, altered as a tree or as a text."""
    if draw(st.integers(0, 3)):
        return as_json(draw(trees(tree)))
    return draw(texts(as_json(tree)))


def all_finite(value: Any) -> bool:
    """Whether no number in plain values is infinite or NaN."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(all_finite(one) for one in value.values())
    if isinstance(value, list | tuple):
        return all(all_finite(one) for one in value)
    return True
