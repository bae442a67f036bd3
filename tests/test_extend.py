"""The examples of docs/extend.md, installed as a package and run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TEXT = (Path(__file__).parents[1] / "docs" / "extend.md").read_text()


def block(language: str, first: str) -> str:
    """The code block of a language that contains `first`."""
    found = [b for b in re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL) if first in b]
    assert len(found) == 1, f"{language}: {first}"
    return found[0]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out as an installed distribution with the documented entry points."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "my_metrics.py").write_text(block("python", "# my_metrics.py"))
    (folder / "my_models.py").write_text(block("python", "# my_models.py"))
    (folder / "my_probes.py").write_text(block("python", "# my_probes.py"))
    (folder / "my_selectors.py").write_text(block("python", "# my_selectors.py"))
    info = folder / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    sections = [(group, line) for group, line in re.findall(r'entry-points\."([^"]+)"\]\n(\w+ = "[^"]+")', TEXT)]
    assert {group for group, _ in sections} == {
        "vtsweep.metrics",
        "vtsweep.adapters",
        "vtsweep.probes",
        "vtsweep.selectors",
    }
    (info / "entry_points.txt").write_text("".join(f"[{g}]\n{line.replace(chr(34), '')}\n" for g, line in sections))
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "my_images"
    folder.mkdir()
    (folder / "attributes.csv").write_text(block("csv", "file,"))
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg"):
        Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(folder / name)
    return folder


def test_folder_metric_and_adapter_work_as_documented(site: Path, images: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "mine.yaml"
    sweep.write_text(block("yaml", "source: folder"))
    code = (
        f"import sys, json; sys.path.insert(0, {str(site)!r})\n"
        "import orchestrator as vt\n"
        f"sweep = vt.load_sweep({str(sweep)!r}, ['data.root={images}', 'storage={tmp_path}/r', 'how.backend=local',"
        " 'capture.metrics=[gini,top_token_share]', 'correlate.n_bootstrap=5'])\n"
        "study, _ = vt.run_study(sweep, quiet=True)\n"
        "rows = study.layer_metrics.collect()\n"
        "vision = rows.filter((rows['group'] == 'vision') & (rows['tap'] == 'decoder'))\n"
        "print(json.dumps([vision['top_token_share'].to_list(), vision['n_tokens'].to_list(),"
        " study.images.collect()['scene'].to_list()]))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    shares, n_tokens, scenes = json.loads(found.stdout.splitlines()[-1])
    assert all(1 / 63 <= share <= 1 for share in shares)
    assert set(n_tokens) == {63}, "the adapter leaves out the first of 64 visual tokens"
    assert scenes == ["street", "forest"]


def test_results_of_another_version_of_a_package_are_another_stage(site: Path, tmp_path: Path) -> None:
    newer = tmp_path / "newer"
    shutil.copytree(site, newer)
    (newer / "mine-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.1\n")
    model = tmp_path / "model"
    model.mkdir()
    family = re.search(r'vtsweep\.adapters"\]\n(\w+)', TEXT)[1]
    (model / "config.json").write_text(json.dumps({"model_type": family}))
    (model / "model.safetensors").write_bytes(b"weights")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from orchestrator.store.filesystem import Storage\n"
        "from orchestrator.study.resolve import resolve_run\n"
        "from orchestrator.config.sweep import make_sweep\n"
        "for stage, *overrides in (\n"
        "    ('capture', 'capture.metrics=[gini]'), ('capture', 'capture.metrics=[gini,top_token_share]'),\n"
        "    ('probe', 'capture.metrics=[gini]', 'probe.solvers=[nearest]'),\n"
        "    ('capture', 'capture.metrics=[gini]', 'model.name=' + sys.argv[2]),\n"
        "):\n"
        "    run = make_sweep({'name': 't', 'base': {'model': {'name': 'reference-cross'}}}, overrides).points[0].run\n"
        "    print(resolve_run(run, Storage('nowhere'), stage).stages[stage].digest)\n"
    )
    one, two = (
        subprocess.run(
            [sys.executable, "-c", code, str(folder), str(model)], capture_output=True, text=True, check=True
        ).stdout.split()
        for folder in (site, newer)
    )
    assert [a == b for a, b in zip(one, two, strict=True)] == [True, False, False, False]


def test_a_registered_probe_is_judged_like_the_built_in_ones(site: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "probed.yaml"
    sweep.write_text(
        json.dumps(
            {
                "name": "probed",
                "stages": ["capture", "probe"],
                "base": {
                    "data": {"source": "scenes", "n_images": 60, "n_objects": [1, 5], "width": 112, "height": 112},
                    "capture": {"metrics": ["gini"], "layers": [0, 3]},
                    "probe": {
                        "solvers": ["ridge", "nearest"],
                        "penalties": [1.0, 3.0],
                        "attributes": ["n_objects", "dominant_colour"],
                        "positions": ["vision_mean"],
                        "min_class_count": 2,
                    },
                    "how": {"backend": "local"},
                },
            }
        )
    )
    code = (
        f"import sys, json; sys.path.insert(0, {str(site)!r})\n"
        "import orchestrator as vt\n"
        f"sweep = vt.load_sweep({str(sweep)!r}, ['storage={tmp_path}/r'])\n"
        "study, _ = vt.run_study(sweep, quiet=True)\n"
        "print(study.probes.collect().write_json())\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    rows = [row for row in json.loads(found.stdout.splitlines()[-1]) if row["tap"] == "decoder"]
    assert {(row["solver"], row["attribute"]) for row in rows} == {
        ("ridge", "n_objects"),
        ("nearest", "n_objects"),
        ("nearest", "dominant_colour"),
    }
    assert all(row["score"] is not None for row in rows)
    misspelt = subprocess.run(
        [sys.executable, "-m", "orchestrator", "plan", str(sweep), "probe.solvers=[rigde]"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert misspelt.returncode != 0
    assert "ridge" in misspelt.stderr


def test_a_way_to_choose_tokens_is_used_by_its_name(site: Path, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "from orchestrator.ablate.ablate_stage import run_ablate\n"
        "from orchestrator.ablate.selectors.check import check_methods\n"
        "from orchestrator.config import RunConfig\n"
        "from orchestrator.store.filesystem import Storage\n"
        "run = RunConfig.model_validate({'ablate': {'checks': ['deletion'], 'methods': ['middle_out'],"
        " 'low_families': ['colour'], 'high_families': [], 'n_per_family': 3, 'deleted_shares': [0.5]},"
        " 'how': {'backend': 'local', 'torch_threads': 1}})\n"
        "from orchestrator.study.resolve import resolve_run\n"
        "check_methods(run.ablate)\n"
        f"stage = run_ablate(resolve_run(run, Storage({str(tmp_path)!r}), 'ablate'), quiet=True)\n"
        "assert stage.what['selectors'] == {'middle_out': 'mine 1.0'}, stage.what\n"
        "print(stage.scan('deletion').collect()['kept_tokens'].to_list())\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    assert found.stdout.splitlines()[-1] == "[63.0, 32.0]", "the adapter leaves out the first of 64 visual tokens"
