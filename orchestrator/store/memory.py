"""How much memory this process and what it starts may take: the machine's, or a smaller limit set for them."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

from orchestrator.config import HowConfig

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class MemoryCap:
    """The smallest limit."""

    n_bytes: int
    of: str
    """What sets it: `memory of this machine`, a container's limit, `ulimit -v`."""
    n_used: int = 0
    """Bytes that count against a container's limit now."""

    @property
    def gb(self) -> float:
        return self.n_bytes / 1e9


def memory_cap(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> MemoryCap:
    """The memory that this process and what it starts may take.

    Args:
        cgroups: where control groups of either version are mounted.
        membership: the file that says which this process is in.
    """
    caps = [MemoryCap(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "memory of this machine")]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        caps.append(MemoryCap(soft, "address space that ulimit -v allows"))
    for folder, limit, used in _groups(cgroups, membership):
        n_bytes = _number(folder / limit)
        if n_bytes is not None:
            caps.append(MemoryCap(n_bytes, f"memory limit of this container ({folder / limit})",
                                   _number(folder / used) or 0))  # fmt: skip
    return min(caps, key=lambda cap: cap.n_bytes)


def free_memory() -> int:
    """Bytes that new arrays of this process can have."""
    import psutil

    cap, free = memory_cap(), int(psutil.virtual_memory().available)
    return min(free, cap.n_bytes - cap.n_used) if cap.n_used else min(free, cap.n_bytes)


def _groups(cgroups: Path, membership: Path) -> list[tuple[Path, str, str]]:
    """Folder, file of the limit and file of the use of every group that bounds this process."""
    groups = []
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers == "":  # version 2
            top, names = cgroups, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            top, names = cgroups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        inner = top / place.lstrip("/")
        # In a container the path may be the host's, and its own group is mounted at the top.
        groups += [(folder, *names) for folder in (inner, *inner.parents) if folder.is_relative_to(top)]
    return groups


def _number(file: Path) -> int | None:
    """The number in a file; None for `max` and where there is no such file."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def object_store_gb(how: HowConfig, total_gb: float | None = None) -> float:
    """Object store of a local Ray, GB: as asked, else an eighth of the memory, between 0.2 and 8, within `/dev/shm`."""
    if how.object_store_gb:
        return how.object_store_gb
    total = memory_cap().gb if total_gb is None else total_gb
    shm = os.statvfs("/dev/shm") if Path("/dev/shm").is_dir() else None
    room = shm.f_bavail * shm.f_frsize * 0.8 / 1e9 if shm else total
    return max(0.2, min(total / 8, 8.0, room))


def return_freed_memory() -> None:
    """Give freed memory back to the system, on Linux with glibc; elsewhere nothing happens.

    Blocks of 100 KB to 32 MB, as inputs and activations are, stay in the allocator's 64 MB arenas when freed, and an
    arena shrinks at its end only: without this a process that runs many trials grows by hundreds of megabytes.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        gc.collect()
        trim(0)
