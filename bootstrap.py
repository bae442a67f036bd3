#!/usr/bin/env python3
"""Set up vtsweep on a machine that has Python 3.11 or newer and nothing else, then run the quick start or the tests.

    python3 bootstrap.py run      # .venv, installation, quick start
    python3 bootstrap.py test     # .venv, installation with the test tools, tests

The environment is made by `venv`, else by `uv`, else by `virtualenv` from pip (an externally managed Python lacks
`ensurepip` on Debian). `uv` then picks the CPU or CUDA build of torch; where it finds none, pip installs. Standard
library only; the system's Python is not changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

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
    raise SystemExit(
        "no virtual environment can be made: this Python has neither venv nor pip, and uv is not installed.\n"
        "On Debian or Ubuntu:  sudo apt-get install python3-venv"
    )


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
