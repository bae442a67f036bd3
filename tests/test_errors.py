"""What a message may be, whatever a user's file holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.config import FolderConfig
from orchestrator.data.source import make_source
from orchestrator.errors import MAX_MESSAGE, ConfigError, DataError


@pytest.mark.parametrize(
    "text", ["x" * 10**6, "word " * 10**5, "\ud800" * 10**5], ids=["a word", "many words", "half a pair"]
)
def test_a_message_is_of_bounded_length_and_keeps_its_beginning_and_its_end(text: str) -> None:
    message = str(ConfigError(f"file.yaml: found '{text}'; expected a number"))
    assert len(message) <= MAX_MESSAGE
    assert message.startswith("file.yaml: found '")
    assert message.endswith("'; expected a number")
    message.encode()


def test_a_short_message_is_what_was_written() -> None:
    path = "s3://bucket/" + "/".join("folder" * 5 for _ in range(8))
    assert str(ConfigError(f"{path}: no such file")) == f"{path}: no such file"


@pytest.mark.parametrize(
    "table", ["file,age\n1.png,1.5\n2.png,{}\n", "{}\n1.png\n"], ids=["a value", "a column's name"]
)
def test_a_table_with_a_very_long_word_is_refused_in_a_few_words(tmp_path: Path, table: str) -> None:
    (tmp_path / "attributes.csv").write_text(table.format("x" * 10_000))
    with pytest.raises(DataError, match=r"attributes\.csv") as refused:
        make_source(FolderConfig(root=str(tmp_path)))
    assert len(str(refused.value)) < 1500
