"""The memory cap is the smallest limit that holds for this process, and is named before work."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cli import app
from orchestrator.cluster.placement import Pool
from orchestrator.errors import ResourceError
from orchestrator.store.memory import MemoryCap, memory_cap
from orchestrator.study import estimate, resources
from orchestrator.study.estimate import RAY_GB, Machine, memory_problems
from orchestrator.study.run import run_study
from tests.conftest import tiny_study

GB = 10**9
SMALL = Machine(2, 1.0, 0, "", None, 1e11, "memory limit of this container (/sys/fs/cgroup/memory.max)")


def groups(root: Path, version: int, limits: dict[str, str]) -> tuple[Path, Path]:
    """Control groups below `root`: folder -> limit; this process is in `a/b`."""
    membership = root / "cgroup"
    membership.write_text("0::/a/b\n" if version == 2 else "5:cpu:/x\n4:memory:/a/b\n")
    for folder, limit in limits.items():
        place = root / "fs" / ("" if version == 2 else "memory") / folder
        place.mkdir(parents=True, exist_ok=True)
        (place / ("memory.max" if version == 2 else "memory.limit_in_bytes")).write_text(limit + "\n")
        (place / ("memory.current" if version == 2 else "memory.usage_in_bytes")).write_text(f"{GB // 8}\n")
    return root / "fs", membership


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"a/b": str(2 * GB), "a": str(GB), "": "max"}, GB),
        ({"a/b": str(GB), "a": "max"}, GB),
        ({"": str(GB // 2)}, GB // 2),  # a container's own group at the top, the path the host's
        ({"a/b": "max", "other": str(GB // 4)}, None),
        ({"a": str(2**63 - 4096)}, None),
    ],
)
def test_the_smallest_limit_of_the_groups_around_this_process_counts(
    tmp_path: Path, version: int, limits: dict[str, str], expected: int | None
) -> None:
    found = memory_cap(*groups(tmp_path, version, limits))
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert found.n_bytes == (machine if expected is None else expected)
    assert ("container" in found.of) == (expected is not None)
    assert found.n_used == (0 if expected is None else GB // 8)


def test_an_address_space_limit_counts_and_a_machine_without_groups_has_its_own_memory(tmp_path: Path) -> None:
    assert memory_cap(tmp_path, tmp_path / "none").of == "memory of this machine"
    script = "from orchestrator.store.memory import memory_cap; print(memory_cap())"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (6 * GB, 6 * GB))

    done = subprocess.run([sys.executable, "-c", script], preexec_fn=limit, capture_output=True, text=True, check=True)
    assert "ulimit -v" in done.stdout


def test_what_does_not_fit_a_container_is_refused_with_the_cap_and_what_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = tiny_study(tmp_path, "how.backend=ray")
    (said,) = memory_problems([sweep.points[0].run], [Pool("capture actors", 2, 1.0)], SMALL)
    for word in ("2 x capture actors", "Ray with its object store", "container", "1.0 GB", "how.backend=local"):
        assert word in said
    assert memory_problems([sweep.points[0].run], [], SMALL) == [], "one process without Ray fits"
    roomy = replace(SMALL, memory_gb=RAY_GB + 0.2 + 0.95)
    assert memory_problems([sweep.points[0].run], [Pool("capture actors", 2, 1.0)], roomy) == []
    monkeypatch.setattr(estimate, "this_machine", lambda: SMALL)
    with pytest.raises(ResourceError, match="container"):
        run_study(sweep, quiet=True)
    assert not list(tmp_path.glob("capture/*")), "refused before work"
    assert resources.describe_resources(sweep, ["capture"])[1] == [
        said.replace("2 x", "1 x").replace("0.8 GB, R", "0.4 GB, R")
    ]


def test_memory_that_runs_out_all_the_same_is_an_error_that_names_the_cap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_much(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 9.1 TiB for an array")

    monkeypatch.setattr("orchestrator.store.study_record.Study.load", too_much)
    monkeypatch.setattr(
        "orchestrator.store.memory.memory_cap", lambda: MemoryCap(GB, "memory limit of this container (x)")
    )
    with pytest.raises(SystemExit) as ended:
        app.main(["report", str(tmp_path)])
    assert ended.value.code == 6
    told = capsys.readouterr().err
    assert "Unable to allocate" in told
    assert "container (x) is 1.0 GB" in told
