"""The package as others get it: public names, version, wheel, set-up script."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import urllib.request
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


@pytest.mark.parametrize("works", ["venv", "uv", "virtualenv", "fetched", "nothing"])
def test_bootstrap_finds_a_way_to_an_environment(works, tmp_path, monkeypatch):
    made: list[list[str]] = []
    module = _bootstrap()
    bare = works in ("fetched", "nothing")

    def succeeds(*command):
        if "--without-pip" in command:
            return bare
        return {"venv": works == "venv", "pip": works == "virtualenv"}[command[2]]

    monkeypatch.setattr(module, "succeeds", succeeds)
    monkeypatch.setattr(module, "fetch_pip", lambda folder: folder / "pip.whl" if works == "fetched" else None)
    monkeypatch.setattr(module.shutil, "which", lambda _: "/bin/uv" if works == "uv" else None)
    monkeypatch.setattr(module, "call", lambda *c: made.append([str(x) for x in c]))
    monkeypatch.setattr(module.subprocess, "run", lambda c, **_: made.append(c) or subprocess.CompletedProcess(c, 0))
    if works == "nothing":
        with pytest.raises(SystemExit, match="apt-get install python3-venv"):
            module.make_environment(tmp_path / "e")
        return
    assert module.make_environment(tmp_path / "e") == tmp_path / "e" / "bin" / "python"
    right = {"venv": made == [], "uv": made[:1] and made[0][:2] == ["/bin/uv", "venv"], "fetched": len(made) == 1}
    assert right.get(works, len(made) == 2)


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "altered"])
def test_bootstrap_fetches_the_newest_pip_and_checks_it(whole, tmp_path, monkeypatch):
    (tmp_path / "pip").mkdir()
    links = ""
    for number in ("9.0.3", "26.0.1", "25.3"):
        name, data = f"pip-{number}-py3-none-any.whl", number.encode()
        (tmp_path / "pip" / name).write_bytes(data if whole else b"other")
        links += f'<a href="{(tmp_path / "pip" / name).as_uri()}#sha256={hashlib.sha256(data).hexdigest()}">{name}</a>'
    links += '<a href="../pip-27.0-py3-none-any.whl">no checksum</a>'
    (tmp_path / "index.html").write_text(links)
    module, real = _bootstrap(), urllib.request.urlopen
    place = (tmp_path / "index.html").as_uri()
    monkeypatch.setattr(
        module.urllib.request, "urlopen", lambda url, **_: real(place if url.endswith("/pip/") else url)
    )
    monkeypatch.setenv("PIP_INDEX_URL", "https://me:secret@index/simple")
    (tmp_path / "out").mkdir()
    found = module.fetch_pip(tmp_path / "out")
    if whole:
        assert found == tmp_path / "out" / "pip-26.0.1-py3-none-any.whl"
        assert found.read_bytes() == b"26.0.1"
    else:
        assert found is None
    monkeypatch.setattr(module.urllib.request, "urlopen", real)
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "none").as_uri())
    assert module.fetch_pip(tmp_path / "out") is None


@pytest.mark.parametrize(("uv", "used"), [("/bin/uv", "uv"), ("", "fetched"), ("", "pip")])
def test_bootstrap_installs_by_uv_where_it_can_and_by_pip_where_not(uv, used, tmp_path, monkeypatch):
    module, tried, called = _bootstrap(), [], []

    def succeeds(*command):
        tried.append([str(c) for c in command])
        return used != "pip" if "--torch-backend" in tried[-1] else used == "fetched" or used == "pip"

    monkeypatch.setattr(module.shutil, "which", lambda _: uv or None)
    monkeypatch.setattr(module, "succeeds", succeeds)
    monkeypatch.setattr(module, "call", lambda *c: called.append([str(x) for x in c]))
    module.install(tmp_path / "bin" / "python", ".[test]")
    assert any("--torch-backend" in command for command in tried)
    assert bool(called) == (used == "pip")
    if called:
        assert called[0][1:4] == ["-m", "pip", "install"]


def test_the_readme_has_exactly_the_two_commands_that_the_gate_runs():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.split("<!-- commands -->")[1].split("<!-- /commands -->")[0]
    commands = [line.split("#")[0].split() for line in block.splitlines() if line.startswith("python3")]
    assert commands == [["python3", "bootstrap.py", "run"], ["python3", "bootstrap.py", "test"]]
    assert "<!-- commands -->" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_gate_passes_shellcheck():
    tool = Path(sys.executable).parent / "shellcheck"
    if not tool.exists():
        pytest.skip("needs shellcheck (extra `test`)")
    found = subprocess.run([tool, ROOT / ".ci" / "run"], capture_output=True, text=True)
    assert found.stdout == ""


@pytest.mark.timeout(240)
def test_a_source_distribution_has_what_a_build_needs(tmp_path):
    code = (
        "import os, sys; os.chdir(sys.argv[1]); from setuptools import build_meta;"
        "print(build_meta.build_sdist(sys.argv[2]))"
    )
    copy = tmp_path / "copy"
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    if not names:
        pytest.skip("needs a git checkout")
    for name in names:
        if (ROOT / name).is_file() and not name.startswith("docs/img"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
    subprocess.run([sys.executable, "-c", code, str(copy), str(tmp_path)], check=True, capture_output=True)
    (archive,) = tmp_path.glob("vtsweep-*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    there = {str(p.relative_to(source)) for p in source.rglob("*") if p.is_file()}
    for name in ("LICENSE", "README.md", "pyproject.toml", "vtsweep/py.typed", "orchestrator/models/catalogue.yaml",
                 "orchestrator/reference/checkpoints/reference-joint/model.safetensors",
                 "orchestrator/tracking/templates/landing.html.jinja"):  # fmt: skip
        assert name in there, name
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(source)], check=True, capture_output=True)
    assert len(list(tmp_path.glob("vtsweep-*.whl"))) == 1
