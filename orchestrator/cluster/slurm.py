"""`vtsweep slurm`: a study as an sbatch script, for Slurm clusters.

The script starts Ray on the job's nodes, runs the study and requeues the job when the time limit is near: the same
command resumes. Ports and temporary folders are per job, so that several jobs can share a node.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.cluster.submit import check_job_storage, check_no_secrets
from orchestrator.errors import ConfigError

WARNING_SECONDS = 180
"""Seconds before the time limit at which Slurm sends SIGTERM; finished shards are kept and the job is requeued."""


@dataclass(frozen=True)
class SlurmJob:
    """Options of the Slurm job.

    `time` is a Slurm time (`12:00:00`, `2-00:00:00`, minutes). `setup` is a shell line that makes `vtsweep` available
    on each node, as `source /shared/venv/bin/activate`. `extra` are further `#SBATCH` options, as `--constraint=a100`.
    """

    nodes: int = 1
    cpus: int = 8
    gpus: int = 0
    time: str = "12:00:00"
    memory: str = ""
    partition: str = ""
    account: str = ""
    setup: str = ""
    extra: tuple[str, ...] = ()


def slurm_script(file: str, overrides: Sequence[str], job: SlurmJob) -> str:
    """The script as text, for `sbatch`.

    Raises:
        ConfigError: the study is invalid, its storage is not shared by the nodes, or a value is not valid for Slurm.
    """
    from orchestrator.config.sweep import load_sweep

    sweep = load_sweep(file, overrides)
    check_job_storage(sweep.study.storage)
    check_no_secrets(overrides, sweep.text)
    _check(job)
    command = ["vtsweep", "run", str(Path(file).absolute()), *overrides]
    options = {
        "job-name": f"vtsweep-{sweep.study.name}",
        "nodes": str(job.nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(job.cpus),
        "gpus-per-node": str(job.gpus) if job.gpus else "",
        "mem": job.memory,
        "time": job.time,
        "partition": job.partition,
        "account": job.account,
        "signal": f"B:TERM@{WARNING_SECONDS}",
        "output": f"vtsweep-{sweep.study.name}-%j.log",
        "open-mode": "append",
    }
    lines = [f"#SBATCH --{key}={value}" for key, value in options.items() if value]
    lines += ["#SBATCH --requeue", *(f"#SBATCH {option}" for option in job.extra)]
    return _SCRIPT.format(
        options="\n".join(lines), setup=job.setup or ":", command=shlex.join(command), gpus=job.gpus, cpus=job.cpus
    )


def _check(job: SlurmJob) -> None:
    for name, value, pattern in (
        ("time", job.time, r"(\d+-)?\d+(:\d{1,2}){0,2}"),
        ("memory", job.memory, r"(\d+[KMGT]?)?"),
        ("partition", job.partition, r"[\w.,-]*"),
        ("account", job.account, r"[\w.-]*"),
    ):
        if not re.fullmatch(pattern, value):
            raise ConfigError(
                f"--{name} {value!r}: not a valid value for Slurm, for example --time 12:00:00 --memory 64G"
            )
    for name, number, least in (("nodes", job.nodes, 1), ("cpus", job.cpus, 1), ("gpus", job.gpus, 0)):
        if number < least:
            raise ConfigError(f"--{name} {number}: expected at least {least}")
    for option in job.extra:
        if not option.startswith("--") or "\n" in option:
            raise ConfigError(f"--extra {option!r}: expected an option of sbatch, for example --constraint=a100")
    if "\n" in job.setup:
        raise ConfigError("--setup: expected one line of shell")


_SCRIPT = """#!/usr/bin/env bash
{options}
# Written by `vtsweep slurm`; submit with:  sbatch SCRIPT
set -euo pipefail
cd "${{SLURM_SUBMIT_DIR:-$PWD}}"
{setup}

# Per job: several jobs may share a node.
export RAY_TMPDIR="${{SLURM_TMPDIR:-/tmp}}/ray-$SLURM_JOB_ID"
mkdir -p "$RAY_TMPDIR"
port=$((20000 + SLURM_JOB_ID % 10000))
nodes=${{SLURM_JOB_NUM_NODES:-1}}
resources=(--num-cpus={cpus} --num-gpus={gpus})
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=$(srun --nodes=1 --ntasks=1 --nodelist="${{hosts[0]}}" hostname --ip-address)
head=${{head%% *}}
export RAY_ADDRESS="$head:$port"
study=({command})

again=no
workers=()
running=
# shellcheck disable=SC2329 # called by the trap
finish() {{ # near the time limit: stop the study, which keeps finished shards, and requeue the job
  again=yes
  [ -z "$running" ] || kill -TERM "$running" 2>/dev/null || true
}}
trap finish TERM USR1

if ray symmetric-run --help >/dev/null 2>&1; then
  srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 \\
    ray symmetric-run --address "$RAY_ADDRESS" --min-nodes "$nodes" "${{resources[@]}}" -- "${{study[@]}}" &
  running=$!
else # an older Ray: first the head, then the other nodes, then the study on the head node
  srun --overlap --nodes=1 --ntasks=1 --nodelist="${{hosts[0]}}" \\
    ray start --head --node-ip-address="$head" --port="$port" --block "${{resources[@]}}" &
  workers+=($!)
  sleep "${{VTSWEEP_HEAD_SECONDS:-15}}"
  if [ "$nodes" -gt 1 ]; then
    others=$(IFS=,; echo "${{hosts[*]:1}}")
    srun --overlap --nodes=$((nodes - 1)) --ntasks=$((nodes - 1)) --nodelist="$others" \\
      ray start --address="$RAY_ADDRESS" --block "${{resources[@]}}" &
    workers+=($!)
    sleep "${{VTSWEEP_HEAD_SECONDS:-15}}"
  fi
  srun --overlap --nodes=1 --ntasks=1 --nodelist="${{hosts[0]}}" "${{study[@]}}" &
  running=$!
fi

code=0
wait "$running" || code=$?
while kill -0 "$running" 2>/dev/null; do # a signal ends `wait` before the study has ended
  code=0
  wait "$running" || code=$?
done
for worker in "${{workers[@]+"${{workers[@]}}"}}"; do kill "$worker" 2>/dev/null || true; done
if [ "$again" = yes ] && [ "$code" -ne 0 ]; then
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$code"
"""
