"""What identifies data is its content: equal tables over other pixels, repaired files, spellings, and the cache."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from orchestrator.config import CocoConfig, FolderConfig, RunConfig
from orchestrator.data.content import content_digest, file_digests
from orchestrator.data.source import make_source
from orchestrator.errors import DataError
from orchestrator.store import content_cache
from orchestrator.store.filesystem import Storage
from tests.points import capture_stage, run_capture


def picture(path: Path, value: int = 0, size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, 200)).save(path)


def folder(root: Path, value: int = 0, n: int = 3) -> FolderConfig:
    for i in range(n):
        picture(root / f"{i}.png", value + i)
    (root / "attributes.csv").write_text("file,n\n" + "".join(f"{i}.png,{i}\n" for i in range(n)))
    return FolderConfig(root=str(root))


def coco(root: Path, value: int = 0, names: tuple[str, ...] = ("1.jpg", "2.jpg"), **fields: Any) -> CocoConfig:
    (root / "annotations").mkdir(parents=True)
    for name in names:
        picture(root / "val2017" / name, value)
    document = {
        "images": [{"id": i, "file_name": n, "width": 40, "height": 30} for i, n in enumerate(names, 1)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81}
            for i in range(1, len(names) + 1)
        ],
        "categories": [{"id": 1, "name": "dog"}],
        **fields,
    }
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(document))
    return CocoConfig(root=str(root))


@pytest.mark.parametrize("make", [folder, coco])
def test_two_roots_with_equal_tables_are_two_data_sets(tmp_path: Path, make: Any) -> None:
    configs = [make(tmp_path / name, value) for name, value in (("clean", 10), ("blur", 50), ("copy", 10))]
    storage = Storage(str(tmp_path / "results"))
    runs = [RunConfig.model_validate({"model": {"name": "reference-joint"}, "data": c}) for c in configs]
    clean, blur, copy = (capture_stage(run, storage).digest for run in runs)
    assert clean != blur
    assert clean == copy


def test_a_repaired_image_is_captured_by_the_next_run(tmp_path: Path) -> None:
    config = folder(tmp_path / "images", n=4)
    whole = (tmp_path / "images" / "1.png").read_bytes()
    (tmp_path / "images" / "1.png").write_bytes(whole[:60])
    data = {**config.model_dump(), "max_rejected_fraction": 0.5}
    how = {"backend": "local", "batch_size": 4, "shard_size": 4, "torch_threads": 1}
    capture = {"layers": [0], "taps": ["decoder"]}
    run = RunConfig.model_validate({"model": {"name": "reference-joint"}, "data": data, "capture": capture, "how": how})
    storage = Storage(str(tmp_path / "results"))
    assert run_capture(run, storage, quiet=True).scan("images").collect().height == 3
    (tmp_path / "images" / "1.png").write_bytes(whole)
    again = run_capture(run, storage, quiet=True).scan("images").collect()
    assert again["image_id"].to_list() == ["0.png", "1.png", "2.png", "3.png"]


@pytest.mark.parametrize("spelling", ["./0.png", "sub//../0.png", ".//0.png", "0.png"])
def test_two_spellings_of_one_file_are_refused_with_both_rows(tmp_path: Path, spelling: str) -> None:
    config = folder(tmp_path)
    with (tmp_path / "attributes.csv").open("a") as table:
        table.write(f"{spelling},7\n")
    with pytest.raises(DataError, match=r"rows 2 and 5.*'0\.png' occurs more than once|row 5.*leaves the root"):
        make_source(config)


def test_two_names_of_one_file_on_a_disk_that_ignores_case_are_refused(tmp_path: Path) -> None:
    config = folder(tmp_path)
    os.link(tmp_path / "0.png", tmp_path / "0.PNG")  # what such a disk shows: two names, one file
    with (tmp_path / "attributes.csv").open("a") as table:
        table.write("0.PNG,7\n")
    with pytest.raises(DataError, match=r"rows 2 and 5.*are one file"):
        make_source(config)


@pytest.mark.parametrize("make", [folder, coco])
def test_a_link_to_a_picture_is_no_second_picture(tmp_path: Path, make: Any) -> None:
    """The first two pictures of a root become one file, by a link of each kind."""
    for kind, link in (("copy", None), ("symbolic", os.symlink), ("hard", os.link)):
        config = make(tmp_path / kind)
        first, second = sorted(path for path in (tmp_path / kind).rglob("*") if path.suffix in (".png", ".jpg"))[:2]
        second.unlink()
        if link is None:
            second.write_bytes(first.read_bytes())
            make_source(config).fingerprint()
            continue
        link(first, second)
        with pytest.raises(DataError, match=rf"'{first.name}' and '{second.name}' are one file, .*{kind}"):
            make_source(config).fingerprint()


def two_categories(name: str, number: int) -> list[dict[str, Any]]:
    return [{"id": 1, "name": "dog"}, {"id": number, "name": name}]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"categories": two_categories("dog", 2)}, r"categories\[0\] and categories\[1\].*'dog'"),
        ({"categories": two_categories(" Dog", 2)}, r"categories\[0\] and categories\[1\].*'Dog'"),
        ({"categories": two_categories("cat", 1)}, r"categories\[0\] and categories\[1\]: the id 1"),
        (
            {"annotations": [{"id": 5, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}] * 2},
            r"s\[0\] and .*\[1\]",
        ),
    ],
)
def test_duplicate_names_and_ids_are_refused_with_both_places(tmp_path: Path, fields: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        make_source(coco(tmp_path, **fields))


def test_one_file_listed_twice_in_coco_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"images\[0\] and images\[1\]: the file_name '1\.jpg'"):
        make_source(coco(tmp_path, names=("1.jpg", "./1.jpg")))


# ---------------------------------------------------------------- the cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VTSWEEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(content_cache, "FRESH_NS", 0)
    return tmp_path / "cache"


def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    plain = content_cache._hash

    def count(fs: Any, root: str, name: str, local: bool) -> str:
        names.append(name)
        return plain(fs, root, name, local)

    monkeypatch.setattr(content_cache, "_hash", count)
    return names


@pytest.mark.usefixtures("cache")
def test_a_second_run_reads_only_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, names = tmp_path / "data", [f"{i}.bin" for i in range(50)]
    root.mkdir()
    for i, name in enumerate(names):
        (root / name).write_bytes(bytes([i]) * 100)
    read, fs = hashed(monkeypatch), fsspec.filesystem("file")
    first = file_digests(fs, str(root), names)
    assert first == [hashlib.sha256(bytes([i]) * 100).hexdigest()[:32] for i in range(50)]
    assert sorted(read) == sorted(names)
    read.clear()
    assert file_digests(fs, str(root), names) == first
    assert not read
    # Same size, and the time of modification put back: the time of status change tells.
    before = (root / "7.bin").stat()
    time.sleep(0.02)
    (root / "7.bin").write_bytes(b"x" * 100)
    os.utime(root / "7.bin", ns=(before.st_atime_ns, before.st_mtime_ns))
    (root / "8.bin").unlink()
    second = file_digests(fs, str(root), names)
    assert read == ["7.bin"]
    assert second[7] != first[7]
    assert second[8] == content_cache.MISSING
    assert second[:7] + second[9:] == first[:7] + first[9:]


def test_a_file_changed_a_moment_ago_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VTSWEEP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.bin").write_bytes(b"1")
    read, fs = hashed(monkeypatch), fsspec.filesystem("file")
    for _ in range(2):
        file_digests(fs, str(tmp_path), ["a.bin"])
    assert read == ["a.bin", "a.bin"]


def test_a_broken_or_read_only_cache_costs_time_and_nothing_else(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"1")
    fs = fsspec.filesystem("file")
    first = content_digest(fs, str(tmp_path), ["a.bin"])
    (file,) = (cache / "content").iterdir()
    file.write_bytes(b"no parquet")
    assert content_digest(fs, str(tmp_path), ["a.bin"]) == first
    file.unlink()
    file.mkdir()
    assert content_digest(fs, str(tmp_path), ["a.bin"]) == first


@pytest.mark.usefixtures("cache")
def test_local_and_remote_copies_have_one_identity(tmp_path: Path) -> None:
    remote = fsspec.filesystem("memory")
    names = ["a.png", "sub/b.png", "gone.png"]
    for i, name in enumerate(names[:2]):
        picture(tmp_path / name, i)
        remote.pipe(f"/identity/{name}", (tmp_path / name).read_bytes())
    local = content_digest(fsspec.filesystem("file"), str(tmp_path), names)
    assert content_digest(remote, "/identity", names) == local
    remote.pipe("/identity/a.png", b"other")
    assert content_digest(remote, "/identity", names) != local
    assert content_digest(fsspec.filesystem("file"), str(tmp_path), names[:2]) != local


@pytest.mark.usefixtures("cache")
def test_seeds_of_a_draw_do_not_read_what_they_leave_out(tmp_path: Path) -> None:
    config = folder(tmp_path, n=6).model_copy(update={"n_images": 3})
    source = make_source(config)
    left_out = next(f"{i}.png" for i in range(6) if f"{i}.png" not in source.ids)
    before = source.fingerprint()
    picture(tmp_path / left_out, 99)
    assert source.fingerprint() == before
    picture(tmp_path / source.ids[0], 99)
    assert source.fingerprint() != before
    assert np.isin(source.ids, [f"{i}.png" for i in range(6)]).all()
