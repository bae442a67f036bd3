"""Submitting a study: what is packed, what is refused, and a real job on a local head."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import yaml

from orchestrator.cluster.submit import check_job_storage, exit_code, job_environment, pack, submit
from orchestrator.errors import ConfigError, ResourceError
from orchestrator.store.filesystem import Storage
from orchestrator.store.load_stage import load_stage

ROOT = Path(__file__).parents[2]
STUDY = {
    "name": "job",
    "stages": ["capture"],
    "track": {"enabled": False},
    "base": {
        "data": {"source": "scenes", "n_images": 12, "n_objects": [1, 9], "width": 112, "height": 112},
        "capture": {"metrics": ["gini"]},
        "how": {"batch_size": 6, "shard_size": 6, "n_actors": 1},
    },
}


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(STUDY))
    return file


def test_the_upload_is_the_package_and_the_sweep_file(tmp_path, sweep_file):
    folder = tmp_path / "upload"
    folder.mkdir()
    pack(folder, sweep_file)
    assert {file.name for file in folder.iterdir()} == {"orchestrator", "sweep.yaml"}
    assert (folder / "orchestrator" / "reference" / "checkpoints" / "reference-joint" / "model.safetensors").is_file()
    assert not list(folder.rglob("__pycache__"))
    assert sum(file.stat().st_size for file in folder.rglob("*")) < 40e6


def test_relative_storage_is_refused_because_a_job_s_folder_is_temporary():
    for storage in ("s3://bucket/results", "/mnt/shared/results"):
        check_job_storage(storage)
    with pytest.raises(ConfigError, match="results would be lost"):
        check_job_storage("results")


def test_secrets_are_not_passed_as_environment(monkeypatch):
    monkeypatch.setenv("HF_HOME", "/mnt/hf")
    assert job_environment(["HF_HOME", "A=b=c"]) == {"HF_HOME": "/mnt/hf", "A": "b=c"}
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "WANDB_API_KEY"):
        with pytest.raises(ConfigError, match="looks like a secret") as caught:
            job_environment([f"{name}=hunter2"])
        assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError, match="not set here"):
        job_environment(["VTSWEEP_SURELY_NOT_SET"])
    with pytest.raises(ConfigError, match="expected NAME=VALUE"):
        job_environment(["=x"])


def test_an_exit_code_is_never_zero_for_a_job_that_did_not_succeed():
    assert exit_code("SUCCEEDED", 0) == 0
    assert exit_code("FAILED", 7) == 7
    assert exit_code("FAILED", 0) == 1
    assert exit_code("STOPPED", None) == 1


def test_no_job_server_is_a_resource_error(sweep_file, tmp_path):
    with pytest.raises(ResourceError, match=r"no job server answers.*--address"):
        submit(str(sweep_file), [f"storage={tmp_path}/out"], address="http://127.0.0.1:9")


# ---------------------------------------------------------------- a real head


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def head(tmp_path_factory, s3_server):  # noqa: ARG001
    """A head as `ray start --head` makes it, with token authentication, on loopback.

    Credentials of the object store are in its environment, as docs/cluster.md says; jobs inherit them.
    """
    port, dashboard = free_port(), free_port()
    token = tmp_path_factory.mktemp("token") / "auth_token"
    token.write_text("0123456789abcdef" * 4)
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    # As after `source .venv/bin/activate`: the job's `python` is the one with the dependencies.
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    env.pop("RAY_AUTH_TOKEN", None)
    env.pop("RAY_ADDRESS", None)
    temporary = f"/tmp/vtsweep-head-{port}"
    command = ["ray", "start", "--head", "--block", "--num-cpus=4", "--object-store-memory=300000000"]
    command += [f"--port={port}", f"--dashboard-port={dashboard}", "--node-ip-address=127.0.0.1"]
    command += ["--dashboard-host=127.0.0.1", f"--temp-dir={temporary}", "--include-dashboard=true"]
    command += [f"--dashboard-agent-listen-port={free_port()}"]  # the default one may be another Ray's on this machine
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name(command[0])), *command[1:]],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{dashboard}"
    ready = [
        sys.executable,
        "-c",
        "import sys\nfrom orchestrator.cluster.submit import _connect\n_connect(sys.argv[1])",
        address,
    ]
    deadline = time.monotonic() + 200
    while subprocess.run(ready, env=env, cwd=ROOT, capture_output=True, check=False).returncode:
        if time.monotonic() > deadline or process.poll() is not None:
            pytest.fail("the head did not start")
        time.sleep(1)
    yield address, env
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


SUBMIT = """
import sys
from orchestrator.cluster.submit import submit
sys.exit(submit(sys.argv[1], sys.argv[3:], address=sys.argv[2]).exit_code)
"""


def run_job(head, sweep_file: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    address, env = head
    command = [sys.executable, "-c", SUBMIT, str(sweep_file), address, *overrides]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.ray
def test_a_job_fails_with_its_reason_and_the_same_study_then_succeeds(head, sweep_file, s3_server):
    """With results on S3."""
    storage = Storage(f"{s3_server.bucket()}/out")
    failed = run_job(head, sweep_file, f"storage={storage.uri}", "how.n_actors=50")
    assert failed.returncode == 6, failed.stdout + failed.stderr
    assert "how.n_actors" in failed.stdout
    done = run_job(head, sweep_file, f"storage={storage.uri}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "images" in done.stdout, "progress comes as lines"
    (capture,) = storage.files("capture")
    found = load_stage(storage, "capture", capture)
    assert len(found.finished_shards()) == 2
    assert found.scan("images").collect().height == 12
    secret = "0123456789abcdef"
    assert secret not in done.stdout + done.stderr
    assert not any(secret.encode() in storage.fs.cat_file(file) for file in storage.fs.find(storage.path("")))


def ray_job(head, *words: str) -> subprocess.CompletedProcess[str]:
    """`ray job WORDS`, typed in the project's root."""
    address, env = head
    command = [str(Path(sys.executable).with_name("ray")), "job", *words[:1], f"--address={address}", *words[1:]]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.ray
def test_ray_job_submit_as_documented_stopped_and_submitted_again(head, tmp_path):
    """The literal command; a stopped job keeps its finished shards, and the next one adds the others."""
    file, storage = tmp_path / "study.yaml", tmp_path / "out"
    study = {**STUDY, "base": {**STUDY["base"], "data": {**STUDY["base"]["data"], "n_images": 3000}}}
    file.write_text(yaml.safe_dump(study))
    job = [
        "--working-dir",
        ".",
        "--",
        "python",
        "-m",
        "jobs.study",
        str(file),
        f"storage={storage}",
        "how.shard_size=100",
    ]
    started = ray_job(head, "submit", "--no-wait", "--submission-id", "first", *job)
    assert started.returncode == 0, started.stdout + started.stderr
    deadline = time.monotonic() + 120
    while len(list(storage.glob("capture/*/images/*.parquet"))) < 3:
        assert time.monotonic() < deadline, ray_job(head, "logs", "first").stdout
        time.sleep(0.2)
    stopped = ray_job(head, "stop", "first")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    before = {table: table.stat().st_mtime_ns for table in storage.glob("capture/*/images/*.parquet")}
    assert 3 <= len(before) < 30
    assert not list(storage.glob("capture/*/_SUCCESS"))
    again = ray_job(head, "submit", "--submission-id", "second", *job)
    assert again.returncode == 0, again.stdout + again.stderr
    after = {table: table.stat().st_mtime_ns for table in storage.glob("capture/*/images/*.parquet")}
    assert len(after) == 30
    assert len([table for table in before if before[table] != after[table]]) <= 2, "those in hand at the stop, at most"
    found = pl.concat([pl.read_parquet(table) for table in after])
    assert found["image_id"].n_unique() == found.height == 3000
