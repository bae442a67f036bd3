"""Settings of execution and tracking; none of them may change a result."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.config.section import Count, PositiveFloat, PositiveInt, Section


class HowConfig(Section):
    """Execution settings. Logged, never hashed: no field may change a result."""

    backend: Literal["ray", "local"] = "ray"
    """`local` runs in this process, for small work and debugging."""
    batch_size: PositiveInt = 16
    """Images per forward pass; halved automatically on out-of-memory."""
    max_batch_tokens: PositiveInt | Literal["auto"] | None = None
    """Tokens per forward pass of capture, padding included: images of different sizes then share a pass, instead of
    images of one size only. `auto` measures the limit from GPU memory; `batch_size` still applies."""
    shard_size: PositiveInt = 64
    """Images per shard, the unit of work and of resume; a resumed run keeps the first run's value."""
    n_actors: PositiveInt | None = None
    """Model actors; default: one per GPU (a single one on a CPU machine)."""
    max_actors: PositiveInt | None = None
    """Upper size of capture's actor pool; default: the limit of an autoscaling cluster, else `n_actors`."""
    gpus_per_actor: Annotated[float, Field(strict=True, ge=0.0)] | None = None
    """GPUs per actor, fractions allowed; default: 1 if the cluster has GPUs, else 0."""
    cpus_per_actor: PositiveFloat = 1.0
    """CPUs per actor."""
    device_map: Literal["auto"] | None = None
    """`auto` spreads one model over the GPUs of its actor."""
    weights_cache: str | None = None
    """Folder on each node's own disk for copies of checkpoint folders, made once a node before weights are read: for
    a `model.name` on a slow or shared disk. Nothing is deleted there. Hub files have their own cache (`HF_HOME`)."""
    torch_threads: PositiveInt | None = None
    """Torch threads per actor or trial; default: an equal share of the cores."""
    concurrent_trials: PositiveInt | None = None
    """Concurrent fine-tuning trials; default: as many as resources allow."""
    gpus_per_trial: Annotated[float, Field(strict=True, ge=0.0)] | None = None
    """GPUs per process of a trial, fractions allowed; default: 1 if the cluster has GPUs, else 0. More
    than 1 needs `device_map: auto`, which spreads the model over them."""
    processes_per_trial: PositiveInt = 1
    """Data-parallel processes per trial, which divide each step's batch. Prefer concurrent trials, which need no
    communication."""
    address: str | None = None
    """Ray cluster address; `auto` joins a running one, absent starts a local one."""
    object_store_gb: PositiveFloat | None = None
    """Object store of a local Ray, GB; default: an eighth of the memory, at most 8."""
    no_progress_timeout_s: PositiveFloat = 300.0
    """Fail if no image, block or trial finishes for this long, s."""
    max_retries: Count = 3
    """Restarts of a lost actor or trial."""
    reuse_workers: bool = True
    """Reuse a worker process, with its loaded base model, for several trials."""
    checkpoint_steps: PositiveInt = 50
    """Optimiser steps between a trial's checkpoints."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Activation checkpointing: recompute activations in the backward pass, which saves memory and makes a step about
    1.5 times as long; `auto` decides by free memory."""
    keep_adapters: bool = True
    """Keep trained LoRA weights of each trial."""


class TrackConfig(Section):
    """MLflow tracking. Never hashed."""

    enabled: bool = True
    uri: str | None = None
    """Tracking server or `sqlite:///FILE`; `mlflow.db` in the storage folder when absent."""
    experiment: str | None = None
    """Experiment name; the study's name when absent."""
