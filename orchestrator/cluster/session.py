"""Ray sessions: start or join a cluster, read its resources, reject what does not fit. The only caller of
`ray.init`."""

from __future__ import annotations

import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from orchestrator import interrupt
from orchestrator.cluster.autoscaler import head_config, worker_limits
from orchestrator.cluster.placement import Node, Pool, check_pools, cluster_address, local_node, offered
from orchestrator.config import HowConfig
from orchestrator.errors import ResourceError, StorageError
from orchestrator.store.filesystem import Storage
from orchestrator.store.memory import object_store_gb
from orchestrator.store.scratch import SHARED, guarded_folder

NAMESPACE = "vtsweep"
_GB = 1_000_000_000
MACHINES_START_S = 1800.0
"""No-progress limit, in s, on a cluster that grows: a GPU machine of a cloud takes 5 to 8 minutes, if one is free."""


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster at the start of the session.

    `limits`: upper limits of an autoscaler (resource name -> amount); None if the size is fixed.
    """

    nodes: tuple[Node, ...]
    limits: dict[str, float] | None = None

    @property
    def cpus(self) -> float:
        """Total CPUs, or the autoscaler's limit."""
        return offered("CPU", self.nodes, self.limits)

    @property
    def gpus(self) -> float:
        """Total GPUs, or the autoscaler's limit: a cluster may start without any."""
        return offered("GPU", self.nodes, self.limits)

    def patient(self, how: HowConfig) -> HowConfig:
        """`how` with time for machines to start, where an autoscaler may have to add some before anything is done."""
        seconds = max(how.no_progress_timeout_s, MACHINES_START_S if self.limits else 0.0)
        return how.model_copy(update={"no_progress_timeout_s": seconds})

    def check(self, pools: Sequence[Pool]) -> None:
        """Reject pools that would wait for ever; see `check_pools`."""
        check_pools(self.nodes, pools, self.limits)


# ---------------------------------------------------------------- the session


@contextmanager
def session(how: HowConfig, storage: Storage | None = None) -> Iterator[Cluster]:
    """Ray inside a `with` block: a local session, or the cluster that `how.address` / `RAY_ADDRESS` names.

    An existing connection to Ray is used and left open. On exit, Ctrl-C included, everything that this session
    started is stopped.

    Raises:
        ResourceError: no cluster answers at the address, or the local Ray does not start.
        StorageError: `storage` is local to one node of a multi-node cluster.
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
    """Whether the machine or cluster of a run has a GPU, or its autoscaler can add one.

    Depends on the machine only: whether workers use a GPU (`how.gpus_per_actor`) changes no result.

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
            interrupt.restore()  # Ray's core sets SIGTERM to its default when it ends


@contextmanager
def _guarded() -> Iterator[str]:
    """A temporary folder for a local Ray, which goes with all that runs in it.

    Ray itself does not remove its session folder, and its agents run on for a minute after kill -9 of a driver.
    """
    parent = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(guarded_folder(parent))
        except OSError as error:
            raise ResourceError(
                f"RAY_TMPDIR={parent}: expected a writable folder, found: {error.strerror}. "
                "Create it or unset the variable."
            ) from None
        before = os.environ.get(SHARED)
        os.environ[SHARED] = folder  # workers inherit it
        stack.callback(_set_variable, SHARED, before)
        yield folder


def _set_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


_QUIET: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": "error"}


def _start_local(ray: Any, how: HowConfig, folder: str) -> None:
    # Ray Data's use of actors makes Ray's C++ core log a spurious error. Python errors are not affected.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    from ray._private import ray_constants

    if "RAY_AUTH_MODE" not in os.environ:
        # Ray enables token authentication for a local session. By default it writes the token to the home directory,
        # which changes the behaviour of `ray start` from then on.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    reachable = ray_constants.ENABLE_RAY_CLUSTER
    # Ray's option for a single-machine cluster: all ports are bound to the loopback address.
    ray_constants.ENABLE_RAY_CLUSTER = False
    options = {
        "address": "local",
        "num_cpus": int(local_node().cpus),
        "include_dashboard": False,
        "_temp_dir": folder,
        "object_store_memory": int(object_store_gb(how) * _GB),
        **_QUIET,
    }
    try:
        with _without_notice():
            try:
                ray.init(**options)
            except Exception:  # Ray raises a bare Exception if start-up takes more than 30 s
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
    """Suppress the notice of Ray's core about `RAY_BACKEND_LOG_LEVEL` on standard error."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as captured_stderr:
        os.dup2(captured_stderr.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            captured_stderr.seek(0)
            for line in captured_stderr:
                if b"RAY_BACKEND_LOG_LEVEL" not in line:
                    os.write(2, line)


def _join(ray: Any, address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if host and port.isdigit():
            # Ray retries for minutes before it reports that nothing answers.
            socket.create_connection((host.strip("[]"), int(port)), timeout=15).close()
        ray.init(address=address, **_QUIET)
    except (OSError, RuntimeError, ValueError) as error:
        hint = "" if os.environ.get("RAY_AUTH_MODE") else " If it asks for a token, set RAY_AUTH_MODE=token."
        raise ResourceError(f"no Ray cluster answers at {address!r}: {_first_line(error)}.{hint}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def resources() -> Cluster:
    """Nodes that are alive, head first, and the limits of an autoscaler."""
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
    if limits:
        return Cluster(tuple(nodes), {k: float(v) for k, v in limits.items()})
    return Cluster(tuple(nodes), _limits(nodes[0]) if nodes else None)


def _limits(head: Node) -> dict[str, float] | None:
    """Upper limits of a cluster that an autoscaler may enlarge, from its head; None if its size is fixed."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    context = ray.get_runtime_context()
    if context.get_node_id() == head.node_id:
        config = head_config(context.gcs_address)
    elif context.gcs_address.startswith("127."):
        return None
    else:
        there = NodeAffinitySchedulingStrategy(head.node_id, soft=False)
        look = ray.remote(num_cpus=0)(head_config).options(scheduling_strategy=there)
        config = ray.get(look.remote(context.gcs_address))
    if config is None:
        return None
    workers = worker_limits(config)
    return {**workers, "CPU": workers.get("CPU", 0.0) + head.cpus, "GPU": workers.get("GPU", 0.0) + head.gpus}


# ---------------------------------------------------------------- storage


def check_shared(storage: Storage, nodes: Sequence[Node]) -> None:
    """Check that storage is shared: write a small file here and read it on every node (at most 64).

    Raises:
        StorageError: the storage cannot be written, or a node does not see the file.
    """
    if storage.is_local and len(nodes) < 2:
        return
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    name, content = f".probe-{secrets.token_hex(4)}", secrets.token_bytes(8)
    storage.write(name, content)
    look = ray.remote(num_cpus=0, max_retries=0)(_sees)
    try:
        visible_at = {
            node.address: look.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False)
            ).remote(storage, name, content)
            for node in nodes[:64]
        }
        blind = [address for address, reference in visible_at.items() if not ray.get(reference)]
    finally:
        storage.remove(name)
    if blind:
        raise StorageError(
            f"storage {storage.uri!r} is not shared: {len(blind)} of {len(visible_at)} nodes do not see it "
            f"(first: {blind[0]}). Use a path every node mounts (NFS) or an object store, for example "
            "storage=s3://bucket/vtsweep"
        )


def _sees(storage: Storage, name: str, content: bytes) -> bool:
    try:
        return storage.read(name) == content
    except OSError:
        return False
