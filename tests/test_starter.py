"""The file that `vtsweep init` writes is a valid study."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from orchestrator.cli.init import write_starter
from orchestrator.config.sweep import load_sweep
from orchestrator.errors import ConfigError


@pytest.mark.parametrize(
    ("source", "root"),
    [
        ("scenes", None),
        ("coco", "/data/coco: 2017"),
        ("folder", "my images"),
        ("questions", "q"),
        ("gqa", "g"),
        ("pope", "p"),
    ],
)
def test_the_starter_file_expands(tmp_path: Path, source: str, root: str | None) -> None:
    path = write_starter(str(tmp_path / "mine.yaml"), "reference-joint", source, root)
    (point,) = load_sweep(path).points
    assert point.run.data.source == (source if source not in ("gqa", "pope") else "questions")
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


@pytest.mark.parametrize("name", ["größe.yaml", "my study.yaml", "1.yaml", "ж.yaml", "yes", "-x.yaml"])
def test_any_file_name_makes_a_valid_study_and_a_command_that_can_be_pasted(tmp_path: Path, name: str) -> None:
    file = str(tmp_path / name)
    path = write_starter(file, "reference-joint", "folder", "/tmp/my images: é")
    sweep = load_sweep(path)
    assert sweep.points[0].run.data.root == "/tmp/my images: é"  # type: ignore[union-attr]
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert shlex.split(first.removeprefix("# ")) == ["vtsweep", "run", file]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_starter(str(tmp_path / "file" / "mine.yaml"), "reference-joint", "scenes", None)


@pytest.mark.parametrize("named", ["root/mine.csv", "root"])
@pytest.mark.parametrize("source", ["folder", "questions"])
def test_the_table_is_found_where_it_is_named_or_the_only_one(tmp_path: Path, source: str, named: str) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "mine.csv").write_text("file,image,question,answer\n")
    write_starter(str(tmp_path / "s.yaml"), "reference-joint", source, str(tmp_path / named))
    data = load_sweep(str(tmp_path / "s.yaml")).points[0].run.data
    assert data.root == str(tmp_path / "root")
    assert "mine.csv" in (data.table if source == "folder" else data.file)
