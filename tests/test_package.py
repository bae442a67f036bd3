"""The package as others get it: public names, version, wheel, set-up script."""

import importlib.util
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

import vtsweep

ROOT = Path(__file__).parents[1]


def _bootstrap():
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "bootstrap.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_public_names_are_few_and_resolve():
    assert dir(vtsweep) == sorted(vtsweep.__all__, key=dir(vtsweep).index)
    for name in vtsweep.__all__:
        assert getattr(vtsweep, name) is not None
    with pytest.raises(AttributeError, match="it has Captured, Study"):
        vtsweep.nothing  # noqa: B018


def test_importing_vtsweep_loads_no_heavy_library():
    code = "import sys, vtsweep; sys.exit(bool({'torch', 'ray', 'mlflow', 'polars', 'transformers'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_version_stands_in_one_place():
    assert vtsweep.__version__ == yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    assert f"## {vtsweep.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert version("vtsweep") == vtsweep.__version__


@pytest.mark.timeout(240)
def test_a_wheel_runs_outside_the_checkout(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("vtsweep-*.whl")
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    code = (
        "import vtsweep, orchestrator, pathlib;"
        f"assert pathlib.Path(orchestrator.__file__).is_relative_to({str(target)!r});"
        "from orchestrator.models.catalogue import entries;"
        "assert (entries()['reference-joint'].folder / 'model.safetensors').is_file();"
        "print(vtsweep.__version__)"
    )
    environment = {**os.environ, "PYTHONPATH": str(target)}
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.stdout.strip() == vtsweep.__version__, found.stderr


def test_bootstrap_names_what_it_takes():
    command = [sys.executable, str(ROOT / "bootstrap.py"), "quikstart"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 1
    assert "expected one of: run, test" in found.stderr


@pytest.mark.parametrize("works", ["venv", "uv", "virtualenv", "nothing"])
def test_bootstrap_finds_a_way_to_an_environment(works, tmp_path, monkeypatch):
    made: list[list[str]] = []
    module = _bootstrap()
    monkeypatch.setattr(module, "succeeds", lambda *c: {"venv": works == "venv", "pip": works == "virtualenv"}[c[2]])
    monkeypatch.setattr(module.shutil, "which", lambda _: "/bin/uv" if works == "uv" else None)
    monkeypatch.setattr(module, "call", lambda *c: made.append([str(x) for x in c]))
    monkeypatch.setattr(module.subprocess, "run", lambda c, **_: made.append(c) or subprocess.CompletedProcess(c, 0))
    if works == "nothing":
        with pytest.raises(SystemExit, match="apt-get install python3-venv"):
            module.make_environment(tmp_path / "e")
        return
    assert module.make_environment(tmp_path / "e") == tmp_path / "e" / "bin" / "python"
    assert {"venv": made == [], "uv": made[:1] and made[0][:2] == ["/bin/uv", "venv"]}.get(works, len(made) == 2)
