"""A study as a job on a Ray cluster: pack what it needs, submit, follow its log, return its exit code."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import ConfigError, ResourceError
from orchestrator.scrub import has_secret, scrub

SWEEP_FILE = "sweep.yaml"
"""Name of the sweep file in the upload."""
_PASSED = {"PYTHONUNBUFFERED": "1", "RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}
_READY_S = 60.0
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|(API|ACCESS)_?KEY", re.IGNORECASE)


@dataclass(frozen=True)
class Submission:
    """A job that is running or has ended."""

    job_id: str
    address: str
    status: str
    exit_code: int


def submit(
    file: str,
    overrides: Sequence[str] = (),
    *,
    address: str | None = None,
    command: str = "run",
    env: Sequence[str] = (),
    follow: bool = True,
) -> Submission:
    """Run `vtsweep COMMAND FILE OVERRIDES` on a cluster.

    The package and the sweep file are uploaded, nothing else. What an interrupted or stopped job finished lies in the
    study's storage; submitting the same study again resumes it.

    Args:
        file: sweep file.
        overrides: `key=value`, as for `vtsweep run`.
        address: the cluster's job server; `RAY_API_SERVER_ADDRESS`, else `http://127.0.0.1:8265`, when absent.
        command: `vtsweep` command to run there.
        env: `NAME=VALUE`, or `NAME` to pass on this process's value. Not for secrets: a job's environment can be read
            by anyone who can see the job.
        follow: print the job's log until it ends; Ctrl-C leaves the job running.

    Returns:
        the job; `exit_code` is its own when it was followed to its end, else 0.

    Raises:
        ConfigError: the study is wrong, or keeps its results where the cluster cannot.
        ResourceError: no job server answers.
    """
    from orchestrator.config.sweep import load_sweep

    sweep = load_sweep(file, overrides)
    check_job_storage(sweep.study.storage)
    check_no_secrets(overrides, sweep.text)
    variables = {**_PASSED, **job_environment(env)}
    client, where = _connect(address)
    with tempfile.TemporaryDirectory(prefix="vtsweep-job-") as folder:
        pack(Path(folder), Path(file))
        job = {
            "entrypoint": shlex.join(["python", "-m", "orchestrator", command, SWEEP_FILE, *overrides]),
            "submission_id": f"vtsweep-{sweep.study.name}-{secrets.token_hex(4)}",
            "runtime_env": {"working_dir": folder, "env_vars": variables},
            "metadata": {"study": sweep.study.name},
        }
        job_id = _submit(client, job, where)
    if not follow:
        return Submission(job_id, where, "SUBMITTED", 0)
    return _follow(client, job_id, where)


def check_job_storage(storage: str) -> None:
    """Refuse a relative folder: a job runs in a temporary copy of the upload, which goes when the job does.

    Raises:
        ConfigError: with the fix.
    """
    if "://" not in storage and not Path(storage).is_absolute():
        raise ConfigError(
            f"storage {storage!r} is relative, and a job's working folder is temporary: its results would be lost. "
            "Use an absolute path that every node mounts, or an object store, for example storage=s3://bucket/vtsweep"
        )


def check_no_secrets(overrides: Sequence[str], text: str) -> None:
    """Refuse arguments and a sweep file with credentials: a job's command and files can be read by all who see jobs.

    Raises:
        ConfigError: naming the argument, without its value, or the line of the file.
    """
    places = [override.partition("=")[0] for override in overrides if has_secret(override)]
    places += [f"line {n} of the sweep file" for n, line in enumerate(text.splitlines(), 1) if has_secret(line)]
    if places:
        raise ConfigError(
            f"{', '.join(places)}: holds a credential, and everyone who sees the job could read it. Set it on the "
            "nodes instead, for example MLFLOW_TRACKING_USERNAME and _PASSWORD (docs/cluster.md, Secrets)"
        )


def job_environment(env: Sequence[str]) -> dict[str, str]:
    """Environment variables asked for, by name.

    Raises:
        ConfigError: a name that is not set here, is malformed, or looks like a secret.
    """
    found: dict[str, str] = {}
    for text in env:
        name, sign, value = text.partition("=")
        if not name.isidentifier():
            raise ConfigError(f"--env {scrub(text)!r}: expected NAME=VALUE or NAME")
        if _SECRET_NAME.search(name):
            raise ConfigError(
                f"--env {name}: looks like a secret, and a job's environment is shown to everyone who sees the job. "
                "Set it on the nodes instead (docs/cluster.md, Secrets)"
            )
        if sign and has_secret(value):
            raise ConfigError(f"--env {name}: its value looks like a credential; set it on the nodes instead")
        if not sign and name not in os.environ:
            raise ConfigError(f"--env {name}: not set here; give it a value with {name}=VALUE")
        found[name] = value if sign else os.environ[name]
    return found


def pack(folder: Path, sweep_file: Path) -> None:
    """Copy the package and the sweep file to `folder`: all that a job needs beside its installed dependencies."""
    package = Path(__file__).parents[1]
    shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    shutil.copyfile(sweep_file, folder / SWEEP_FILE)


def _connect(address: str | None) -> tuple[Any, str]:
    from ray.job_submission import JobSubmissionClient

    where = address or os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"
    try:
        return JobSubmissionClient(where), where
    except Exception as error:  # Ray raises connection, authentication and version problems as unrelated types
        reason = (scrub(str(error)).strip().splitlines() or [type(error).__name__])[0]
        raise ResourceError(
            f"no job server answers at {where}: {reason} Start a cluster (docs/cluster.md) and name its dashboard with "
            "--address http://HOST:8265. If it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH."
        ) from error


def _submit(client: Any, job: Mapping[str, Any], where: str) -> str:
    """Submit; a head that has only just started is given a minute to be ready for jobs."""
    deadline = time.monotonic() + _READY_S
    while True:
        try:
            return str(client.submit_job(**job))
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise ResourceError(f"{where} does not take the job: {scrub(str(error)).strip()}") from error
            time.sleep(2.0)


def _follow(client: Any, job_id: str, where: str) -> Submission:
    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    say(f"job {job_id} on {where}; stop it with: ray job stop --address {where} {job_id}")
    try:
        asyncio.run(_print_log(client, job_id))
    except KeyboardInterrupt:
        say(f"left running; follow it again with: ray job logs --follow --address {where} {job_id}")
        return Submission(job_id, where, "RUNNING", 0)
    details = client.get_job_info(job_id)
    status = str(details.status.value)
    code = exit_code(status, getattr(details, "driver_exit_code", None))
    # Ray's message repeats the log below its first line.
    reason = scrub(details.message or "").partition("\n")[0] if code else ""
    say(f"job {job_id}: {status.lower()}" + (f": {reason}" if reason else ""))
    if code:
        say("what it finished is kept; the same command resumes it")
    return Submission(job_id, where, status, code)


async def _print_log(client: Any, job_id: str) -> None:
    async for lines in client.tail_job_logs(job_id):
        print(lines, end="", flush=True)


def exit_code(status: str, driver_code: int | None) -> int:
    """What this process should return for a job that ended with `status`."""
    if status == "SUCCEEDED":
        return 0
    return driver_code if driver_code else 1
