"""Results on an object store: a real S3 protocol server in this process's stead of Amazon's."""

import json
import threading

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from orchestrator.config import FolderConfig, QuestionsConfig
from orchestrator.data.source import make_source
from orchestrator.errors import DataError, StorageError
from orchestrator.store.filesystem import Storage, checksum, encode_json
from orchestrator.store.load_stage import load_stage
from orchestrator.store.stage_folder import Stage
from tests.data.own_files import write_own_questions


@pytest.fixture
def storage(s3_server) -> Storage:
    return Storage(f"{s3_server.bucket()}/results")


def write(stage: Stage, shard: int) -> None:
    images = pl.DataFrame({"image_id": [f"{shard}-{k}" for k in range(3)], "n": [shard, 1, 2]})
    stage.write_shard(shard, {"images": images}, {"features/decoder": np.full((3, 2), shard, np.float16)})


def test_a_stage_on_s3_reads_back_as_on_a_disk(storage, tmp_path):
    remote, local = (Stage(one, "capture", {"seed": 1}) for one in (storage, Storage(str(tmp_path))))
    for stage in (remote, local):
        assert not stage.is_done()
        assert stage.open({"shard_size": 3}) == {"shard_size": 3}
        for shard in range(3):
            write(stage, shard)
        stage.mark_done({"n": 9})
    assert remote.is_done()
    assert remote.digest == local.digest
    assert remote.finished_shards() == local.finished_shards()
    assert_frame_equal(remote.scan("images").collect(), local.scan("images").collect())
    for one, two in zip(remote.arrays("features/decoder"), local.arrays("features/decoder"), strict=True):
        np.testing.assert_array_equal(one, two)
    assert load_stage(storage, "capture", remote.digest).summary() == {"n": 9}


def test_what_another_process_wrote_is_seen_at_once(storage):
    stage = Stage(storage, "capture", {"seed": 2})
    assert stage.finished_shards() == {}
    assert not stage.is_done()
    import s3fs

    other = s3fs.S3FileSystem(skip_instance_cache=True)
    root = stage.store.path("").removeprefix("s3://")
    record = {"tables": {}, "arrays": {}, "files": {}, "extra": {}}
    signed = {**record, "checksum": checksum(encode_json(record))}
    other.pipe_file(f"{root}/shards/00004.json", json.dumps(signed).encode())
    assert list(stage.finished_shards()) == [4]
    other.pipe_file(f"{root}/_SUCCESS", b"{}")
    assert stage.is_done()
    other.pipe_file(f"{root}/shards/00005.json", json.dumps({"tables": {}, "arrays": {}, "extra": {}}).encode())
    assert stage.written_shards() == [4, 5]


@pytest.mark.parametrize("victim", ["images/00001.parquet", "features/decoder/00001.npy", "shards/00001.json"])
def test_a_shard_cut_short_on_s3_does_not_count(storage, victim):
    stage = Stage(storage, "capture", {"seed": 3})
    for shard in range(2):
        write(stage, shard)
    whole = stage.store.read(victim)
    stage.store.fs.pipe_file(stage.store.path(victim), whole[: len(whole) // 2])
    assert list(stage.finished_shards()) == [0]
    write(stage, 1)
    assert list(stage.finished_shards()) == [0, 1]


def test_readers_see_an_object_whole_or_not_at_all(storage):
    """Many versions are put over each other while a reader looks: each read is one version, never a mixture."""
    versions = [bytes([k]) * 200_000 for k in range(8)]
    storage.write("object", versions[0])
    stop = threading.Event()
    seen: list[bytes] = []

    def read() -> None:
        reader = Storage(storage.uri)
        while not stop.is_set():
            seen.append(reader.read("object"))

    thread = threading.Thread(target=read)
    thread.start()
    for version in versions * 3:
        storage.write("object", version)
    stop.set()
    thread.join()
    assert seen
    assert all(found in versions for found in seen)


@pytest.mark.usefixtures("storage")
def test_a_bucket_that_is_not_there_is_a_storage_error():
    with pytest.raises(StorageError, match="cannot write"):
        Storage("s3://no-such-bucket-here/results").write("file", b"x")


def test_storage_pickles_without_its_connection(storage):
    import pickle

    storage.write("file", b"content")
    again = pickle.loads(pickle.dumps(storage))
    assert again.read("file") == b"content"
    assert b"testing" not in pickle.dumps(storage), "credentials stay in the environment"


def test_the_first_of_two_plans_holds_on_s3(storage):
    stage = Stage(storage, "capture", {"seed": 3})
    assert stage.open({"shard_size": 8}) == {"shard_size": 8}
    stage.store.create("stage.json", b"{}")  # as a run that looked before the first had written
    assert stage.open({"shard_size": 64}) == {"shard_size": 8}


def test_a_store_that_does_not_answer_is_named(monkeypatch):
    import s3fs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # the client's own retries below ours take half a minute
    s3fs.S3FileSystem.clear_instance_cache()
    away = Storage("s3://bucket/results")
    for use in (
        lambda: away.write("a", b""),
        lambda: away.read("a"),
        lambda: away.exists("a"),
        lambda: away.files("a"),
    ):
        with pytest.raises(StorageError, match="Could not connect"):
            use()
    with pytest.raises(DataError, match="Could not connect"):
        make_source(FolderConfig(root="s3://bucket/images"))
    s3fs.S3FileSystem.clear_instance_cache()


def test_question_files_and_their_images_are_read_from_s3(storage, tmp_path, monkeypatch):
    import s3fs

    monkeypatch.setenv("VTSWEEP_CACHE", str(tmp_path / "cache"))
    write_own_questions(tmp_path / "own", 4)
    root = storage.uri.removesuffix("/results") + "/own"
    s3fs.S3FileSystem().put(str(tmp_path / "own"), root, recursive=True)
    here, there = (
        make_source(QuestionsConfig(root=r, file=("questions.jsonl",))) for r in (str(tmp_path / "own"), root)
    )
    assert list(there.ids) == list(here.ids)
    assert np.array_equal(there.load(3).image, here.load(3).image)
    assert there.fingerprint() == here.fingerprint()
    s3fs.S3FileSystem().rm(f"{root}/2.png")
    with pytest.raises(DataError, match=r"2\.png: missing file"):
        there.load(2)
    assert there.fingerprint() != here.fingerprint()
