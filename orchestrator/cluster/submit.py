"""A study as a job on a Ray cluster: pack, submit, follow the log, return the exit code."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import ConfigError, ResourceError
from orchestrator.scrub import has_secret, scrub
from orchestrator.store.scratch import temporary_folder

SWEEP_FILE = "sweep.yaml"
"""Name of the uploaded sweep file."""
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

    Only the package and the sweep file are uploaded. Finished work of an interrupted job is in the study's storage;
    submitting the same study again resumes it.

    Args:
        file: sweep file.
        overrides: `key=value`, as for `vtsweep run`.
        address: the cluster's job server; None for `RAY_API_SERVER_ADDRESS`, else `http://127.0.0.1:8265`.
        command: `vtsweep` command to run there.
        env: `NAME=VALUE`, or `NAME` to pass on the value in this process. Not for secrets: a job's environment can be
            read by anyone who can see the job.
        follow: print the job's log until it ends; Ctrl-C leaves the job running.

    Returns:
        the job; `exit_code` is the job's if it was followed to its end, else 0.

    Raises:
        ConfigError: the study is invalid, or its storage is not reachable from the cluster.
        ResourceError: no job server answers.
    """
    from orchestrator.config.sweep import load_sweep

    sweep = load_sweep(file, overrides)
    check_job_storage(sweep.study.storage)
    check_no_secrets(overrides, sweep.text)
    variables = {**_PASSED, **job_environment(env)}
    client, server = _connect(address)
    with temporary_folder("job-") as folder:
        pack(Path(folder), Path(file))
        job = {
            "entrypoint": shlex.join(["python", "-m", "orchestrator", command, SWEEP_FILE, *overrides]),
            "submission_id": f"vtsweep-{sweep.study.name}-{secrets.token_hex(4)}",
            "runtime_env": {"working_dir": folder, "env_vars": variables},
            "metadata": {"study": sweep.study.name},
        }
        job_id = _submit(client, job, server)
    if not follow:
        return Submission(job_id, server, "SUBMITTED", 0)
    return _follow(client, job_id, server)


def check_job_storage(storage: str) -> None:
    """Reject a relative folder: a job runs in a temporary copy of the upload, which is removed with the job.

    Raises:
        ConfigError: the storage is relative.
    """
    if "://" not in storage and not Path(storage).is_absolute():
        raise ConfigError(
            f"storage {storage!r} is relative, and a job's working folder is temporary: its results would be lost. "
            "Use an absolute path that every node mounts, or an object store, for example storage=s3://bucket/vtsweep"
        )


def check_no_secrets(overrides: Sequence[str], text: str) -> None:
    """Reject credentials in arguments and sweep file: a job's command and files are readable by everyone who sees jobs.

    Raises:
        ConfigError: a credential was found; names the argument, without its value, or the line of the file.
    """
    places = [override.partition("=")[0] for override in overrides if has_secret(override)]
    places += [f"line {n} of the sweep file" for n, line in enumerate(text.splitlines(), 1) if has_secret(line)]
    if places:
        raise ConfigError(
            f"{', '.join(places)}: holds a credential, and everyone who sees the job could read it. Set it on the "
            "nodes instead, for example MLFLOW_TRACKING_USERNAME and _PASSWORD (docs/cluster.md, Secrets)"
        )


def job_environment(env: Sequence[str]) -> dict[str, str]:
    """The requested environment variables, by name.

    Raises:
        ConfigError: a name that is not set here, is malformed, or looks like a secret.
    """
    variables: dict[str, str] = {}
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
        variables[name] = value if sign else os.environ[name]
    return variables


def pack(folder: Path, sweep_file: Path) -> None:
    """Copy the package and the sweep file to `folder`; with the installed dependencies, all that a job needs."""
    package = Path(__file__).parents[1]
    shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    shutil.copyfile(sweep_file, folder / SWEEP_FILE)


def _connect(address: str | None) -> tuple[Any, str]:
    from ray.job_submission import JobSubmissionClient

    server = address or os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"
    try:
        return JobSubmissionClient(server), server
    except Exception as error:  # Ray raises unrelated types for connection, authentication and version problems
        reason = (scrub(str(error)).strip().splitlines() or [type(error).__name__])[0]
        raise ResourceError(
            f"no job server answers at {server}: {reason} Start a cluster (docs/cluster.md) and name its "
            f"dashboard with "
            "--address http://HOST:8265. If it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH."
        ) from error


def _submit(client: Any, job: Mapping[str, Any], server: str) -> str:
    """Submit; retries for a minute if the head has just started and is not ready for jobs."""
    deadline = time.monotonic() + _READY_S
    while True:
        try:
            return str(client.submit_job(**job))
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise ResourceError(f"{server} rejected the job: {scrub(str(error)).strip()}") from error
            time.sleep(2.0)


def _follow(client: Any, job_id: str, server: str) -> Submission:
    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    say(f"job {job_id} on {server}; stop it with: ray job stop --address {server} {job_id}")
    try:
        asyncio.run(_print_log(client, job_id))
    except KeyboardInterrupt:
        say(f"still running; follow it again with: ray job logs --follow --address {server} {job_id}")
        return Submission(job_id, server, "RUNNING", 0)
    details = client.get_job_info(job_id)
    status = str(details.status.value)
    code = exit_code(status, getattr(details, "driver_exit_code", None))
    # Ray's message repeats the log below its first line.
    reason = scrub(details.message or "").partition("\n")[0] if code else ""
    say(f"job {job_id}: {status.lower()}" + (f": {reason}" if reason else ""))
    if code:
        say("finished work is kept; the same command resumes it")
    return Submission(job_id, server, status, code)


async def _print_log(client: Any, job_id: str) -> None:
    async for lines in client.tail_job_logs(job_id):
        print(lines, end="", flush=True)


def exit_code(status: str, driver_code: int | None) -> int:
    """Exit code of this process for a job that ended with `status`."""
    if status == "SUCCEEDED":
        return 0
    return driver_code if driver_code else 1
