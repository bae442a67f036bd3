"""The reference of settings: every key of the models is on the page, with what it takes and its default."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.config import RunConfig, StudyConfig
from orchestrator.config.overrides import dotted_keys
from orchestrator.config.reference import setting_rows, settings_page
from orchestrator.report.glossary import GLOSSARY
from orchestrator.stats.verdict import VERDICTS

ROOT = Path(__file__).parents[1]


def test_every_key_is_on_the_page() -> None:
    shown = {row["key"] for row in setting_rows()}
    sections = {"model", "data", "capture", "correlate", "probe", "finetune", "ablate", "how"}
    assert {*dotted_keys(StudyConfig), *dotted_keys(RunConfig)} - shown - sections == set()


@pytest.mark.parametrize(
    ("key", "takes", "default"),
    [
        ("finetune.complexity_ratio", "number, ≥ 0, ≤ 1", "0.5"),
        ("how.backend", "ray, local", "ray"),
        ("capture.keep_features", "true or false", "true"),
        ("name", "text", "required"),
    ],
)
def test_a_row_says_what_a_key_takes_and_its_default(key: str, takes: str, default: str) -> None:
    (row,) = [row for row in setting_rows() if row["key"] == key]
    assert (row["takes"], row["default"]) == (takes, default)


def test_no_row_of_the_page_breaks_its_table() -> None:
    for line in settings_page().splitlines():
        if line.startswith("| "):
            assert line.replace("\\|", "").count("|") == 5, line


def test_the_glossary_defines_every_verdict_once() -> None:
    words = [word for word, _ in GLOSSARY]
    assert set(VERDICTS) <= set(words)
    assert len(set(words)) == len(words)


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs the extra `docs`")
    pytest.importorskip("mkdocstrings", reason="needs the extra `docs`")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert found.returncode == 0, found.stderr
    assert "finetune.complexity_ratio" in (tmp_path / "site" / "settings.html").read_text()
    assert "capture_images" in (tmp_path / "site" / "api.html").read_text()
