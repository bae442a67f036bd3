"""Declared tables: documentation agrees, casts are safe, undeclared columns are refused."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from orchestrator.errors import DataError
from orchestrator.store.tables.core import TABLES, check_table, to_markdown

DOCS = Path(__file__).parents[1] / "docs" / "tables.md"


def test_the_documentation_lists_exactly_the_declared_columns() -> None:
    text = DOCS.read_text()
    written = text.split("<!-- columns -->\n")[1].split("<!-- /columns -->")[0]
    assert written == to_markdown()


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_the_declared_columns_passes(name: str) -> None:
    table = TABLES[name]
    frame = pl.DataFrame({c: [None] for c in table.columns})
    assert check_table(frame, name).columns == list(table.columns)
    assert set(table.key) <= set(table.columns)


def test_a_missing_column_is_named() -> None:
    with pytest.raises(DataError, match=r"deletion: columns \['method'\] are missing"):
        check_table(pl.DataFrame({c: [None] for c in TABLES["deletion"].columns if c != "method"}), "deletion")


def test_an_undeclared_column_is_refused_unless_the_table_is_open() -> None:
    row = {c: [None] for c in TABLES["patching"].columns}
    with pytest.raises(DataError, match="not declared"):
        check_table(pl.DataFrame({**row, "surprise": [1]}), "patching")
    images = {c: [None] for c in TABLES["images"].columns}
    assert "n_objects" in check_table(pl.DataFrame({**images, "n_objects": [3]}), "images").columns


def test_an_unknown_table_names_the_nearest() -> None:
    with pytest.raises(DataError, match="'layer_metrics'"):
        check_table(pl.DataFrame(), "layer_metric")
