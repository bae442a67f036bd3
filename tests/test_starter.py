"""The file that `vtsweep init` writes is a valid study."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.starter import write_starter
from orchestrator.sweep import load_sweep


@pytest.mark.parametrize(("source", "root"), [("scenes", None), ("coco", "/data/coco: 2017"), ("folder", "my images")])
def test_the_starter_file_expands(tmp_path: Path, source: str, root: str | None) -> None:
    path = write_starter(str(tmp_path / "mine.yaml"), "reference-joint", source, root)
    (point,) = load_sweep(path).points
    assert point.run.data.source == source
    assert getattr(point.run.data, "root", None) == root


def test_it_never_overwrites(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("precious")
    with pytest.raises(ConfigError, match="already"):
        write_starter(str(file), "reference-joint", "scenes", None)
    assert file.read_text() == "precious"


@pytest.mark.parametrize(
    ("model", "source", "root", "piece"),
    [
        ("reference-jint", "scenes", None, "reference-joint"),
        ("reference-joint", "cocoo", "x", "coco"),
        ("reference-joint", "coco", None, "--root"),
    ],
)
def test_bad_choices_are_named(tmp_path: Path, model: str, source: str, root: str | None, piece: str) -> None:
    with pytest.raises(Exception, match=piece):
        write_starter(str(tmp_path / "mine.yaml"), model, source, root)
