"""Every test that docs/security.md names is there, and every row of its tables names one."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
NAMED = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)


def test_every_named_test_is_there() -> None:
    assert len(NAMED) > 25
    missing = [f"{file}::{name}" for file, name in NAMED if f"def {name}(" not in (ROOT / "tests" / file).read_text()]
    assert missing == []


def test_every_statement_names_a_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| st", "| pl"))]
    assert len(rows) > 20
    assert [row for row in rows if not re.search(r"`[\w/]+\.py::test_\w+` *(,|\|)", row)] == []
