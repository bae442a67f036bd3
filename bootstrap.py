#!/usr/bin/env python3
"""Set up vtsweep on a machine that has Python 3.11 or newer and nothing else, then run the quick start or the tests.

    python3 bootstrap.py run      # .venv, installation, quick start
    python3 bootstrap.py test     # .venv, installation with the test tools, tests

The environment is made by `venv`, else by `uv`, else by `virtualenv` from pip, else by `venv` with pip fetched from the
package index (Debian's Python lacks `ensurepip` and pip). `uv` then picks the CPU or CUDA build of torch; where it
finds none, pip installs. Standard library only; the system's Python is not changed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from urllib.parse import urljoin

ROOT = Path(__file__).resolve().parent
PLANS = {
    "run": (".", ["-m", "orchestrator", "run", "sweeps/quickstart.yaml"]),
    "test": (".[test]", ["-m", "pytest"]),
}


def call(*command: str | Path) -> None:
    """Run a command in the project's folder; stop with its exit code where it fails."""
    print("+", *command, flush=True)
    code = subprocess.run([str(c) for c in command], cwd=ROOT).returncode
    if code:
        raise SystemExit(code)


def succeeds(*command: str | Path) -> bool:
    return subprocess.run([str(c) for c in command], cwd=ROOT, capture_output=True).returncode == 0


def make_environment(folder: Path) -> Path:
    """A virtual environment with pip in `folder`; returns its Python."""
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if python.exists() and succeeds(python, "-m", "pip", "--version"):
        return python
    if succeeds(sys.executable, "-m", "venv", "--clear", folder):
        return python
    if uv := shutil.which("uv"):
        call(uv, "venv", "--seed", "--clear", "--python", sys.executable, folder)
        return python
    if succeeds(sys.executable, "-m", "pip", "--version"):  # Debian without python3-venv: pip may write to a folder
        with tempfile.TemporaryDirectory() as tools:
            call(sys.executable, "-m", "pip", "install", "--quiet", "--target", tools, "virtualenv")
            environment = {**os.environ, "PYTHONPATH": tools}
            command = [sys.executable, "-m", "virtualenv", "--clear", str(folder)]
            if subprocess.run(command, cwd=ROOT, env=environment).returncode == 0:
                return python
    if succeeds(sys.executable, "-m", "venv", "--clear", "--without-pip", folder):
        with tempfile.TemporaryDirectory() as tools:
            if wheel := fetch_pip(Path(tools)):
                call(python, wheel / "pip", "install", "--quiet", "pip")
                return python
    raise SystemExit(
        "no virtual environment can be made: this Python's venv does not work, uv is not installed, and pip is neither"
        " here nor could it be fetched.\n"
        "On Debian or Ubuntu:  sudo apt-get install python3-venv"
    )


def fetch_pip(folder: Path) -> Path | None:
    """The newest pip of the package index (`PIP_INDEX_URL`, else PyPI), checked against the index's checksum.

    A wheel of pip runs as it is. None where the index does not answer or names no such wheel.
    """
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/") + "/pip/"
    try:
        with urllib.request.urlopen(index, timeout=60) as answer:
            page, base = answer.read().decode(), answer.url
        found = re.findall(r'href="([^"]+/(pip-(\d[\d.]*)-py3-none-any\.whl))#sha256=([0-9a-f]{64})"', page)
        link, name, _, checksum = max(found, key=lambda f: [int(part) for part in f[2].split(".")])
        with urllib.request.urlopen(urljoin(base, link), timeout=120) as answer:
            data = answer.read()
    except (OSError, ValueError) as error:
        print(f"pip cannot be fetched from {re.sub('//[^/@]*@', '//', index)}: {error}", flush=True)
        return None
    if hashlib.sha256(data).hexdigest() != checksum:
        print(f"{name} from the index does not have the checksum that the index names", flush=True)
        return None
    (folder / name).write_bytes(data)
    return folder / name


def find_uv(python: Path) -> str | Path | None:
    """`uv` of this machine, else of the environment: it picks the build of torch that fits the machine, CPU or CUDA."""
    if uv := shutil.which("uv"):
        return uv
    return python.with_name("uv") if succeeds(python, "-m", "pip", "install", "--quiet", "uv") else None


def install(python: Path, what: str) -> None:
    """Install the package; by uv with the torch build that fits the machine, else by pip."""
    if uv := find_uv(python):
        command = (uv, "pip", "install", "--python", python, "--torch-backend", "auto", "--editable", what)
        print("+", *command, flush=True)
        if succeeds(*command):
            return
        print("uv does not find everything; pip goes on", flush=True)
    call(python, "-m", "pip", "install", "--quiet", "--editable", what)


def main(arguments: list[str]) -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 - this file runs before anything checks it
        raise SystemExit(f"vtsweep needs Python 3.11 or newer; this is {sys.version.split()[0]}")
    if len(arguments) != 1 or arguments[0] not in PLANS:
        raise SystemExit(f"{__doc__}\nexpected one of: {', '.join(PLANS)}")
    what, command = PLANS[arguments[0]]
    python = make_environment(ROOT / ".venv")
    install(python, what)
    call(python, *command)


if __name__ == "__main__":
    main(sys.argv[1:])
