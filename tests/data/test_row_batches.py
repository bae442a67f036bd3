"""Rows are checked a batch at a time: what becomes of a record does not depend on its neighbours, nor on the reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config import QuestionsConfig
from orchestrator.data.files import records, table
from orchestrator.data.files.rows import RowMaker
from orchestrator.data.files.source import QuestionSource
from orchestrator.errors import DataError

TEXTS = st.sampled_from(["", " ", "a", " a ", "yes", "no", "../x", "b.mp4", "7", "0.5", "é\x1c", "low"])
VALUES = st.one_of(
    TEXTS,
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([0.5, 1.0, float("inf"), float("nan"), 2**70]),
    st.lists(TEXTS, max_size=3),
    st.lists(st.integers(0, 9), min_size=2, max_size=4),
    st.dictionaries(TEXTS, st.integers(), max_size=1),
)
FIELDS = "id image images question answer choices box point family tier complexity group split n video weather"
NAMES = st.sampled_from(FIELDS.split())
RECORDS = st.one_of(
    st.dictionaries(NAMES, VALUES, max_size=9),
    st.dictionaries(NAMES, VALUES, max_size=4).map(lambda found: {"question": "what ?", "answer": "yes", **found}),
    st.sampled_from([None, [], "text", 3]),
)


@settings(max_examples=150)
@given(st.lists(RECORDS, min_size=1, max_size=6))
def test_a_row_does_not_depend_on_its_neighbours(batch: list[Any]) -> None:
    make = RowMaker()
    together = make(batch, 10)
    for i, record in enumerate(batch):
        alone = make([record], 10 + i)
        assert together.reasons.get(i) == alone.reasons.get(0)
        if i not in together.reasons:
            assert {key: repr(v[i]) for key, v in together.fields.items()} == {
                key: repr(v[0]) for key, v in alone.fields.items()
            }
            free = {key: repr(v[i]) for key, v in together.attributes.items() if v[i] is not None}
            assert free == {key: repr(v[0]) for key, v in alone.attributes.items() if v[0] is not None}


def write(root: Path, n: int = 70) -> list[dict[str, Any]]:
    root.mkdir()
    rows: list[dict[str, Any]] = []
    for i in range(n):
        row: dict[str, Any] = {"id": f"q{i}", "question": "what ?", "answer": "yes" if i % 3 else ["yes", "no"]}
        row |= {"n": i, "x": i / 7 if i % 5 else None, "word": f"w{i % 4}"} if i % 11 else {"x": "NA", "question": ""}
        rows.append(row)
    (root / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def open_rows(root: Path, monkeypatch: pytest.MonkeyPatch, cache: str, file: str = "q.jsonl") -> QuestionSource:
    monkeypatch.setenv("VTSWEEP_CACHE", str(root / cache))
    return QuestionSource(QuestionsConfig(root=str(root), file=(file,), max_rejected_fraction=0.2))


def test_the_table_does_not_depend_on_the_size_of_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "d")
    whole = open_rows(tmp_path / "d", monkeypatch, "a")
    monkeypatch.setattr(table, "BATCH", 9)
    parts = open_rows(tmp_path / "d", monkeypatch, "b")
    names = [name for name in table.SCHEMA.names if name not in ("numbers", "row")]
    assert whole.columns(*names).equals(parts.columns(*names))
    assert whole.attribute_kinds == parts.attribute_kinds == {
        "family": "categorical", "x": "continuous", "n": "count", "word": "categorical"
    }  # fmt: skip
    for key in ("n", "x"):
        assert pl.Series(whole.numbers(key)).equals(pl.Series(parts.numbers(key)), null_equal=True)
    assert [whole.attributes(i) for i in range(70)] == [parts.attributes(i) for i in range(70)]


@pytest.mark.parametrize("shape", ["list", "object"])
def test_a_large_document_is_read_member_by_member_as_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str
) -> None:
    rows = write(tmp_path / "d")
    document: Any = rows if shape == "list" else {"info": {"a": [1]}, "questions": rows, "version": "1"}
    (tmp_path / "d" / "q.json").write_text(json.dumps(document, indent=1))
    small = open_rows(tmp_path / "d", monkeypatch, "a", "q.json")
    monkeypatch.setattr(records, "WHOLE_BYTES", 100)
    monkeypatch.setattr(records, "_parsed", None)
    large = open_rows(tmp_path / "d", monkeypatch, "b", "q.json")
    assert large.columns("id", "row", "reason").equals(small.columns("id", "row", "reason"))
    assert large.attribute_kinds == small.attribute_kinds


@pytest.mark.parametrize("whole_bytes", [0, 2**20])
def test_documents_without_one_list_of_records_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_bytes: int
) -> None:
    monkeypatch.setattr(records, "WHOLE_BYTES", whole_bytes)
    fs, path = fsspec.filesystem("file"), str(tmp_path / "q.json")

    def read(text: str, **options: Any) -> list[Any]:
        (tmp_path / "q.json").write_text(text)
        return list(records.json_members(fs, path, "q.json", **options))

    assert read('{"a": [1, {"b": [2]}], "c": {"d": [3]}}') == [1, {"b": [2]}]
    assert read('{"a": [1], "b": [2.5]}', key="b") == [2.5]
    for text in ('{"a": [1], "b": []}', '{"a": 1}', "3"):
        with pytest.raises(DataError, match=r"q\.json: expected a list of records"):
            read(text)
    with pytest.raises(DataError, match=r"expected a list 'annotation'.*Did you mean 'annotations'"):
        read('{"annotations": []}', key="annotation")
    with pytest.raises(DataError, match=r"q\.json: broken JSON"):
        read('{"a": [1, }')
    (tmp_path / "q.json").write_text('{"x": {"n": 1}, "y": 2}')
    assert list(records.json_pairs(fs, path, "q.json")) == [("x", {"n": 1}), ("y", 2)]
    (tmp_path / "q.json").write_text("[1]")
    with pytest.raises(DataError, match="expected an object"):
        list(records.json_pairs(fs, path, "q.json"))
