"""A saved adapter is read from wherever it lies; a trial's own must be what was written."""

from __future__ import annotations

from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from orchestrator.errors import DamagedError
from orchestrator.store.adapter_folder import adapter_folder
from orchestrator.store.filesystem import Storage
from orchestrator.store.stage_folder import Stage

FILES = {"adapter/adapter_config.json": b"{}", "adapter/adapter_model.safetensors": b"weights"}


@pytest.mark.parametrize("place", ["local", "memory"])
def test_an_adapter_of_a_trial_is_what_was_written_wherever_it_lies(place: str, tmp_path: Path) -> None:
    root = str(tmp_path / "out") if place == "local" else f"memory://{tmp_path.name}/out"
    stage = Stage(Storage(root), "finetune", {"seed": 1})
    stage.open()
    stage.write_shard(0, {}, files=FILES)
    stage.mark_done()
    name = f"{root}/{stage.folder}/adapter"
    found = adapter_folder(name)
    assert {file.name: file.read_bytes() for file in found.iterdir()} == {
        name.partition("/")[2]: data for name, data in FILES.items()
    }
    assert adapter_folder(name) == found, "read once"
    assert (found == Path(name)) == (place == "local")
    path = stage.store.path("adapter/adapter_model.safetensors")
    stage.store.fs.pipe_file(path, b"weight5!")
    with pytest.raises(DamagedError, match="adapter_model"):
        adapter_folder(name)
    stage.store.remove("_SUCCESS")
    if place == "local":
        assert adapter_folder(name) == found, "of a trial that is not finished nothing is known"
    MemoryFileSystem.store.clear()


def test_a_folder_of_other_people_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "finetune" / ("0" * 16) / "adapter").mkdir(parents=True)
    for name in ("finetune/" + "0" * 16 + "/adapter", "elsewhere", "~/none"):
        assert adapter_folder(name) == Path(name).expanduser()
    assert adapter_folder(f"file://{tmp_path}/50%41 x#1") == tmp_path / "50%41 x#1"
