"""Ray: starting or joining it, what it has, and refusing what it cannot hold. The only caller of `ray.init`."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import interrupt
from orchestrator.cluster import guard
from orchestrator.cluster.placement import (
    Node,
    Pool,
    check_pools,
    cluster_address,
    local_node,
    offered,
)
from orchestrator.config import HowConfig
from orchestrator.errors import ResourceError, StorageError
from orchestrator.store.filesystem import Storage

NAMESPACE = "vtsweep"
_GB = 1_000_000_000


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster as seen when the session began.

    `limits` is what an autoscaler may grow it to (resource name -> amount), None where the size is fixed.
    """

    nodes: tuple[Node, ...]
    limits: dict[str, float] | None = None

    @property
    def cpus(self) -> float:
        """CPUs in all, or as far as an autoscaler may grow."""
        return offered("CPU", self.nodes, self.limits)

    @property
    def gpus(self) -> float:
        """GPUs in all, or as far as an autoscaler may grow: a cluster may well start without any."""
        return offered("GPU", self.nodes, self.limits)

    def check(self, pools: Sequence[Pool]) -> None:
        """Refuse pools that would wait for ever; see `check_pools`."""
        check_pools(self.nodes, pools, self.limits)


# ---------------------------------------------------------------- the session


@contextmanager
def session(how: HowConfig, storage: Storage | None = None) -> Iterator[Cluster]:
    """Ray for the length of a `with` block: a local one, or the cluster that `how.address` / `RAY_ADDRESS` names.

    A Ray that is already connected is used as it is and left running. On the way out, Ctrl-C included, everything
    this session started is stopped.

    Raises:
        ResourceError: no cluster answers at the address, or the local Ray does not start.
        StorageError: `storage` lies on one node of a cluster of several.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    owned, address = not ray.is_initialized(), cluster_address(how)
    with _guarded() if owned and not address else nullcontext() as folder:
        if owned:
            _join(ray, address) if address else _start_local(ray, how, str(folder))
            interrupt.restore()
        yield from _connected(ray, storage, owned)


def has_gpu(how: HowConfig) -> bool:
    """Whether the machine or cluster of a run has a GPU, now or once its autoscaler adds one.

    Depends on the place alone: whether workers are given a GPU (`how.gpus_per_actor`) changes no result.

    Raises:
        ResourceError: no cluster answers at the address.
    """
    if how.backend == "local" or not cluster_address(how):
        return local_node().gpus > 0
    with session(how) as cluster:
        return cluster.gpus > 0 or (cluster.limits or {}).get("GPU", 0.0) > 0


def _connected(ray: Any, storage: Storage | None, owned: bool) -> Iterator[Cluster]:
    try:
        cluster = resources()
        if storage is not None:
            check_shared(storage, cluster.nodes)
        yield cluster
    finally:
        if owned:
            ray.shutdown()


@contextmanager
def _guarded() -> Iterator[str]:
    """A temporary folder for a local Ray, and a process that outlives this one by what cleaning it up takes.

    Ray alone leaves its session's folder behind, and after kill -9 of a driver its agents for a minute.
    """
    parent = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    try:
        folder = tempfile.mkdtemp(prefix="vts-", dir=parent)
    except OSError as error:
        raise ResourceError(
            f"RAY_TMPDIR={parent}: expected a folder that can be written, found: {error.strerror}. Make or unset it."
        ) from None
    command = [sys.executable, "-I", "-S", str(Path(guard.__file__)), folder]
    quiet = subprocess.DEVNULL
    watch = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        yield folder
    finally:
        assert watch.stdin is not None
        watch.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            watch.wait(guard.PATIENCE + 10)


_QUIET: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": "error"}


def _start_local(ray: Any, how: HowConfig, folder: str) -> None:
    # Ray Data's own use of actors makes Ray's C++ core log an error that is none. Python errors are not touched by it.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    from ray._private import ray_constants

    if "RAY_AUTH_MODE" not in os.environ:
        # Ray turns token authentication on for a local session. Left to itself it would write the token to the home
        # directory, and with it change how `ray start` behaves from then on.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    reachable = ray_constants.ENABLE_RAY_CLUSTER
    # Ray's own switch for a single-machine cluster: every port is then bound to the loopback address.
    ray_constants.ENABLE_RAY_CLUSTER = False
    options = {
        "address": "local",
        "num_cpus": int(local_node().cpus),
        "include_dashboard": False,
        "_temp_dir": folder,
        "object_store_memory": int((how.object_store_gb or default_object_store_gb()) * _GB),
        **_QUIET,
    }
    try:
        with _without_notice():
            try:
                ray.init(**options)
            except Exception:  # a start that takes more than 30 s is a bare Exception of Ray's
                # Retry once: start-up can exceed 30 s on a busy machine.
                ray.shutdown()
                ray.init(**options)
    except Exception as error:
        raise ResourceError(
            f"a local Ray does not start: {_first_line(error)}. If the machine is busy, try again, or run without Ray: "
            "how.backend=local"
        ) from error
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = reachable


@contextmanager
def _without_notice() -> Iterator[None]:
    """Keep the line with which Ray's core says that it heeds `RAY_BACKEND_LOG_LEVEL` from standard error."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            said.seek(0)
            for line in said:
                if b"RAY_BACKEND_LOG_LEVEL" not in line:
                    os.write(2, line)


def _join(ray: Any, address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if host and port.isdigit():
            # Ray itself tries for minutes before it says that nothing is there.
            socket.create_connection((host.strip("[]"), int(port)), timeout=15).close()
        ray.init(address=address, **_QUIET)
    except (OSError, RuntimeError, ValueError) as error:
        hint = "" if os.environ.get("RAY_AUTH_MODE") else " If it asks for a token, set RAY_AUTH_MODE=token."
        raise ResourceError(f"no Ray cluster answers at {address!r}: {_first_line(error)}.{hint}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def default_object_store_gb() -> float:
    """Object store of a local Ray, GB: an eighth of the memory, between 0.2 and 8, within the shared-memory mount."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GB
    shm = os.statvfs("/dev/shm") if Path("/dev/shm").is_dir() else None
    room = shm.f_bavail * shm.f_frsize * 0.8 / _GB if shm else total
    return max(0.2, min(total / 8, 8.0, room))


def resources() -> Cluster:
    """Nodes that are alive now, head first, and the autoscaler's limits where there is one."""
    import ray
    from ray._private.state import state

    nodes = [
        Node(
            float(node["Resources"].get("CPU", 0.0)),
            float(node["Resources"].get("GPU", 0.0)),
            node["NodeManagerAddress"],
            node["NodeID"],
        )
        for node in sorted(ray.nodes(), key=lambda n: "node:__internal_head__" not in n["Resources"])
        if node["Alive"]
    ]
    limits = state.get_max_resources_from_cluster_config()
    return Cluster(tuple(nodes), {k: float(v) for k, v in limits.items()} if limits else None)


# ---------------------------------------------------------------- storage


def check_shared(storage: Storage, nodes: Sequence[Node]) -> None:
    """Write a small file here and look for it from every node (at most 64), so that no node writes where none reads.

    Raises:
        StorageError: the storage cannot be written, or a node does not see what this process wrote.
    """
    if storage.is_local and len(nodes) < 2:
        return
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    name, content = f".probe-{secrets.token_hex(4)}", secrets.token_bytes(8)
    storage.write(name, content)
    look = ray.remote(num_cpus=0, max_retries=0)(_sees)
    try:
        seen = {
            node.address: look.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False)
            ).remote(storage, name, content)
            for node in nodes[:64]
        }
        blind = [address for address, found in seen.items() if not ray.get(found)]
    finally:
        storage.remove(name)
    if blind:
        raise StorageError(
            f"storage {storage.uri!r} is not shared: {len(blind)} of {len(seen)} nodes do not see it "
            f"(first: {blind[0]}). Use a path every node mounts (NFS) or an object store, for example "
            "storage=s3://bucket/vtsweep"
        )


def _sees(storage: Storage, name: str, content: bytes) -> bool:
    try:
        return storage.read(name) == content
    except OSError:
        return False
