"""Freed memory of long-lived workers goes back to the system."""

import ctypes
import subprocess
import sys

import pytest

SCRIPT = """
import numpy as np
from orchestrator.store.memory import return_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

large = np.ones(2**21)
del large  # from now on glibc takes blocks of this size from its arenas
blocks = [np.ones(25_000) for _ in range(600)]
kept = blocks[::20]
del blocks
held = resident()
return_freed_memory()
print(held - resident())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")
def test_memory_freed_between_blocks_in_use_goes_back_to_the_system() -> None:
    """In a process of its own: what an allocator holds depends on all that ran before."""
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert float(run.stdout) > 60  # of 114 MB
