"""One fine-tuning trial on several processes by Ray Train, each with its own GPU: data-parallel training."""

from __future__ import annotations

from typing import Any

from orchestrator.config import HowConfig
from orchestrator.errors import DivergedError, StageError, VtsweepError
from orchestrator.finetune.ray.entry import enter_folder, read_entry


def train_together(config: dict[str, Any], name: str, folder: str, how: HowConfig) -> None:
    """Run a Tune trial's `config` (`entry.read_entry`) on `how.processes_per_trial` processes.

    Raises:
        StageError: a process raised a `VtsweepError`; any other error is Ray's and may be retried.
    """
    from ray.train import RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchTrainer

    gpus = how.gpus_per_trial or 0.0
    trainer = TorchTrainer(
        _one_process,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=how.processes_per_trial,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": how.cpus_per_actor, **({"GPU": gpus} if gpus else {})},
        ),
        run_config=RunConfig(name=name, storage_path=folder),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        causes = [getattr(failure, "_base_exc", failure) for failure in error.worker_failures.values()]
        for cause in causes:
            if isinstance(cause, VtsweepError):
                raise (DivergedError if isinstance(cause, DivergedError) else StageError)(str(cause)) from error
        raise


def _one_process(config: dict[str, Any]) -> None:
    import torch
    from ray import train

    from orchestrator.finetune.trial import run_trial

    enter_folder(config)
    if torch.cuda.is_available():
        torch.cuda.set_device(train.torch.get_device())
    run_trial(read_entry(config).resolved)
