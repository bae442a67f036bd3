"""One Ray Tune experiment over fine-tuning trials: its placement, search and trainable.

Tune does placement, retries, search and pruning. It keeps no persistent state: its folder, whose files it would
unpickle, is a private temporary directory of the driver, and results of a trial are read only from the study's storage.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator import interrupt
from orchestrator.config import HowConfig, SearchAxis
from orchestrator.config.search_space import bounds
from orchestrator.errors import DivergedError, VtsweepError
from orchestrator.finetune.ray.entry import enter_folder, read_entry
from orchestrator.finetune.ray.processes import train_together
from orchestrator.finetune.ray.pruning import PointASHA, rung_steps
from orchestrator.finetune.ray.search import Sample, SampleRecord, SearchFolder, Watch, unwatched
from orchestrator.finetune.ray.watcher import make_watcher
from orchestrator.finetune.trial import run_baseline, run_trial
from orchestrator.progress import Progress
from orchestrator.store.resolved_point import ResolvedPoint, distinct
from orchestrator.store.scratch import temporary_folder
from orchestrator.store.stage_folder import Stage, canonical_json


@dataclass(frozen=True)
class TrialResources:
    """Number of concurrent trials, and the resources of each process of a trial."""

    n_trials: int
    cpus: float
    gpus: float
    threads: int


@dataclass(frozen=True)
class Experiment:
    """Placement of the trials of one study, and their search, if any."""

    how: HowConfig
    resources: TrialResources
    quiet: bool
    search: dict[str, SearchAxis] = field(default_factory=dict)
    folder: SearchFolder | None = None
    watch: Watch = unwatched

    def run_points(self, points: Sequence[ResolvedPoint]) -> dict[str, str]:
        """Run every point's trial; returns failures: trial -> last line of its error."""
        entries = [self._entry("baseline", point) for point in self._baselines(points)]
        entries += [self._entry("trial", point) for point in points]
        return self._fit({"entry": entries}, len(entries), None)

    def run_samples(self, samples: Sequence[Sample], records: Mapping[tuple[str, int], SampleRecord]) -> dict[str, str]:
        """Run samples that have no record yet, on values drawn in advance; returns failures."""
        entries = [self._entry("baseline", point) for point in self._baselines([s.base for s in samples])]
        entries += [self._entry("trial", s.base, s.point, s.number, s.values) for s in samples]
        scheduler = None
        if any(s.base.run.finetune.prune for s in samples):
            scheduler = PointASHA(max(s.base.run.finetune.n_steps for s in samples))
            for record in records.values():
                scheduler.replay(record.point, record.number, record.rungs)
        return self._fit({"entry": entries}, len(entries), scheduler)

    def run_optuna(self, samples: Sequence[Sample], records: Mapping[tuple[str, int], SampleRecord]) -> dict[str, str]:
        """Run the remaining samples of one point, on values that Optuna proposes from the known scores."""
        from ray.tune.search.optuna import OptunaSearch

        base, earlier = samples[0].base, sorted(records.values(), key=lambda r: r.number)
        known_scores: dict[str, Any] = {}
        if earlier:
            known_scores["points_to_evaluate"] = [{f"search/{k}": v for k, v in r.values.items()} for r in earlier]
            known_scores["evaluated_rewards"] = [r.score for r in earlier]
        # A new seed once scores are known: the same seed would propose the first samples' values again.
        algorithm = OptunaSearch(
            metric="score", mode="max", seed=base.run.finetune.seed + 7919 * len(earlier), **known_scores
        )
        scheduler = PointASHA(base.run.finetune.n_steps) if base.run.finetune.prune else None
        if scheduler:
            for record in earlier:
                scheduler.replay(record.point, record.number, record.rungs)
        space = {"entry": self._entry("trial", base, samples[0].point)}
        space |= {f"search/{key}": tune_domain(axis) for key, axis in self.search.items()}
        return self._fit(space, len(samples), scheduler, algorithm, [s.number for s in samples])

    def _fit(
        self,
        space: dict[str, Any],
        n: int,
        scheduler: PointASHA | None,
        algorithm: Any = None,
        numbers: Sequence[int] = (),
    ) -> dict[str, str]:
        os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
        os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
        # Tune's handler would end the experiment early and return partial results as if complete.
        os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
        from ray import tune

        for logger in ("ray.tune", "ray.train"):
            logging.getLogger(logger).setLevel(logging.ERROR)
        resources = {"cpu": self.resources.cpus, "gpu": self.resources.gpus}
        if self.how.processes_per_trial > 1:
            # The processes reserve their own resources; the Tune trial only waits for them, on the head node.
            resources = {"node:__internal_head__": 0.001}
        if algorithm is None:
            space = {"entry": tune.grid_search(space["entry"])}
        with (
            Progress("finetune", total=n, unit="trials", quiet=self.quiet) as progress,
            temporary_folder("tune-") as storage_path,
        ):
            watcher = make_watcher(progress, self.how.no_progress_timeout_s, self.folder, numbers, self.watch)
            tune.Tuner(
                tune.with_resources(TRAINABLE, resources),
                param_space=space,
                tune_config=tune.TuneConfig(
                    num_samples=n if algorithm is not None else 1,
                    max_concurrent_trials=self.resources.n_trials,
                    reuse_actors=self.how.reuse_workers,
                    scheduler=scheduler,
                    search_alg=algorithm,
                    trial_name_creator=_trial_name,
                    trial_dirname_creator=_trial_name,
                ),
                run_config=tune.RunConfig(
                    name="trials",
                    storage_path=storage_path,
                    failure_config=tune.FailureConfig(max_failures=self.how.max_retries),
                    callbacks=[watcher],
                    verbose=0,
                ),
            ).fit()
            interrupt.check()
        return dict(watcher.failures)

    def _baselines(self, points: Sequence[ResolvedPoint]) -> list[ResolvedPoint]:
        """One point per base model to measure; measured before its trials, while trials of other models may train.

        Empty if a trial has several processes: its Tune trial has no GPU, and the first trial measures the base model.
        """
        if self.how.processes_per_trial > 1:
            return []
        return distinct(points, "baseline")

    def _entry(
        self, kind: str, base: ResolvedPoint, point: str = "", number: int = -1, values: Mapping[str, Any] | None = None
    ) -> str:
        how = base.run.how.model_copy(
            update={"torch_threads": self.resources.threads, "gpus_per_trial": self.resources.gpus}
        )
        placed = replace(base, run=base.run.model_copy(update={"how": how}))
        fields = {"kind": kind, "resolved": placed.as_json(), "folder": str(Path.cwd())}
        return canonical_json({**fields, "point": point, "number": number, "values": dict(values or {})})


def _trial_name(trial: Any) -> str:
    """The trial id; by default Tune puts the whole configuration into the name."""
    return str(trial.trial_id)


def tune_domain(axis: SearchAxis) -> Any:
    """The axis as a Ray Tune domain."""
    from ray import tune

    if axis.kind == "choice":
        return tune.choice(list(axis.values or ()))
    low, high = bounds(axis)
    if axis.kind == "randint":
        return tune.randint(int(low), int(high))
    return tune.loguniform(low, high) if axis.kind == "loguniform" else tune.uniform(low, high)


def tune_trial(config: dict[str, Any]) -> None:
    """Trainable of Tune. A `VtsweepError` is reported and not retried; any other error may be retried.

    Losses are reported only at the scheduler's rungs: comparisons do not depend on the speed of a machine.
    """
    from ray import tune

    enter_folder(config)
    entry = read_entry(config)
    point, run = entry.resolved, entry.resolved.run
    reached = set(rung_steps(run.finetune.n_steps)) if run.finetune.prune else set()
    last_loss = math.inf

    def report(values: Mapping[str, Any]) -> None:
        nonlocal last_loss
        last_loss = values["loss"]
        if values["step"] in reached:
            tune.report({**values, "score": 0.0, "end": ""})

    end: dict[str, Any] = {"step": run.finetune.n_steps}
    try:
        if entry.kind == "baseline":
            stage = run_baseline(point)
        elif run.how.processes_per_trial > 1 and not (stage := point.stages["finetune"]).is_done():
            with temporary_folder("train-") as storage_path:
                train_together(dict(config), stage.digest, storage_path, run.how)
        else:
            stage = run_trial(point, report)
        tune.report({**end, "loss": last_loss, "score": score(stage), "end": "done"})
    except VtsweepError as error:
        how = "diverged" if isinstance(error, DivergedError) else "failed"
        tune.report({**end, "loss": math.inf, "score": 0.0, "end": how, "reason": str(error)})


def score(stage: Stage) -> float:
    """Objective of a search: the mean accuracy of the tiers; 0 for a base model's stage."""
    values = [value for key, value in stage.summary().items() if key in ("accuracy/low", "accuracy/high")]
    return sum(values) / len(values) if values else 0.0


TRAINABLE = tune_trial
"""The trainable passed to Tune."""
