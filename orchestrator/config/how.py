"""Settings of how the work is done and tracked; none of them may change a result."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.config.section import Count, PositiveFloat, PositiveInt, Section


class HowConfig(Section):
    """How the work is done. Logged, never hashed: no field here may change a result."""

    backend: Literal["ray", "local"] = "ray"
    """`local` runs in this process, for small work and debugging."""
    batch_size: PositiveInt = 16
    """Images a forward pass; halved automatically when memory runs out."""
    max_batch_tokens: PositiveInt | Literal["auto"] | None = None
    """Tokens a forward pass of capture, padding included: images of different sizes share a pass as far as they fit,
    instead of images of one size alone. `auto` finds the number from the memory of a GPU; `batch_size` still holds."""
    shard_size: PositiveInt = 64
    """Images a shard, the unit of work and of resume; the first run's value is kept on resume."""
    n_actors: PositiveInt | None = None
    """Model actors; one a GPU (or one in all on a CPU machine) when absent."""
    max_actors: PositiveInt | None = None
    """Upper size of capture's actor pool; when absent, as far as an autoscaling cluster may grow, else a fixed size."""
    gpus_per_actor: Annotated[float, Field(strict=True, ge=0.0)] | None = None
    """GPUs an actor holds, fractions allowed; 1 where the cluster has GPUs, else 0, when absent."""
    cpus_per_actor: PositiveFloat = 1.0
    """CPUs an actor holds."""
    device_map: Literal["auto"] | None = None
    """`auto` spreads one model over the GPUs of its actor."""
    torch_threads: PositiveInt | None = None
    """Threads of one actor or trial; all cores shared evenly when absent."""
    concurrent_trials: PositiveInt | None = None
    """Fine-tuning trials at a time; as many as resources allow when absent."""
    gpus_per_trial: Annotated[float, Field(strict=True, ge=0.0)] | None = None
    """GPUs each process of a trial holds, fractions allowed; 1 where the cluster has GPUs, else 0, when absent. More
    than 1 needs `device_map: auto`, which spreads the model over them."""
    processes_per_trial: PositiveInt = 1
    """Data-parallel processes of one trial: they share each step's batch. Trials beside each other come first: they
    lose nothing to communication."""
    address: str | None = None
    """Ray cluster address; `auto` joins a running one, absent starts a local one."""
    object_store_gb: PositiveFloat | None = None
    """Object store of a local Ray, GB; bounded by default."""
    no_progress_timeout_s: PositiveFloat = 300.0
    """Fail instead of waiting when no image finishes for this long, s."""
    max_retries: Count = 3
    """Restarts of a lost actor or trial."""
    reuse_workers: bool = True
    """Let one worker process run trial after trial with the base model it has loaded."""
    checkpoint_steps: PositiveInt = 50
    """Optimiser steps between a trial's checkpoints."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Recompute activations in training's backward pass, which saves memory and costs half a step's time; `auto` does
    so where the memory at hand asks for it."""
    keep_adapters: bool = True
    """Keep trained LoRA weights of each trial."""


class TrackConfig(Section):
    """Where MLflow keeps runs. Never hashed."""

    enabled: bool = True
    uri: str | None = None
    """Tracking server or `sqlite:///FILE`; `mlflow.db` in the storage folder when absent."""
    experiment: str | None = None
    """Experiment name; the study's name when absent."""
