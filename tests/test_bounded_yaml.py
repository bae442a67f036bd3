"""No small text becomes a large value, a long wait or a traceback."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.config.sweep import load_sweep, make_sweep
from orchestrator.config.yaml import MAX_DEPTH, read_yaml
from orchestrator.errors import ConfigError, did_you_mean

BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 20)
)
HOSTILE = {
    "aliases that multiply": BOMB,
    "many aliases": "a: &a x\nb: [" + ",".join(["*a"] * 500) + "]",
    "an alias inside itself": "a: &a [*a]",
    "depth": "[" * 5000,
    "depth of mappings": "".join(f"{' ' * i}a:\n" for i in range(300)),
    "length": "# " + "x" * 300_000,
    "a whole number": "a: 1" + "0" * 400,
    "a hexadecimal number": "a: 0x" + "f" * 400,
    "half a surrogate pair": 'a: "\\ud800"',
    "month 13": "a: 2026-13-41",
    "an unhashable key": "? [a]\n: b",
    "code": "!!python/object/apply:os.system [ls]",
    "a control character": "a: \x00",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_text_is_refused_quickly_and_in_few_words(name: str, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(HOSTILE[name])
    started = time.process_time()
    with pytest.raises(ConfigError) as refused:
        load_sweep(file)
    assert time.process_time() - started < 5
    assert len(str(refused.value)) < 1000


def test_what_settings_need_is_read() -> None:
    text = "base: &b {rate: 3e-4, n: 9_000, list: [1, [2]]}\nother: {<<: *b, seed: -1}\ntimes: 12:30:45"
    found = read_yaml(text)
    assert found["other"] == {"rate": 3e-4, "n": 9000, "list": [1, [2]], "seed": -1}
    assert read_yaml("[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1))


def test_axes_that_make_a_million_points_are_refused_before_any_is_made() -> None:
    axes = {f"data.{key}": list(range(1, 101)) for key in ("n_images", "seed", "width", "height")}
    with pytest.raises(ConfigError, match="100000000 points"):
        make_sweep({"name": "x", "axes": axes})


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(
    ["name", "storage", "stages", "base", "axes", "zip", "search", "track", "base.data", "base.model"]
)


@given(tree=st.dictionaries(keys, values, max_size=4))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_a_sweep_holds_it_is_read_or_refused(tree: dict) -> None:
    raw: dict = {"name": "x"}
    for key, value in tree.items():
        section, _, inner = key.partition(".")
        raw[section] = {inner: value} if inner else value
    try:
        make_sweep(raw)
    except ConfigError as error:
        assert len(str(error)) < 5000  # noqa: PT017


@given(text=st.text(alphabet="ab: -[]{}&*!?|>'\"%@`#,\n\t0e.~<\\", max_size=80))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_text_is_yaml_or_a_yaml_error(text: str) -> None:
    try:
        read_yaml(text)
    except yaml.YAMLError as error:
        assert len(str(error)) < 2000  # noqa: PT017


def test_a_message_names_a_few_of_many_problems_and_the_head_of_long_names() -> None:
    with pytest.raises(ConfigError) as refused:
        make_sweep({"name": "x", "base": {"capture": {"metrics": list(range(500))}}})
    assert re.search(r"and 48\d more$", str(refused.value))
    with pytest.raises(ConfigError) as refused:
        make_sweep({"name": "x", "base": {"capture": {"y" * 5000: 1}}})
    assert len(str(refused.value)) < 12_000
    assert len(did_you_mean("question", ["x" * 5000, "y"])) < 200
