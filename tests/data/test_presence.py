"""Data that are not on this machine are named before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.config import RunConfig
from orchestrator.data.presence import check_presence
from orchestrator.errors import DataError
from orchestrator.study.plan import make_plan
from orchestrator.study.preflight import preflight
from tests.conftest import tiny_study


def _check(**data: object) -> None:
    check_presence(RunConfig.model_validate({"data": data}).data)


def test_missing_folders_and_tables_are_named_with_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "mine.csv").write_text("file\n")
    with pytest.raises(DataError, match=r"no folder .*picture. Did you mean 'pictures'"):
        _check(source="folder", root=str(tmp_path / "picture"))
    with pytest.raises(DataError, match=r"holds no attributes.csv. It holds 'mine.csv': data.table=mine.csv"):
        _check(source="folder", root=str(tmp_path / "pictures"))
    with pytest.raises(DataError, match=r"mine.csv. It is a file"):
        _check(source="questions", root=str(tmp_path / "pictures" / "mine.csv"))
    with pytest.raises(DataError, match=r"data.file: .* holds no q.jsonl"):
        _check(source="questions", root=str(tmp_path / "pictures"), file="q.jsonl")


def test_what_is_there_or_elsewhere_passes(tmp_path: Path) -> None:
    (tmp_path / "attributes.csv").write_text("file\n")
    _check(source="folder", root=str(tmp_path))
    _check(source="folder", root="s3://bucket/pictures")
    _check(source="questions", root=str(tmp_path), file="*.jsonl")
    _check(source="scenes")


@pytest.mark.parametrize(("source", "name"), [("folder", "attributes.csv"), ("questions", "questions.jsonl")])
def test_a_plan_lists_data_that_are_elsewhere_and_refuses_broken_ones(tmp_path: Path, source: str, name: str) -> None:
    root = tmp_path / "pictures"
    named = (f"data.source={source}", f"data.root={root}", f"data.{'table' if source == 'folder' else 'file'}={name}")
    sweep = tiny_study(tmp_path / "results", *(key for key in named), base={"model": {"name": "reference-joint"}})
    assert any(f"no folder {root}" in problem for problem in make_plan(sweep).problems)
    root.mkdir()
    (root / name).write_text("file;n\n" if source == "folder" else "[1, 2\n")
    with pytest.raises(DataError, match=name):
        make_plan(sweep)


def test_too_few_images_for_probes_are_refused_before_they_are_captured(tmp_path: Path) -> None:
    sweep = tiny_study(tmp_path, stages=["capture", "probe"])
    with pytest.raises(DataError, match=r"probes: 12 different images give 8 for training and 4 held out"):
        preflight(sweep, ["capture", "probe"])
    preflight(sweep, ["capture"])
    assert not (tmp_path / "capture").exists()
