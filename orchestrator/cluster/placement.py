"""Worker pools and their placement on nodes, without Ray; pools that could never be placed are rejected."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.config import HowConfig
from orchestrator.errors import ResourceError

MIN_LOCAL_CPUS = 4
"""Minimum logical CPUs of a local Ray: with two, an actor and a loading task can deadlock."""


@dataclass(frozen=True)
class Node:
    """Resources of one machine."""

    cpus: float
    gpus: float = 0.0
    address: str = ""
    node_id: str = ""


@dataclass(frozen=True)
class Pool:
    """`n` workers that hold `cpus` and `gpus` each for the whole run; `n=1` for short-lived tasks."""

    name: str
    n: int
    cpus: float
    gpus: float = 0.0
    most: int | None = None
    """Upper size of an autoscaling pool; None for `n`."""


def n_cores() -> int:
    """Number of cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cluster_address(how: HowConfig) -> str | None:
    """Address of the cluster a run joins, from `how.address` or `RAY_ADDRESS`; None to start a local Ray."""
    address = how.address or os.environ.get("RAY_ADDRESS")
    return None if address == "local" else address or None


def local_node() -> Node:
    """The node a local session would have, without starting Ray."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        gpus = len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    else:
        gpus = len([path for path in Path("/dev").glob("nvidia*") if path.name[6:].isdigit()])
    return Node(float(max(MIN_LOCAL_CPUS, n_cores())), float(gpus))


def capture_pool(how: HowConfig, nodes: Sequence[Node], limits: dict[str, float] | None = None) -> Pool:
    """The pool of model actors: by default one per GPU, else one per node; its initial size fits the present nodes."""
    pool = place("capture actors", how, nodes, limits, otherwise=len(nodes))
    now = how.n_actors or (max(1, n_places(nodes, pool.gpus)) if pool.gpus else pool.n)
    return replace(pool, n=now, most=how.max_actors or (pool.n if pool.n > now else None))


def place(name: str, how: HowConfig, nodes: Sequence[Node], limits: dict[str, float] | None, *, otherwise: int) -> Pool:
    """Pool of workers with a model: on GPUs if there are any or an autoscaler can add some, else `otherwise` workers.

    Used by every pool of models: a cluster that starts without GPUs counts as a GPU cluster if it may grow to one.
    """
    gpus = gpus_each(how.gpus_per_actor, nodes, limits)
    n = how.n_actors or (max(1, n_places(nodes, gpus, limits)) if gpus else max(1, otherwise))
    return Pool(name, n, how.cpus_per_actor, gpus)


def offered(kind: str, nodes: Sequence[Node], limits: dict[str, float] | None = None) -> float:
    """Total `CPU` or `GPU`: of the present nodes, or the autoscaler's limit."""
    now = sum(node.gpus if kind == "GPU" else node.cpus for node in nodes)
    return max(now, (limits or {}).get(kind, 0.0))


def gpus_each(requested: float | None, nodes: Sequence[Node], limits: dict[str, float] | None = None) -> float:
    """GPUs of one worker: as requested, else one if any are available."""
    return requested if requested is not None else float(offered("GPU", nodes, limits) > 0)


def n_places(nodes: Sequence[Node], gpus: float, limits: dict[str, float] | None = None) -> int:
    """Number of workers with `gpus` > 0 each that fit the GPUs of the nodes, or the autoscaler's limit.

    A fraction of a GPU never spans two GPUs.
    """
    if limits and limits.get("GPU", 0.0) > offered("GPU", nodes):
        nodes = [Node(0.0, limits["GPU"])]
    if gpus > 1:
        return sum(math.floor(node.gpus / gpus + 1e-9) for node in nodes)
    return sum(int(node.gpus) for node in nodes) * math.floor(1 / gpus + 1e-9)


def reader_pool() -> Pool:
    """One task that loads images: CPUs that actors must leave free."""
    return Pool("image loading", 1, 1.0)


def check_pools(nodes: Sequence[Node], pools: Sequence[Pool], limits: dict[str, float] | None = None) -> None:
    """Check that every worker can be placed.

    Workers are placed largest first on the node with the most free resources, as Ray spreads actors. Under an
    autoscaler only totals are compared, with its upper limits.

    Raises:
        ResourceError: a worker cannot be placed; names the request, the available resources and the settings to change.
    """
    asked_cpus = sum(pool.n * pool.cpus for pool in pools)
    asked_gpus = sum(pool.n * pool.gpus for pool in pools)
    if limits is not None:
        short = [
            f"{requested:g} {name}s asked, at most {limits.get(name, 0.0):g}"
            for name, requested in (("CPU", asked_cpus), ("GPU", asked_gpus))
            if requested > limits.get(name, 0.0) + 1e-9
        ]
        if short:
            raise ResourceError(
                f"{describe_pools(pools)} can never fit this autoscaling cluster: {'; '.join(short)}. {_FIX}"
            )
        return
    for pool in pools:
        if pool.gpus > 1 and pool.gpus % 1:
            raise ResourceError(f"{describe_pools(pools)}: a worker needs a fraction of one GPU, or whole ones. {_FIX}")
    free = [_FreeResources(node.cpus, [1.0] * int(node.gpus)) for node in nodes]
    workers = [pool for pool in pools for _ in range(pool.n)]
    for worker in sorted(workers, key=lambda w: (-w.gpus, -w.cpus)):
        fitting = [node for node in free if node.holds(worker)]
        if not fitting:
            have = ", ".join(f"{node.cpus:g} CPUs + {node.gpus:g} GPUs" for node in nodes[:8])
            omitted = f" and {len(nodes) - 8} more" if len(nodes) > 8 else ""
            raise ResourceError(
                f"{describe_pools(pools)} do not fit the nodes ({have}{omitted}); the run would wait for ever "
                f"on {worker.name}. {_FIX}"
            )
        best = max(fitting, key=lambda r: (sum(r.gpus), r.cpus) if worker.gpus else (-sum(r.gpus), r.cpus))
        best.take(worker)


@dataclass
class _FreeResources:
    """Free resources of a node: CPUs, and the free share of each GPU."""

    cpus: float
    gpus: list[float]

    def holds(self, worker: Pool) -> bool:
        return self.cpus >= worker.cpus - 1e-9 and len(self._fitting(worker)) >= math.ceil(worker.gpus)

    def take(self, worker: Pool) -> None:
        self.cpus -= worker.cpus
        for i in self._fitting(worker)[: math.ceil(worker.gpus)]:
            self.gpus[i] -= min(worker.gpus, 1.0)

    def _fitting(self, worker: Pool) -> list[int]:
        """Indices of GPUs with enough free share for the worker, the fullest first."""
        share = min(worker.gpus, 1.0)
        return sorted((i for i, left in enumerate(self.gpus) if left >= share - 1e-9), key=lambda i: self.gpus[i])


_FIX = (
    "Lower how.n_actors, how.cpus_per_actor or how.gpus_per_actor (of trials: how.concurrent_trials, "
    "how.processes_per_trial or how.gpus_per_trial), or use a larger cluster."
)


def describe_pools(pools: Sequence[Pool]) -> str:
    """`2 x capture actors (1 CPU + 1 GPU), ...`."""

    def one(pool: Pool) -> str:
        gpus = f" + {pool.gpus:g} GPU" if pool.gpus else ""
        return f"{pool.n} x {pool.name} ({pool.cpus:g} CPU{gpus})"

    return ", ".join(one(pool) for pool in pools)
