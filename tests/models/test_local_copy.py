"""Weights on a node: copies of checkpoint folders on its own disk, and pages that its processes share."""

from __future__ import annotations

import errno
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import ModelConfig
from orchestrator.models import local_copy as module
from orchestrator.models.catalogue import resolve
from orchestrator.models.loading import load_adapter
from orchestrator.models.local_copy import local_copy


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint folder on the slow disk."""
    monkeypatch.setattr(module, "SPARE_BYTES", 10**6)
    place = tmp_path / "slow" / "model"
    (place / "additional").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "additional/chat.jinja", "pytorch_model.bin", ".git"):
        (place / name).write_text(name)
    return place


def contents(place: Path) -> dict[str, str]:
    return {str(f.relative_to(place)): f.read_text() for f in place.rglob("*") if f.is_file()}


def test_a_copy_holds_what_a_model_is_loaded_from_and_is_made_once(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "disk" / "weights"
    copy = local_copy(folder, cache)
    assert contents(copy) == {n: n for n in ("config.json", "model.safetensors", "additional/chat.jinja")}
    (copy / "config.json").write_text("read from here")
    assert local_copy(folder, cache) == copy
    assert contents(copy)["config.json"] == "read from here"
    assert local_copy(copy, cache) == copy


def test_a_changed_checkpoint_is_copied_anew(folder: Path, tmp_path: Path) -> None:
    before = local_copy(folder, tmp_path / "disk")
    (folder / "model.safetensors").write_text("other weights")
    after = local_copy(folder, tmp_path / "disk")
    assert before != after
    assert contents(after)["model.safetensors"] == "other weights"


def test_processes_that_ask_at_once_share_one_copy(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[str] = []

    def slowly(source: Path, target: Path) -> None:
        copied.append(source.name)
        time.sleep(0.05)
        target.write_bytes(source.read_bytes())

    monkeypatch.setattr(shutil, "copyfile", slowly)
    with ThreadPoolExecutor(4) as executor:
        places = list(executor.map(lambda _: local_copy(folder, tmp_path / "disk"), range(4)))
    assert len(set(places)) == 1
    assert sorted(copied) == ["chat.jinja", "config.json", "model.safetensors"]


@pytest.mark.parametrize("when", ["before", "during", "no folder", "changed meanwhile"])
def test_without_a_copy_the_checkpoint_is_read_where_it_lies(
    when: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "disk"
    if when == "before":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12, 10**5))  # type: ignore[attr-defined]
    elif when == "no folder":
        cache.write_text("a file")
    else:

        def fails(_: Path, target: Path) -> Any:
            target.write_bytes(b"half")
            if when == "during":
                raise OSError(errno.ENOSPC, "No space left on device")
            (folder / "model.safetensors").write_text("written while it is read")

        monkeypatch.setattr(shutil, "copyfile", fails)
    with pytest.warns(UserWarning, match="it is read where it lies"):
        assert local_copy(folder, cache) == folder
    assert when == "no folder" or [f.name for f in cache.iterdir() if f.suffix != ".lock"] == []


def test_what_a_killed_process_left_half_copied_is_removed(folder: Path, tmp_path: Path) -> None:
    copy = local_copy(folder, tmp_path / "disk")
    shutil.rmtree(copy)
    left = tmp_path / "disk" / f".{copy.name}.abc.part"
    left.mkdir()
    assert local_copy(folder, tmp_path / "disk") == copy
    assert not left.exists()


def test_a_model_is_read_from_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SPARE_BYTES", 0)
    config = ModelConfig(name=str(resolve(ModelConfig()).folder))
    adapter = load_adapter(config, weights_cache=str(tmp_path))
    assert Path(str(adapter.model.config._name_or_path)).parent == tmp_path


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_of_the_precision_of_their_file_stay_in_its_mapped_pages(tmp_path: Path) -> None:
    """So that the processes of a node hold them once between them; a cast needs memory of its own."""
    shipped = resolve(ModelConfig()).folder
    assert shipped is not None
    copy = shutil.copytree(shipped, tmp_path / "model")

    def share_mapped(dtype: str) -> float:
        adapter = load_adapter(ModelConfig(name=str(copy), dtype=dtype))  # type: ignore[arg-type]
        lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.startswith(str(copy), 73)]
        ranges = [tuple(int(end, 16) for end in line.split()[0].split("-")) for line in lines]
        weights = list(adapter.model.parameters())
        mapped = [w for w in weights if any(low <= w.data_ptr() < high for low, high in ranges)]
        return sum(w.numel() for w in mapped) / sum(w.numel() for w in weights)

    assert share_mapped("float32") > 0.99
    assert share_mapped("bfloat16") == 0
