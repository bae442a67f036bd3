"""Nullable values of a table may be absent: report, summaries, MLflow's record and the terminal show it so."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from orchestrator.cli.closing import outcome, print_outcome
from orchestrator.cli.status import print_status, study_status
from orchestrator.report.collect import gather_results
from orchestrator.report.hypotheses import hypothesis_table
from orchestrator.report.page import render_page
from orchestrator.report.shown_tables import lens_tables
from orchestrator.report.summaries import summarise
from orchestrator.store.stage_folder import Stage
from orchestrator.store.study_record import TABLE_STAGE, Study
from orchestrator.store.tables.core import TABLES, check_table
from orchestrator.study.resolve import resolve
from orchestrator.study.run import open_study
from orchestrator.tracking.content import artifacts, finite_metrics, text_params
from orchestrator.tracking.entries import study_entries
from tests.conftest import tiny_study
from tests.report.fake_study import fake_study
from tests.report.test_absent_values import assert_nothing_undefined

STAGES: list[Any] = ["capture", "correlate", "probe", "finetune", "ablate"]
WORDS = {
    "tap": ["decoder"], "group": ["vision", "text"], "tier": ["low", "high"], "family": ["count", "all"],
    "method": ["norm", "random"], "first": ["n_objects"], "second": ["coverage"], "attribute": ["n_objects"],
    "metric": ["gini"], "checkpoint": ["base"], "policy": ["fixed", "adaptive"], "statistic": ["spearman"],
    "difficulty": ["all"], "position": ["vision_mean"], "solver": ["ridge"],
}  # fmt: skip
FIXED = {"complexity_ratio", "seed", "deleted_share", "budget", "index", "width", "height", "n_tokens", "n_steps"}
"""Settings and counts: whoever writes a row knows them."""


def invented(name: str, n: int = 4) -> pl.DataFrame:
    """A table of the declared columns with some value in each."""
    columns: dict[str, pl.Series] = {}
    for k, (column, spec) in enumerate(TABLES[name].columns.items()):
        if spec.dtype == pl.String:
            values: list[Any] = [
                (WORDS.get(column) or [f"{column} a", f"{column} b"])[i % len(WORDS.get(column) or "ab")]
                for i in range(n)
            ]
        elif spec.dtype == pl.Boolean:
            values = [i == 0 for i in range(n)]
        elif spec.dtype == pl.Float64:
            values = [0.1 + 0.05 * (k % 5) + 0.1 * i for i in range(n)]
        else:
            values = [i + 1 for i in range(n)]
        columns[column] = pl.Series(column, values).cast(spec.dtype)
    if name.endswith("_metrics"):  # one column a metric
        columns["gini"] = pl.Series("gini", [0.1 + 0.1 * i for i in range(n)])
    return check_table(pl.DataFrame(columns), name)


def declared_nullable(name: str) -> set[str]:
    """Columns whose declaration says that they can be null, those of the key too."""
    return {c for c, spec in TABLES[name].columns.items() if "null" in spec.meaning}


def nullable(name: str, table: pl.DataFrame) -> list[str]:
    """Columns that may be absent: what is declared so, and all measured numbers."""
    known, said = {*TABLES[name].key, *FIXED}, declared_nullable(name)
    return [c for c, dtype in table.schema.items() if c in said or (dtype.is_float() and c not in known)]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A finished study whose stages hold invented numbers in every table."""
    sweep = tiny_study(
        tmp_path_factory.mktemp("results"),
        "correlate.n_bootstrap=0",
        stages=STAGES,
        axes={"finetune.complexity_ratio": [0.0, 1.0], "finetune.seed": [0, 1]},
    )
    points = resolve(sweep, STAGES)
    found = open_study(sweep, points, STAGES)
    drawn = fake_study(1).points[0]
    assert drawn.images is not None
    assert drawn.trials is not None
    tables = {name: getattr(drawn, name, None) for name in TABLE_STAGE}
    whole = {name: table if isinstance(table, pl.DataFrame) else invented(name) for name, table in tables.items()}
    for number, point in enumerate(points):
        for name in STAGES:
            stage = point.stages[name]
            if stage.is_done():
                continue
            mine = {table: frame for table, frame in whole.items() if TABLE_STAGE[table] == name}
            if name == "finetune":
                tune = point.run.finetune
                row = drawn.trials[number].with_columns(
                    trial=pl.lit(stage.digest), complexity_ratio=pl.lit(tune.complexity_ratio), seed=pl.lit(tune.seed)
                )
                mine["trials"] = check_table(row, "trials")
            stage.open({"n_images": 30, "shard_size": 30})
            stage.write_shard(0, mine)
            stage.mark_done({})
    return Study(found.storage, {**found.record, "text": "name: tiny"})  # the page shows settings, where YAML has nulls


def all_shown(study: Study, told: Callable[[], str]) -> None:
    """Everything that shows tables, from the study's files."""
    results = gather_results(study)
    assert_nothing_undefined(render_page(results))
    hypothesis_table(results.points).write_csv()
    for name in study.stages:
        for view in study.views(name):
            summary = summarise(name, view)
            assert all(math.isfinite(value) for value in summary.metrics.values())
    for entry in study_entries(study):
        content = entry.content()
        assert all(math.isfinite(value) for _, _, value in finite_metrics(content))
        assert not {"None", "nan"} & set(text_params(content).values())
        assert dict(artifacts(entry.run, content))
    told()
    print_outcome(study, "report.html")
    print_status(study_status(study))
    shown = told()
    assert not re.search(r"\b(?:nan|None|null|inf)\b", shown), shown
    outcome(study, "report.html")


def with_absent(columns: dict[str, list[str]], rows: list[bool]) -> Callable[[Stage, str], pl.LazyFrame]:
    """`Stage.scan` with the named columns null in some rows."""
    scan = Stage.scan

    def absent(stage: Stage, table: str) -> pl.LazyFrame:
        frame = scan(stage, table).collect()
        gone = pl.Series(np.resize(rows, frame.height))
        names = [c for c in columns.get(table, []) if c in frame.columns]
        return frame.with_columns(pl.when(gone).then(None).otherwise(pl.col(c)).alias(c) for c in names).lazy()

    return absent


def choices(study: Study) -> dict[str, list[str]]:
    return {
        name: columns
        for name, stage in TABLE_STAGE.items()
        if (columns := nullable(name, study.views(stage)[0].stage.scan(name).collect()))
    }


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    return lambda: capsys.readouterr().out


def test_everything_is_shown_where_nothing_is_absent(study: Study, told: Callable[[], str]) -> None:
    assert len(choices(study)) > 15
    all_shown(study, told)


def test_every_table_and_every_nullable_column_is_drawn(study: Study) -> None:
    drawn = choices(study)
    measured = {name for name in TABLE_STAGE if any(c.dtype == pl.Float64 for c in TABLES[name].columns.values())}
    assert {name for name in TABLE_STAGE if name not in drawn} == {"rejected", "trial_rejected", "ablate_rejected"}
    assert set(drawn) >= measured | {name for name in TABLE_STAGE if declared_nullable(name)}
    for name, columns in drawn.items():
        assert set(columns) >= declared_nullable(name)


def test_all_values_of_all_tables_may_be_absent(
    study: Study, told: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stage, "scan", with_absent(choices(study), [True]))
    all_shown(study, told)


def test_any_columns_of_any_tables_may_be_absent_in_any_rows(
    study: Study, told: Callable[[], str], request: pytest.FixtureRequest
) -> None:
    known = choices(study)
    columns = [(table, column) for table, names in known.items() for column in names]

    @settings(
        max_examples=max(1, request.config.getoption("--fuzz") // 12),
        deadline=None,
        database=None,
        phases=[Phase.generate],  # shrinking takes minutes
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(st.booleans(), min_size=len(columns), max_size=len(columns)), st.lists(st.booleans(), min_size=1))
    def holds(chosen: list[bool], rows: list[bool]) -> None:
        absent: dict[str, list[str]] = {}
        for (table, column), gone in zip(columns, chosen, strict=True):
            if gone:
                absent.setdefault(table, []).append(column)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Stage, "scan", with_absent(absent, rows))
            all_shown(study, told)

    holds()


def test_the_table_of_lenses_takes_absent_values() -> None:
    whole = invented("lens_layers")
    names = nullable("lens_layers", whole)
    absent = whole.with_columns(pl.lit(None, whole.schema[name]).alias(name) for name in names)
    point = replace(fake_study(1).points[0], further={"lens_layers": absent})
    (table,) = lens_tables([point])
    assert {"n/a"} == {cell for row in table.rows for cell in (row[3], *row[5:7])}
