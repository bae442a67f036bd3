"""What a point means is settled once, before work; nothing in `how` changes a digest or a table."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from orchestrator.cluster import session as cluster_session
from orchestrator.cluster.placement import Node
from orchestrator.config import STAGES, HowConfig, RunConfig
from orchestrator.models import hub, identity
from orchestrator.store.filesystem import Storage
from orchestrator.store.resolved_point import ResolvedPoint
from orchestrator.study import resolve as resolving
from orchestrator.study.resolve import resolve_run
from orchestrator.study.run import run_study
from tests.conftest import tiny_study
from tests.points import run_capture

OTHER_HOW: dict[str, Any] = {
    "backend": "local",
    "batch_size": 3,
    "max_batch_tokens": 500,
    "shard_size": 7,
    "n_actors": 3,
    "max_actors": 5,
    "gpus_per_actor": 0.5,
    "cpus_per_actor": 2.0,
    "device_map": "auto",
    "weights_cache": "/var/tmp/weights",
    "torch_threads": 2,
    "concurrent_trials": 2,
    "gpus_per_trial": 0.5,
    "processes_per_trial": 2,
    "address": "10.0.0.1:6379",
    "object_store_gb": 1.0,
    "no_progress_timeout_s": 7.0,
    "max_retries": 1,
    "reuse_workers": False,
    "checkpoint_steps": 7,
    "gradient_checkpointing": True,
    "keep_adapters": False,
}
"""Another value of every field of `how`."""


def digests(run: RunConfig) -> dict[str, str]:
    point = resolve_run(run, Storage("nowhere"), *STAGES)
    return {name: stage.digest for name, stage in point.stages.items()}


def with_dtype(dtype: str) -> RunConfig:
    return RunConfig.model_validate({"model": {"name": "reference-joint", "dtype": dtype}})


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`gpus(n)`: this machine, and any cluster that is joined, has n GPUs."""

    def place(n: float) -> None:
        @contextmanager
        def session(_: HowConfig) -> Iterator[cluster_session.Cluster]:
            yield cluster_session.Cluster((Node(8.0, n),))

        monkeypatch.setattr(cluster_session, "local_node", lambda: Node(8.0, n))
        monkeypatch.setattr(cluster_session, "session", session)

    return place


@pytest.mark.parametrize("n_gpus", [0, 2])
@pytest.mark.parametrize("name", HowConfig.model_fields)
def test_nothing_in_how_changes_a_digest(name: str, n_gpus: int, gpus: Any) -> None:
    assert OTHER_HOW[name] != HowConfig.model_fields[name].default
    gpus(n_gpus)
    run = with_dtype("auto")
    other = run.model_copy(update={"how": HowConfig.model_validate({name: OTHER_HOW[name]})})
    assert digests(run) == digests(other)


def test_auto_is_in_no_digest_and_means_bfloat16_where_there_is_a_gpu(gpus: Any) -> None:
    for n, dtype in ((0, "float32"), (1, "bfloat16")):
        gpus(n)
        point = resolve_run(with_dtype("auto"), Storage("nowhere"), *STAGES)
        assert point.run.model.dtype == point.model["dtype"] == dtype
        assert digests(with_dtype("auto")) == digests(with_dtype(dtype))
        assert not [stage for stage in point.stages.values() if '"auto"' in json.dumps(dict(stage.what))]
    assert set(digests(with_dtype("float32")).values()).isdisjoint(digests(with_dtype("float16")).values())


def test_a_repository_without_a_pin_is_resolved_to_the_commit_it_stands_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else two workers, or a study resumed after an upload, would mix the weights of two commits."""
    run = RunConfig.model_validate({"model": {"name": "owner/model", "dtype": "float32"}})
    commits = iter(["a" * 40, "a" * 40, "b" * 40])
    monkeypatch.setattr(hub, "_newest_commit", lambda *_: next(commits))
    points = [resolve_run(run, Storage("nowhere"), "capture") for _ in range(3)]
    assert [point.run.model.revision for point in points] == ["a" * 40, "a" * 40, "b" * 40]
    first, again, later = (point.stages["capture"].digest for point in points)
    assert first == again != later
    monkeypatch.setattr(hub, "_newest_commit", lambda *_: None)
    assert resolve_run(run, Storage("nowhere"), "capture").model["revision"] == "unpinned"


def test_a_worker_that_receives_a_point_names_the_same_directories(tmp_path: Path) -> None:
    point = resolve_run(with_dtype("auto"), Storage(str(tmp_path)), *STAGES)
    again = ResolvedPoint.from_json(json.loads(json.dumps(point.as_json())))
    assert {name: (s.digest, s.store.uri) for name, s in again.stages.items()} == {
        name: (s.digest, s.store.uri) for name, s in point.stages.items()
    }
    assert again.run == point.run


def test_a_study_identifies_model_and_data_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fingerprint, make_source = resolving.fingerprint, resolving.make_source
    monkeypatch.setattr(identity, "fingerprint", lambda *_: pytest.fail("a model is identified after preflight"))
    monkeypatch.setattr(resolving, "fingerprint", lambda c: calls.append("model") or fingerprint(c))
    monkeypatch.setattr(resolving, "make_source", lambda c: calls.append("data") or make_source(c))
    run_study(tiny_study(tmp_path, axes={"correlate.seed": [0, 1, 2]}), quiet=True)
    assert sorted(calls) == ["data", "model"]


MEASURED = ["gini", "stable_rank", "effective_rank"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pl.DataFrame]:
    return captured(tmp_path_factory.mktemp("plain"))


def captured(folder: Path, **how: Any) -> dict[str, pl.DataFrame]:
    """Tables of a small capture of images of several sizes."""
    base = {
        "model": {"name": "reference-joint"},
        "data": {"source": "scenes", "n_images": 9, "n_objects": [1, 12], "width": 112, "height": 112},
        "capture": {"metrics": MEASURED, "spectrum": "exact", "layers": [0, 3, 6], "prompt": "how many ?"},
        "how": {"backend": "local", "torch_threads": 1, **how},
    }
    stage = run_capture(RunConfig.model_validate(base), Storage(str(folder)), quiet=True)
    return {name: stage.scan(name).collect() for name in ("images", "layer_metrics", "rejected")}


@pytest.mark.parametrize(
    "how", [{"batch_size": 2}, {"max_batch_tokens": 200}, {"shard_size": 4}, {"torch_threads": 2}], ids=str
)
def test_how_a_capture_is_done_changes_no_table(how: dict, plain: dict[str, pl.DataFrame], tmp_path: Path) -> None:
    """The order of additions may differ with the batch; nothing else."""
    for name, table in captured(tmp_path, **how).items():
        assert_frame_equal(table, plain[name], rel_tol=1e-4, abs_tol=1e-5)


def test_checks_of_a_study_of_a_shipped_model_import_neither_torch_nor_transformers() -> None:
    """Importing them takes 5 s, in which no worker has started."""
    code = (
        "import sys; from orchestrator.config.sweep import load_sweep; from orchestrator.study.run import with_inputs\n"
        "from orchestrator.study.preflight import preflight; from orchestrator.study.resources import check_resources\n"
        "sweep = load_sweep('sweeps/quickstart.yaml', ['storage=nowhere']); names = with_inputs(sweep.study.stages)\n"
        "check_resources(sweep, names); preflight(sweep, names)\n"
        "heavy = {'torch', 'transformers'} & sys.modules.keys(); assert not heavy, heavy"
    )
    root = Path(__file__).parents[1]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-1500:]
