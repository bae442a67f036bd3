"""Benches over a random model of every class, whose processor spells token ids."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from orchestrator.ablate.bench import Bench
from orchestrator.data.mixture import Example
from orchestrator.data.questions import Question
from orchestrator.models.random_models import FAMILIES, random_adapter, random_example

SIZES = (((1, 1), 6), ((2, 2), 4), ((1, 2), 9))


class Speller:
    """A stand-in for a processor: a token's text is its number."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [0] * len(text.split())}

    def batch_decode(self, ids: Any, skip_special_tokens: bool) -> list[str]:
        return [" ".join(str(i) for i in row) for row in ids.tolist()]


@cache
def spelling_adapter(family: str, size: tuple[int, int] | None) -> Any:
    adapter: Any = random_adapter(family)
    adapter.processor = Speller()
    inputs = [random_example(adapter, size or tiles, n, seed) for seed, (tiles, n) in enumerate(SIZES)]
    adapter.prepare = lambda _image, text: inputs[int(text)]
    return adapter


@pytest.fixture
def make_bench() -> Callable[..., Bench]:
    """`make_bench(family)`: three questions about images and of texts of different sizes, one size where given."""

    def make(family: str, batch_size: int = 3, size: tuple[int, int] | None = None, order: Any = (0, 1, 2)) -> Bench:
        asked = [Example(Question(f"q{i}", f"i{i}", "colour", "low", str(i), "1 1")) for i in order]
        return Bench(spelling_adapter(family, size), asked, batch_size)

    return make


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param
