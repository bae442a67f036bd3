"""docs/metrics.md is the registry's own text, and the pictures say what they show."""

from pathlib import Path

import numpy as np
import pytest

from orchestrator.compression import document
from orchestrator.compression.entries import BASES
from orchestrator.compression.pictures import draw, token_sets, value
from orchestrator.compression.registry import ALIGNMENTS, METRICS
from tests.compression import oracle

ROOT = Path(__file__).parents[2]


def test_page_is_up_to_date() -> None:
    assert (ROOT / document.PAGE).read_text(encoding="utf-8") == document.page(), (
        "run python -m orchestrator.compression.document"
    )


def test_every_metric_has_its_section_and_its_picture() -> None:
    text = document.page()
    for name in BASES:
        assert f"### `{name}`" in text
        assert (ROOT / document.PICTURES / f"metrics_{name}.png").is_file()


def test_worked_example_is_right() -> None:
    names = [n for n in METRICS if not METRICS[n].trimmed and n not in ALIGNMENTS and METRICS[n].needs != "estimate"]
    for name, got in document.example_values(names).items():
        assert got == pytest.approx(oracle.metric(name, document.EXAMPLE), rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("name", BASES)
def test_pictures_show_sets_that_differ_as_the_direction_says(name: str) -> None:
    spread, compressed = token_sets(METRICS[name].family).values()
    assert METRICS[name].direction * (value(name, compressed) - value(name, spread)) > 0


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    draw("gini", tmp_path / "gini.png")
    assert (tmp_path / "gini.png").stat().st_size > 1000
    assert np.isfinite(value("gini", token_sets("norm")["spread"]))
