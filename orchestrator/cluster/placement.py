"""Worker pools and the machines they must fit, without Ray: what would wait for ever is refused."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.config import HowConfig
from orchestrator.errors import ResourceError

MIN_LOCAL_CPUS = 4
"""Logical CPUs of a local Ray: on two, an actor and a reading task can starve each other for ever."""


@dataclass(frozen=True)
class Node:
    """What one machine offers to Ray."""

    cpus: float
    gpus: float = 0.0
    address: str = ""
    node_id: str = ""


@dataclass(frozen=True)
class Pool:
    """`n` workers that hold `cpus` and `gpus` each for the whole run; `n=1` stands for tasks that come and go."""

    name: str
    n: int
    cpus: float
    gpus: float = 0.0
    most: int | None = None
    """How many it may grow to; `n` when absent."""


def n_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cluster_address(how: HowConfig) -> str | None:
    """Address of the cluster a run joins, from `how.address` or `RAY_ADDRESS`; None where it starts a Ray here."""
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
    """The model actors `how` asks for: one a GPU, else one a node. It begins with those that the nodes hold now."""
    pool = place("capture actors", how, nodes, limits, otherwise=len(nodes))
    now = how.n_actors or (max(1, n_places(nodes, pool.gpus)) if pool.gpus else pool.n)
    return replace(pool, n=now, most=how.max_actors or (pool.n if pool.n > now else None))


def place(name: str, how: HowConfig, nodes: Sequence[Node], limits: dict[str, float] | None, *, otherwise: int) -> Pool:
    """Workers that hold a model: on GPUs where there are any or an autoscaler can start some, else `otherwise` many.

    Every pool of models goes by this: a cluster that starts without a GPU is a GPU cluster if it may grow to one.
    """
    gpus = gpus_each(how.gpus_per_actor, nodes, limits)
    n = how.n_actors or (max(1, n_places(nodes, gpus, limits)) if gpus else max(1, otherwise))
    return Pool(name, n, how.cpus_per_actor, gpus)


def offered(kind: str, nodes: Sequence[Node], limits: dict[str, float] | None = None) -> float:
    """`CPU` or `GPU` in all: of the nodes there are, or as far as an autoscaler may grow."""
    now = sum(node.gpus if kind == "GPU" else node.cpus for node in nodes)
    return max(now, (limits or {}).get(kind, 0.0))


def gpus_each(asked: float | None, nodes: Sequence[Node], limits: dict[str, float] | None = None) -> float:
    """GPUs of one worker: those asked for, else one where any are offered."""
    return asked if asked is not None else float(offered("GPU", nodes, limits) > 0)


def n_places(nodes: Sequence[Node], gpus: float, limits: dict[str, float] | None = None) -> int:
    """Workers of `gpus` > 0 GPUs each that GPUs hold at a time: the nodes', or as many as an autoscaler may start.

    A part of a GPU never spans two of them.
    """
    if limits and limits.get("GPU", 0.0) > offered("GPU", nodes):
        nodes = [Node(0.0, limits["GPU"])]
    if gpus > 1:
        return sum(math.floor(node.gpus / gpus + 1e-9) for node in nodes)
    return sum(int(node.gpus) for node in nodes) * math.floor(1 / gpus + 1e-9)


def reader_pool(cpus: float = 1.0) -> Pool:
    """One task that loads images: what must be left free beside the actors."""
    return Pool("image loading", 1, cpus)


def check_pools(nodes: Sequence[Node], pools: Sequence[Pool], limits: dict[str, float] | None = None) -> None:
    """Refuse a set-up in which some worker could never be placed.

    Workers are placed largest first on the node with most room, as Ray spreads actors. Under an autoscaler only the
    totals can be compared, with its upper limits.

    Raises:
        ResourceError: saying what is asked, what there is, and which settings to change.
    """
    asked_cpus = sum(pool.n * pool.cpus for pool in pools)
    asked_gpus = sum(pool.n * pool.gpus for pool in pools)
    if limits is not None:
        short = [
            f"{asked:g} {name}s asked, at most {limits.get(name, 0.0):g}"
            for name, asked in (("CPU", asked_cpus), ("GPU", asked_gpus))
            if asked > limits.get(name, 0.0) + 1e-9
        ]
        if short:
            raise ResourceError(
                f"{describe_pools(pools)} can never fit this autoscaling cluster: {'; '.join(short)}. {_FIX}"
            )
        return
    for pool in pools:
        if pool.gpus > 1 and pool.gpus % 1:
            raise ResourceError(f"{describe_pools(pools)}: a worker holds a part of one GPU, or whole ones. {_FIX}")
    free = [_Room(node.cpus, [1.0] * int(node.gpus)) for node in nodes]
    workers = [pool for pool in pools for _ in range(pool.n)]
    for worker in sorted(workers, key=lambda w: (-w.gpus, -w.cpus)):
        fitting = [room for room in free if room.holds(worker)]
        if not fitting:
            have = ", ".join(f"{node.cpus:g} CPUs + {node.gpus:g} GPUs" for node in nodes[:8])
            more = f" and {len(nodes) - 8} more" if len(nodes) > 8 else ""
            raise ResourceError(
                f"{describe_pools(pools)} do not fit the nodes ({have}{more}); the run would wait for ever "
                f"on {worker.name}. {_FIX}"
            )
        best = max(fitting, key=lambda r: (sum(r.gpus), r.cpus) if worker.gpus else (-sum(r.gpus), r.cpus))
        best.take(worker)


@dataclass
class _Room:
    """What is left on a node: CPUs, and a share of each GPU."""

    cpus: float
    gpus: list[float]

    def holds(self, worker: Pool) -> bool:
        return self.cpus >= worker.cpus - 1e-9 and len(self._fitting(worker)) >= math.ceil(worker.gpus)

    def take(self, worker: Pool) -> None:
        self.cpus -= worker.cpus
        for i in self._fitting(worker)[: math.ceil(worker.gpus)]:
            self.gpus[i] -= min(worker.gpus, 1.0)

    def _fitting(self, worker: Pool) -> list[int]:
        """GPUs with room for the worker's share, the fullest first."""
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
