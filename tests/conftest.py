"""Shared fixtures. Threads are bounded before torch is imported: the suite runs on few cores."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["VTSWEEP_CACHE"] = str(Path(tempfile.gettempdir()) / f"vtsweep-test-cache-{os.getuid()}")

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from orchestrator.config.sweep import Sweep, make_sweep

if TYPE_CHECKING:
    from tests.faults.s3_server import S3Server


FUZZ = 25


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--attacks", type=int, default=4, help="seeded attacks on a whole study (with -m faults)")
    parser.addoption("--first-attack", type=int, default=0, help="seed of the first of them")
    parser.addoption(
        "--fuzz", type=int, default=FUZZ, help="altered inputs of each kind, drawn anew if not the default"
    )


# A machine that is busy makes an example slow, not wrong. What lands is judged on the same examples as the run before.
settings.register_profile("gate", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None)


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("search" if config.getoption("--fuzz") != FUZZ else "gate")


COCO = Path(__file__).parents[2] / "shared" / "data" / "coco_mini"
"""A real COCO folder beside the checkout, where there is one."""


@pytest.fixture
def coco_root() -> Path:
    if not (COCO / "annotations").is_dir():
        pytest.skip("needs a COCO folder beside the checkout (shared/data/coco_mini)")
    return COCO


@pytest.fixture(scope="module")
def s3_server() -> Iterator[S3Server]:
    """An S3 server on loopback that this process's environment names."""
    pytest.importorskip("s3fs")
    from tests.faults.s3_server import S3Server

    server = S3Server()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment:
            patch.setenv(name, value)
        yield server
    server.stop()


def tiny_study(storage: Path, *overrides: str, **sections: object) -> Sweep:
    """A study of a dozen small scenes on the shipped reference model, in this process."""
    base = {
        "model": {"name": "reference-joint"},
        "data": {"source": "scenes", "n_images": 12, "n_objects": [1, 30], "width": 112, "height": 112},
        "correlate": {"n_bootstrap": 20},
        "how": {"backend": "local", "batch_size": 6, "shard_size": 5, "torch_threads": 1},
    }
    study = {"name": "tiny", "storage": str(storage), "stages": ["capture", "correlate"], "base": base}
    return make_sweep({**study, **sections}, overrides)
