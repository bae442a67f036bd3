"""A study in this process's memory, as on any object store: every command that reads results reads them there."""

from __future__ import annotations

import json

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from orchestrator.cli import app
from orchestrator.study.run import run_study
from tests.conftest import tiny_study

PLACE = "memory://places/results"


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        app.main([*arguments, "--json"])
    assert ended.value.code == 0
    return json.loads(capsys.readouterr().out)


def test_every_command_works_on_a_store_without_folders(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.report.build.study_figures", lambda _: ())
    MemoryFileSystem.store.clear()
    sweep = tiny_study("memory://places/results", "track.enabled=false")  # type: ignore[arg-type]
    _, report = run_study(sweep, quiet=True)
    assert report == f"{PLACE}/studies/tiny/report/report.html"
    study = f"{PLACE}/studies/tiny"
    assert told(capsys, "report", study)["report"] == [report]
    assert {row["state"] for row in told(capsys, "status", study)["stages"]} == {"done"}
    found = told(capsys, "verify", study)
    assert not found["damaged"]
    assert all(row["shards"] for row in found["stages"])
    compared = told(capsys, "compare", study, study, "--out", f"{PLACE}/comparison")
    assert compared["report"] == f"{PLACE}/comparison/report.html"
    assert b"<html" in MemoryFileSystem().cat_file("/places/results/comparison/report.html")
    MemoryFileSystem.store.clear()
