"""Digests, atomic writes, and what counts as a finished shard."""

from __future__ import annotations

import errno
import pickle
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import DamagedError, StorageError
from orchestrator.store.filesystem import Storage
from orchestrator.store.load_stage import load_stage
from orchestrator.store.stage_folder import Stage, canonical_json, digest
from orchestrator.study.preflight import check_storage

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, min_size=2, max_size=5))
def test_digest_ignores_key_order(value: dict) -> None:
    backwards = dict(reversed(list(value.items())))
    assert digest(value) == digest(backwards)
    assert len(digest(value)) == 16


@given(JSON, JSON)
def test_digest_differs_when_content_differs(a: object, b: object) -> None:
    assert (digest(a) == digest(b)) == (canonical_json(a) == canonical_json(b))


def make_stage(root: Path, **what: object) -> Stage:
    return Stage(Storage(str(root)), "capture", {"seed": 1, **what})


def shard_table(n: int = 3) -> dict[str, pl.DataFrame]:
    return {"images": pl.DataFrame({"image_id": [f"i{k}" for k in range(n)]})}


def test_a_changed_what_never_shares_a_folder(tmp_path: Path) -> None:
    assert make_stage(tmp_path).folder != make_stage(tmp_path, seed=2).folder


def test_inputs_are_part_of_the_digest(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    assert (
        Stage(storage, "correlate", {}, {"capture": "a"}).digest
        != Stage(storage, "correlate", {}, {"capture": "b"}).digest
    )


def test_resume_keeps_the_first_plan(tmp_path: Path) -> None:
    assert make_stage(tmp_path).open({"shard_size": 8}) == {"shard_size": 8}
    assert make_stage(tmp_path).open({"shard_size": 64}) == {"shard_size": 8}


def test_a_written_shard_is_found_whole(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    array = np.arange(24, dtype=np.float16).reshape(3, 2, 4)
    stage.write_shard(2, shard_table(), {"features/decoder": array}, {"note": "x"})
    assert list(stage.finished_shards()) == [2]
    assert stage.finished_shards()[2]["extra"] == {"note": "x"}
    np.testing.assert_array_equal(stage.arrays("features/decoder")[0], array)
    assert stage.scan("images").collect().height == 3


@pytest.mark.parametrize("victim", ["images/00000.parquet", "features/00000.npy", "shards/00000.json"])
def test_a_truncated_file_is_not_taken_for_whole(tmp_path: Path, victim: str) -> None:
    stage = make_stage(tmp_path)
    stage.write_shard(0, shard_table(), {"features": np.zeros((3, 5), np.float16)})
    assert 0 in stage.finished_shards()
    path = Path(stage.store.path(victim))
    path.write_bytes(path.read_bytes()[:-7])
    assert stage.finished_shards() == {}


def test_a_missing_file_is_not_taken_for_whole(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    stage.write_shard(0, shard_table())
    Path(stage.store.path("images/00000.parquet")).unlink()
    assert stage.finished_shards() == {}


def test_writing_a_shard_twice_changes_nothing(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    stage.write_shard(0, shard_table())
    stage.write_shard(0, shard_table())
    assert stage.scan("images").collect().height == 3


def test_a_full_disk_leaves_nothing_behind_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(str(tmp_path))
    storage.write("kept", b"1")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="no space left"):
        storage.write("lost", b"x" * 100)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DamagedError, match=r"Python objects|allow_pickle"):
        storage.read_array("evil.npy")


def test_storage_survives_pickling_to_a_worker(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write("a/b.txt", b"hello")
    assert pickle.loads(pickle.dumps(storage)).read("a/b.txt") == b"hello"


def test_a_stage_is_loaded_from_its_files_alone(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    stage.open()
    stage.mark_done({"n": 3})
    again = load_stage(Storage(str(tmp_path)), "capture", stage.digest)
    assert again.is_done()
    assert again.summary() == {"n": 3}
    with pytest.raises(StorageError, match="no stage"):
        load_stage(Storage(str(tmp_path)), "capture", "0" * 16)


def test_an_altered_stage_record_is_refused(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    stage.open()
    path = Path(stage.store.path("stage.json"))
    path.write_text(path.read_text().replace('"seed": 1', '"seed": 7'))
    with pytest.raises(StorageError, match="altered"):
        load_stage(Storage(str(tmp_path)), "capture", stage.digest)


def test_tables_are_read_through_any_fsspec_filesystem() -> None:
    storage = Storage("memory://vtsweep-test-layout")
    stage = Stage(storage, "capture", {"seed": 1})
    stage.write_shard(0, shard_table(2), {"f": np.ones((2, 2), np.float16)})
    stage.write_shard(1, shard_table(3))
    assert stage.scan("images").collect().height == 5
    assert stage.arrays("f")[0].shape == (2, 2)
    assert list(stage.finished_shards()) == [0, 1]


def test_two_runs_that_begin_a_stage_at_once_follow_one_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Storage, "exists", lambda *_: False)  # each looks before the other has written
    assert make_stage(tmp_path).open({"shard_size": 8}) == {"shard_size": 8}
    assert make_stage(tmp_path).open({"shard_size": 64}) == {"shard_size": 8}


@pytest.mark.parametrize("text", ['{"stage": "cap', "{}", "[]", ""])
def test_a_damaged_stage_record_is_named_with_what_to_do(tmp_path: Path, text: str) -> None:
    stage = make_stage(tmp_path)
    stage.open({"shard_size": 8})
    Path(stage.store.path("stage.json")).write_text(text)
    with pytest.raises(StorageError, match="remove the folder"):
        stage.open({"shard_size": 8})
    with pytest.raises(StorageError, match="damaged"):
        load_stage(stage.storage, "capture", stage.digest)


def test_files_without_a_record_and_copies_made_by_hand_are_not_read(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    for shard in range(3):
        stage.write_shard(shard, shard_table(), {"f": np.full((3, 2), shard)})
    Path(stage.store.path("shards/00001.json")).unlink()  # as if killed before the record was written
    shutil.copy(stage.store.path("images/00000.parquet"), stage.store.path("images/00000 (copy).parquet"))
    stage.store.write("shards/notes.json", b"{}")
    assert stage.written_shards() == [0, 2]
    assert stage.scan("images").collect().height == 6
    assert [int(array[0, 0]) for array in stage.arrays("f")] == [0, 2]


def test_a_file_that_another_process_deleted_first_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Storage.write

    def write_and_lose(self: Storage, name: str, data: bytes) -> None:
        write(self, name, data)
        Path(self.path(name)).unlink()

    monkeypatch.setattr(Storage, "write", write_and_lose)
    check_storage(Storage(str(tmp_path)))


def test_shards_past_five_digits_keep_their_order(tmp_path: Path) -> None:
    stage = Stage(Storage(str(tmp_path)), "capture", {"seed": 1})
    for shard in (100_000, 99_999, 7):
        stage.write_shard(shard, {"t": pl.DataFrame({"shard": [shard]})}, {"a": np.array([shard])})
    assert stage.scan("t").collect()["shard"].to_list() == [7, 99_999, 100_000]
    assert [int(array[0]) for array in stage.arrays("a")] == [7, 99_999, 100_000]
    assert list(stage.finished_shards()) == [7, 99_999, 100_000]
