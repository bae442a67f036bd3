"""What import contracts (pyproject.toml) cannot say about the package's structure."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "orchestrator"
MAX_ENTRIES = 8
FACES = {"orchestrator", "orchestrator.config", "orchestrator.report.figures"}
"""Packages that hand on names of their modules."""


def module_file(module: str) -> Path | None:
    path = ROOT / module.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()), None)


def defined(body: list[ast.stmt]) -> Iterator[str]:
    """Names that a module's own statements bind, imports left out."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name))
        elif isinstance(node, ast.If | ast.Try):
            yield from defined(node.body + node.orelse)


def borrowed(file: Path) -> Iterator[str]:
    """Names that a file takes from a module which has them from elsewhere."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "orchestrator"):
            continue
        home = module_file(node.module)
        if home is None or node.module in FACES:
            continue
        names = set(defined(ast.parse(home.read_text(encoding="utf-8")).body))
        for alias in node.names:
            if alias.name not in names and module_file(f"{node.module}.{alias.name}") is None:
                yield f"{file.relative_to(ROOT)}:{node.lineno}: {alias.name} is not defined in {node.module}"


@pytest.mark.parametrize("folder", ["orchestrator", "tests", "benchmarks", "jobs"])
def test_every_name_is_imported_from_the_one_module_that_defines_it(folder: str) -> None:
    assert [line for file in sorted((ROOT / folder).rglob("*.py")) for line in borrowed(file)] == []


def test_a_borrowed_name_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "module.py"
    file.write_text("from orchestrator.store.stage_folder import Stage, Storage\n")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "orchestrator" / "store").mkdir(parents=True)
    (tmp_path / "orchestrator" / "store" / "stage_folder.py").write_text("import x\nclass Stage: ...\n")
    assert [line.split()[1] for line in borrowed(file)] == ["Storage"]


def test_the_top_of_the_package_holds_folders_and_few_modules() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= MAX_ENTRIES


def test_importing_the_package_replaces_no_class_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, types, orchestrator, orchestrator.capture\n"
        "assert all(type(m) is types.ModuleType for n, m in sys.modules.items() if n.split('.')[0] == 'orchestrator')\n"
        "heavy = {'torch', 'ray', 'mlflow', 'polars', 'scipy', 'matplotlib', 'pydantic'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_status_loads_neither_the_report_nor_science() -> None:
    code = (
        "import sys, orchestrator.cli.status\n"
        "heavy = {'torch', 'ray', 'mlflow', 'scipy', 'matplotlib', 'orchestrator.report'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
