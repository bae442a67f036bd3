"""Documentation that is run."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest

from tests.file_tree import PAGE, replaced

ROOT = Path(__file__).parents[1]


def python_blocks(name: str) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs" / name).read_text(), flags=re.DOTALL))


def test_the_api_examples_run_in_order(tmp_path: Path) -> None:
    exec(compile(python_blocks("api.md"), "docs/api.md", "exec"), {"storage": str(tmp_path), "pl": pl})


@pytest.mark.parametrize("path", [p.relative_to(ROOT) for p in sorted(ROOT.glob("docs/*.md"))] + [Path("README.md")])
def test_relative_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / path).read_text()):
        made = path.parent.name == "docs" and target in ("settings.md", "glossary.md")  # docs/hooks.py makes them
        if not re.match(r"[a-z]+:", target) and not made:
            assert ((ROOT / path).parent / target).exists(), f"{path}: {target}"


def test_the_development_page_lists_every_module_with_its_phrase() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == replaced(page), "run `python -m tests.file_tree`"
