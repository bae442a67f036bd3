"""Documentation that is run."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest

from tests.file_tree import replaced

ROOT = Path(__file__).parents[1]


def python_blocks(name: str) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs" / name).read_text(), flags=re.DOTALL))


def test_the_api_examples_run_in_order(tmp_path: Path) -> None:
    exec(compile(python_blocks("api.md"), "docs/api.md", "exec"), {"storage": str(tmp_path), "pl": pl})


@pytest.mark.parametrize("path", [p.relative_to(ROOT) for p in sorted(ROOT.glob("docs/*.md"))] + [Path("README.md")])
def test_relative_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / path).read_text()):
        if not re.match(r"[a-z]+:", target):
            assert ((ROOT / path).parent / target).exists(), f"{path}: {target}"


def test_the_readme_lists_every_module_with_its_phrase() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == replaced(readme), "run `python -m tests.file_tree`"
