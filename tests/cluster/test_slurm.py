"""The sbatch script: checked by shellcheck, and run against stand-ins of Slurm's and Ray's commands."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.cluster.slurm import SlurmJob, slurm_script
from orchestrator.errors import ConfigError

ROOT = Path(__file__).parents[2]
STAND_INS = {
    # `srun` drops its own options and runs the rest; every call is logged with what it was asked.
    "srun": 'echo "srun $*" >>"$CALLS"\nwhile [[ "${1:-}" == --* ]]; do shift; done\nexec "$@"',
    "scontrol": 'echo "scontrol $*" >>"$CALLS"\nif [ "$1" = show ]; then printf "n1\\nn2\\n"; fi',
    "hostname": 'echo "10.0.0.7 fe80::1"',
    "ray": 'if [ "$*" = "symmetric-run --help" ]; then exit "$OLD_RAY"; fi\necho "ray $*" >>"$CALLS"\n'
    'if [ "$1" = start ]; then exec sleep 60; fi\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"',
    "vtsweep": 'echo "vtsweep $* RAY_ADDRESS=$RAY_ADDRESS" >>"$CALLS"\ntrap "echo stopped >>$CALLS; exit 143" TERM\n'
    'for _ in $(seq "$STUDY_TENTHS"); do sleep 0.1; done\nexit "$STUDY_CODE"',
}


@pytest.fixture
def script(tmp_path: Path) -> Path:
    text = slurm_script(
        "sweeps/quickstart.yaml",
        [f"storage={tmp_path}/results", "data.n_images=9"],
        SlurmJob(nodes=2, cpus=4, gpus=1, partition="gpu", setup="true", extra=("--constraint=a100",)),
    )
    (tmp_path / "job.sh").write_text(text)
    return tmp_path / "job.sh"


def start(script: Path, **environment: str) -> subprocess.Popen[str]:
    tools = script.parent / "bin"
    tools.mkdir()
    for name, body in STAND_INS.items():
        (tools / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tools / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]",
           "SLURM_TMPDIR": str(script.parent), "SLURM_SUBMIT_DIR": str(script.parent)}  # fmt: skip
    told = {"CALLS": str(script.parent / "calls"), "OLD_RAY": "0", "STUDY_CODE": "0", "STUDY_TENTHS": "1",
            "VTSWEEP_HEAD_SECONDS": "0.1"}  # fmt: skip
    path = f"{tools}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", str(script)], env={**os.environ, **job, **told, **environment, "PATH": path}, text=True
    )


def calls(script: Path) -> list[str]:
    return (script.parent / "calls").read_text().splitlines()


def test_the_script_passes_shellcheck(script: Path) -> None:
    tool = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if tool is None:
        pytest.skip("needs shellcheck (extra `test`)")
    found = subprocess.run([tool, str(script)], capture_output=True, text=True, check=False)
    assert found.stdout == ""
    assert found.returncode == 0


def test_options_stand_where_slurm_reads_them(script: Path) -> None:
    lines = script.read_text().splitlines()
    options = [line for line in lines[1:] if line.startswith("#SBATCH")]
    assert lines[1 : 1 + len(options)] == options  # Slurm stops reading at the first command
    assert "#SBATCH --nodes=2" in options
    assert "#SBATCH --gpus-per-node=1" in options
    assert "#SBATCH --requeue" in options
    assert "#SBATCH --constraint=a100" in options


def test_the_study_runs_once_on_all_nodes_by_symmetric_run(script: Path) -> None:
    assert start(script).wait(30) == 0
    said = calls(script)
    (run,) = [line for line in said if line.startswith("ray symmetric-run")]
    assert "--address 10.0.0.7:23456 --min-nodes 2 --num-cpus=4 --num-gpus=1 -- vtsweep run" in run
    (study,) = [line for line in said if line.startswith("vtsweep run")]
    assert study.endswith("data.n_images=9 RAY_ADDRESS=10.0.0.7:23456")
    assert (script.parent / "ray-123456").is_dir()


def test_an_older_ray_gets_a_head_then_workers_then_the_study(script: Path) -> None:
    assert start(script, OLD_RAY="2").wait(30) == 0
    said = [line for line in calls(script) if line.startswith(("ray", "vtsweep"))]
    assert said[0].startswith("ray start --head --node-ip-address=10.0.0.7 --port=23456")
    assert said[1].startswith("ray start --address=10.0.0.7:23456")
    assert said[2].startswith("vtsweep run")


def test_a_failed_study_is_a_failed_job_and_is_not_queued_again(script: Path) -> None:
    assert start(script, STUDY_CODE="7").wait(30) == 7
    assert not any("requeue" in line for line in calls(script))


def test_near_the_time_limit_the_study_is_stopped_and_the_job_queued_again(script: Path) -> None:
    job = start(script, STUDY_TENTHS="200")
    for _ in range(100):
        if (script.parent / "calls").exists() and any(line.startswith("vtsweep") for line in calls(script)):
            break
        time.sleep(0.1)
    job.send_signal(signal.SIGTERM)
    assert job.wait(30) == 0
    assert calls(script)[-2:] == ["stopped", "scontrol requeue 123456"]


@pytest.mark.parametrize(
    ("job", "word"),
    [
        (SlurmJob(time="soon"), "--time"),
        (SlurmJob(memory="lots"), "--memory"),
        (SlurmJob(nodes=0), "--nodes"),
        (SlurmJob(extra=("rm -rf",)), "--extra"),
        (SlurmJob(partition="a b; rm"), "--partition"),
    ],
)
def test_what_slurm_would_not_take_is_refused(tmp_path: Path, job: SlurmJob, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        slurm_script("sweeps/quickstart.yaml", [f"storage={tmp_path}"], job)


def test_results_on_one_node_alone_are_refused() -> None:
    with pytest.raises(ConfigError, match="relative"):
        slurm_script("sweeps/quickstart.yaml", ["storage=results"], SlurmJob())


def test_the_skypilot_file_names_what_skypilot_takes_and_its_shell_is_sound(tmp_path: Path) -> None:
    import yaml

    task = yaml.safe_load((ROOT / "deploy" / "skypilot.yaml").read_text())
    known = {"name", "num_nodes", "resources", "workdir", "envs", "setup", "run"}
    assert set(task) <= known
    assert task["envs"]["STORAGE"] == ""
    for part in ("setup", "run"):
        (tmp_path / part).write_text(task[part])
        assert subprocess.run(["bash", "-n", str(tmp_path / part)], check=False).returncode == 0


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_an_image_copies_every_package_that_is_installed(name: str) -> None:
    text = (ROOT / "deploy" / name).read_text()
    for package in ("vtsweep", "orchestrator", "LICENSE", "README.md", "pyproject.toml"):
        assert re.search(rf"^COPY .*\b{re.escape(package)}", text, re.MULTILINE), package
