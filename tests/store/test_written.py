"""A study writes where docs/security.md says, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml
from PIL import Image

ROOT = Path(__file__).parents[2]
STUDY = {
    "name": "written",
    "stages": ["capture"],
    "base": {
        "model": {"name": "reference-joint"},
        "capture": {"metrics": ["gini"], "keep_features": False},
        "how": {"backend": "local", "batch_size": 4, "shard_size": 4, "torch_threads": 1},
    },
}


def files_below(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_a_study_writes_into_its_storage_and_the_cache_of_hashes_alone(tmp_path: Path) -> None:
    home, temporary, here, images = (tmp_path / name for name in ("home", "tmp", "here", "images"))
    for folder in (home, temporary, here, images):
        folder.mkdir()
    for k in range(4):
        Image.new("RGB", (56, 56), (40 * k, 90, 9)).save(images / f"{k}.png")
    (images / "attributes.csv").write_text("file,n\n" + "".join(f"{k}.png,{k}\n" for k in range(4)))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "VTSWEEP_", "HF_H"))}
    environment |= {"HOME": str(home), "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "orchestrator", "run", str(tmp_path / "study.yaml"), "-q"]
    command += [f"storage={tmp_path / 'out'}", "data.source=folder", f"data.root={images}"]
    before = files_below(images)
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    assert files_below(here) == set()
    assert files_below(images) == before
    assert all(name.startswith((".cache/vtsweep/", ".cache/matplotlib/")) for name in files_below(home))
    left = [name for name in files_below(temporary) if "matplotlib" not in name]
    assert left == []
    tops = {path.name for path in (tmp_path / "out").iterdir()}
    assert tops <= {"capture", "studies", "mlflow.db", "mlflow.db.lock", "mlflow-artifacts"}
