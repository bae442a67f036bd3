"""What an autoscaling cluster can grow to, read from its head: a cluster that starts at zero GPUs shows none.

Ray has a place for these limits (`state.get_max_resources_from_cluster_config`), which no autoscaler of open-source Ray
fills up to 2.60. The head knows them: the monitor of `ray up` is started with a file, and KubeRay's head may read the
RayCluster resource that it belongs to.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.config.yaml import read_yaml

NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""Names the namespace of a pod, in it."""


def head_config(gcs_address: str) -> dict[str, Any] | None:
    """Return the autoscaling configuration of a cluster whose head is this machine; None if the cluster does not grow.

    Args:
        gcs_address: of the cluster, by which its monitor is told from that of another Ray of this machine.
    """
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended, or belongs to somebody else
            continue
        if f"--gcs-address={gcs_address}" in words:
            for word in words:
                if word.startswith("--autoscaling-config="):
                    return dict(read_yaml(Path(word.partition("=")[2]).expanduser().read_text(encoding="utf-8")))
    return None if gcs_address.startswith("127.") else _kuberay_config()


def _kuberay_config() -> dict[str, Any] | None:
    """The configuration that KubeRay's autoscaler makes of the cluster's resource, which this head may read too."""
    name = os.environ.get("RAY_CLUSTER_NAME")
    if not name or not NAMESPACE.is_file():
        return None
    from ray.autoscaler._private.kuberay import autoscaling_config as kuberay

    producer = kuberay.AutoscalingConfigProducer(name, NAMESPACE.read_text().strip())
    cluster = producer.kubernetes_api_client.get(f"rayclusters/{name}")
    grows = cluster["spec"].get("enableInTreeAutoscaling")
    return dict(kuberay._derive_autoscaling_config_from_ray_cr(cluster)) if grows else None


def worker_limits(config: Mapping[str, Any]) -> dict[str, float]:
    """Return the most of each resource that all workers together may have, each resource by itself.

    Kinds of node with most of it come first; there are never more nodes than `max_workers`.
    """
    kinds, head = config.get("available_node_types") or {}, config.get("head_node_type")
    most = config.get("max_workers", 0)
    workers = [
        (kind.get("resources") or {}, min(most, kind.get("max_workers", 0 if name == head else most)))
        for name, kind in kinds.items()
    ]
    limits: dict[str, float] = {}
    for resource in {key for resources, _ in workers for key in resources}:
        left = most
        for resources, n in sorted(workers, key=lambda worker: -float(worker[0].get(resource, 0))):
            limits[resource] = limits.get(resource, 0.0) + min(left, n) * float(resources.get(resource, 0))
            left -= min(left, n)
    return {resource: amount for resource, amount in limits.items() if amount > 0}
