"""Whether a study's workers fit the resources of the machine: cores, GPUs and memory."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.cluster.placement import (
    capture_pool,
    check_pools,
    cluster_address,
    describe_pools,
    local_node,
    n_cores,
    reader_pool,
)
from orchestrator.config import RunConfig, StageName
from orchestrator.config.sweep import Sweep
from orchestrator.errors import ResourceError
from orchestrator.finetune.ray.trials import trial_pool
from orchestrator.store.stage_folder import canonical_json, digest
from orchestrator.study.estimate import memory_problems


def check_resources(sweep: Sweep, stages: Sequence[StageName]) -> None:
    """Check before work starts that this machine can hold the workers; see `make_plan`.

    Raises:
        ResourceError: it cannot; names the request, the available resources and the settings to change.
    """
    _, too_large = describe_resources(sweep, stages)
    if too_large:
        raise ResourceError("\n".join(too_large))


def _by_model(runs: Sequence[RunConfig]) -> list[RunConfig]:
    return list({canonical_json(run.model.model_dump(mode="json")): run for run in runs}.values())


def describe_resources(sweep: Sweep, stages: Sequence[StageName]) -> tuple[str, list[str]]:
    """The workers of every distinct `how` as text, and those whose models do not fit this machine's memory.

    Stages run one after another, so that each has all resources. The trials of a study use the first point's `how`, as
    does the Ray session that the study starts.
    """
    runs = [point.run for point in sweep.points]
    lines: list[str] = []
    too_large: list[str] = []
    for how in dict.fromkeys(run.how for run in runs):
        if how.backend == "local":
            too_large += memory_problems([run for run in _by_model(runs) if run.how == how], [])
            lines.append("runs in this process")
            continue
        if address := cluster_address(how):
            lines.append(f"checked when it joins the cluster at {address}")
            continue
        nodes = [local_node()]
        pools = []
        if "capture" in stages:
            pools.append([capture_pool(how, nodes), reader_pool()])
        if "finetune" in stages and how == runs[0].how:
            search = {key: axis for key, axis in sweep.study.search.items() if key.startswith("finetune.")}
            trials = list(
                {
                    digest(run.model_dump(mode="json", include={"model", "data", "finetune"})): run for run in runs
                }.values()
            )
            pools.append([trial_pool(trials, n_cores(), nodes[0].gpus, search)[1]])
        for together in pools:
            check_pools(nodes, together)
            too_large += memory_problems([run for run in _by_model(runs) if run.how == how], together[:1])
        workers = ", ".join(describe_pools(together[:1]) for together in pools) or "one worker"
        lines.append(f"{workers} fit a local Ray of {nodes[0].cpus:g} logical CPUs")
    return "; ".join(lines), list(dict.fromkeys(too_large))
