"""Commit of the checkout that the package runs from."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path


@cache
def source_commit() -> str:
    """Commit of the checkout this package runs from, with `+` when it has changes; `unknown` for an installed copy."""
    here = ["git", "-C", str(Path(__file__).parents[1])]
    try:
        subprocess.run([*here, "ls-files", "--error-unmatch", __file__], capture_output=True, check=True, timeout=5)
        head = subprocess.run([*here, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=5)
        changed = subprocess.run([*here, "diff", "--quiet", "HEAD", "--", "."], capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head.stdout.strip() + "+" * bool(changed.returncode)
