"""The tutorial notebook, executed from its first cell to its last; and what objects show in a notebook."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.timeout(280)
def test_the_tutorial_runs_from_pictures_to_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs the extra `test`")
    nbclient = pytest.importorskip("nbclient", reason="needs the extra `test`")
    pytest.importorskip("ipykernel", reason="needs the extra `test`")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(ROOT / "docs" / "tutorial.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    shown = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    pages = "".join(str(o["data"].get("text/html", "")) for o in shown if "data" in o)
    assert "compression by layer" in pages  # what was captured shows itself
    assert "my-pictures" in pages  # and so does the study
    assert any("image/png" in o["data"] for o in shown if "data" in o)  # study.figure()
    assert (tmp_path / "results" / "studies" / "my-pictures" / "report" / "report.html").is_file()
    assert all(cell.get("execution_count") is None for cell in nbformat.read(ROOT / "docs" / "tutorial.ipynb", 4).cells)
