"""A value that is absent is drawn and told as absent, in every table, wherever tables are shown."""

from __future__ import annotations

import re
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.report.build import point_figures, study_figures
from orchestrator.report.model import PointResults, StudyResults
from orchestrator.report.page import render_page
from orchestrator.store.tables.core import TABLES
from tests.report.fake_study import fake_study

STUDY = fake_study(1)
POINT = STUDY.points[0]
READING = ("routes", "replacing", "lens", "attention")
DRAWN = (
    *("layer_metrics", "correlations", "probes", "trials", "deletion", "rivals", "knockout", *READING, "patching"),
    "findings",
)


def nullable(table: str) -> list[str]:
    """Columns of the invented table whose value may be absent: every number that is no key, count or setting."""
    frame: pl.DataFrame = getattr(POINT, table)
    key = set(TABLES[table].key) if table in TABLES else set()
    fixed = key | {"complexity_ratio", "n", "n_trials", "holds", "n_tokens"}
    return [c for c, dtype in frame.schema.items() if dtype.is_float() and c not in fixed]


def with_nulls(table: str, columns: list[str], rows: np.ndarray) -> PointResults:
    frame: pl.DataFrame = getattr(POINT, table)
    absent = pl.Series(rows[np.arange(frame.height) % len(rows)])
    changed = frame.with_columns(pl.when(absent).then(None).otherwise(pl.col(c)).alias(c) for c in columns)
    return replace(POINT, **{table: changed})


def study_of(point: PointResults) -> StudyResults:
    return replace(STUDY, points=(point,))


def assert_nothing_undefined(page: str) -> None:
    """No undefined value is told in the words and tables (scripts left out)."""
    told = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    assert not re.search(r"\b(?:nan|NaN|None|null|inf)\b", re.sub(r"<[^>]+>", " ", told))


@pytest.mark.parametrize("table", DRAWN)
def test_page_and_figures_take_a_table_without_any_value(table):
    point = with_nulls(table, nullable(table), np.array([True]))
    page = render_page(study_of(point))
    assert_nothing_undefined(page)
    before = {name for name, _ in point_figures(POINT)}
    for name, draw in study_figures(study_of(point)):
        if table in {"trials"} or name.split("/")[-1] in before:
            figure = draw()
            plt.close(figure)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_the_page_takes_any_column_absent_in_any_rows(data):
    table = data.draw(st.sampled_from(DRAWN))
    columns = data.draw(st.lists(st.sampled_from(nullable(table) or ["?"]), unique=True, max_size=4))
    rows = np.array(data.draw(st.lists(st.booleans(), min_size=1, max_size=7)))
    point = with_nulls(table, [c for c in columns if c != "?"], rows)
    assert_nothing_undefined(render_page(study_of(point)))
