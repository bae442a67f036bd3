"""One trial, a plain function: train on a mixture, evaluate held-out questions, measure compression, compare.

Two stages. `baseline`: the base model's answers, and its states on the fixed images; computed once and found by its
digest. `finetune`: one trial. Importing this module does not import torch.

    baseline/DIGEST/   answers, layer_metrics, asked_metrics, states/TAP-GROUP (float32; images, layers, tokens, width)
    finetune/DIGEST/   trials (one row), answers, layer_metrics, asked_metrics, training, adapter/ (LoRA weights);
                       checkpoint.safetensors and live.json while it runs

Columns of table `trials` beyond those of schema.py, all flat names:

- settings: `method`, `lora_rank`, `lora_rank_projector`, `lora_rank_vision`, `learning_rate`,
  `learning_rate_projector`, `learning_rate_vision`, `batch_size`, `n_examples`, `n_trained` (parameters);
- costs: `step_seconds` (median of a step), `trial_seconds` (training, evaluation and capture), `train_tokens`;
- `accuracy/TIER`, `accuracy/TIER/FAMILY`, `accuracy_base/...`, each with `_low`, `_high`; `accuracy_generated/...`
  and `valid_share/...`; `gain/TIER` (tuned minus base); `blind/TIER`, `blind/TIER/FAMILY` (`evaluate.blind_columns`);
  `count_error/TIER`, `point_distance/TIER` and `..._base/TIER` (`evaluate.accuracy_columns`);
- `compression/GROUP/METRIC/THIRD`, `delta/GROUP/METRIC/THIRD`, `drift/GROUP/THIRD`, `cka/GROUP/THIRD`,
  `alignment/GROUP/THIRD` (`drift.compare`), and `asked/TIER/delta/...`, `asked/TIER/compression/...` on held-out
  questions' own images and prompts (`drift.compare_asked`);
- `questions/TIER/...`: differences between the tiers other than the ratio (`data.mixture.tier_facts`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import polars as pl

from orchestrator.config import RunConfig
from orchestrator.data.mixture import make_evaluation, make_mixture, tier_facts
from orchestrator.finetune.finetune_stage import CHECKPOINT, Report, task_source
from orchestrator.store.live_file import LiveWriter
from orchestrator.store.resolved_point import ResolvedPoint
from orchestrator.store.stage_folder import Stage
from orchestrator.store.tables.core import check_table, rejected_rows

if TYPE_CHECKING:
    from orchestrator.finetune.drift import Snapshot
    from orchestrator.finetune.train import TrainingLog
    from orchestrator.finetune.worker import Measured


@dataclass(frozen=True)
class TrialResult:
    """Measurements of a trial on its tuned model."""

    log: TrainingLog
    n_trained: int
    """Trained parameters."""
    adapter: dict[str, bytes]
    """File name -> content of the LoRA weights."""
    measured: Measured
    seconds: float
    """Wall time of training (including earlier attempts), evaluation and capture."""


def run_baseline(point: ResolvedPoint) -> Stage:
    """Answer and capture with the base model, unless the stage is done."""
    stage = point.stages["baseline"]
    if not stage.is_done():
        from orchestrator.finetune.worker import measure, worker_for

        stage.open()
        measured = measure(worker_for(point), point)
        arrays = {f"states/{name}": states for name, states in measured.snapshot.states.items()}
        counts = {name: counts.tolist() for name, counts in measured.snapshot.counts.items()}
        stage.write_shard(0, measured.tables, arrays, {"layers": measured.snapshot.layers, "counts": counts})
        n_images = len(next(iter(counts.values())))
        stage.mark_done({"n_answers": measured.answers.height, "n_images": n_images})
    return stage


def run_trial(point: ResolvedPoint, report: Report | None = None) -> Stage:
    """Run a trial to its end, resuming from its last checkpoint; returns at once if it is done.

    Raises:
        VtsweepError: the configuration, model or data do not allow the trial, or training diverged.
    """
    stage = point.stages["finetune"]
    if stage.is_done():
        run_baseline(point)  # it may have been taken back
        return stage
    from orchestrator.store.memory import return_freed_memory

    try:
        result = train_and_measure(point, report)
        if result is not None:  # the main process measures and writes
            write_trial(point, result, run_baseline(point))
    finally:
        return_freed_memory()
    return stage


def train_and_measure(point: ResolvedPoint, report: Report | None = None) -> TrialResult | None:
    """Train on the point's mixture, then answer and capture with the tuned model; None unless the main process."""
    from orchestrator.finetune.lora import tunable
    from orchestrator.finetune.process_group import current_process_group
    from orchestrator.finetune.worker import measure, worker_for

    stage, worker, is_main = point.stages["finetune"], worker_for(point), current_process_group().is_main
    if is_main:
        stage.open()
    live = LiveWriter(stage.store)

    def shown(values: Mapping[str, Any]) -> None:
        if is_main:
            live.step(values["step"], values["loss"])
        if report is not None:
            report(values)

    with tunable(worker.adapter, point.run.finetune) as tuned:
        log = worker.train(point, tuned, stage.store, shown)
        if not is_main:
            return None
        live.state("answering held-out questions")
        started = time.perf_counter()
        measured = measure(worker, point, lambda answers: live.state("measuring compression", tier_accuracy(answers)))
        seconds = log.seconds + time.perf_counter() - started  # includes earlier attempts, from the checkpoint
        n_trained = sum(p.numel() for p in tuned.parameters.values())
        return TrialResult(log, n_trained, tuned.files(point.run.model.name), measured, seconds)


def write_trial(point: ResolvedPoint, result: TrialResult, baseline: Stage) -> None:
    """Write a trial's tables and adapter, mark it done and delete its checkpoint."""
    stage = point.stages["finetune"]
    adapter = result.adapter if point.run.how.keep_adapters else {}
    row = trial_row(point, result, baseline)
    training = pl.DataFrame([asdict(step) for step in result.log.steps])
    tables = {
        "trials": check_table(pl.DataFrame([row], infer_schema_length=None), "trials"),
        **result.measured.tables,
        "training": check_table(training, "training"),
    }
    if point.run.finetune.task.source == "questions":
        tables["trial_rejected"] = rejected_rows(_rejected(point), "trial_rejected")
    stage.write_shard(0, tables, files={f"adapter/{name}": data for name, data in adapter.items()})
    stage.mark_done({k: row[k] for k in row if k.startswith("accuracy/") and k.count("/") == 1})
    stage.store.remove(CHECKPOINT)
    LiveWriter(stage.store).remove()


def tier_accuracy(answers: pl.DataFrame) -> dict[str, float]:
    """`accuracy/TIER` -> share of right answers."""
    shares = answers.group_by("tier").agg(pl.col("correct").mean())
    return {f"accuracy/{tier}": float(share) for tier, share in shares.iter_rows() if tier and share is not None}


def _rejected(point: ResolvedPoint) -> list[tuple[int, str, str]]:
    """Rows of question files that this trial could not train on or ask: place, id and fault, each row once."""
    run, config = point.run, point.run.finetune
    rejected: list[tuple[int, str, str]] = []
    make_mixture(config, config.complexity_ratio, config.seed, task_source(run), rejected)
    make_evaluation(config, task_source(run, held_out=True), rejected=rejected)
    return list({name: row for row in rejected for name in [row[1]]}.values())


def load_baseline(stage: Stage) -> tuple[pl.DataFrame, Snapshot]:
    """The base model's answers and snapshot, from the files of a `baseline` stage."""
    import numpy as np

    from orchestrator.finetune.drift import Snapshot

    extra = stage.finished_shards()[0]["extra"]
    states = {name: stage.arrays(f"states/{name}")[0] for name in extra["layers"]}
    counts = {name: np.array(values) for name, values in extra["counts"].items()}
    return stage.scan("answers").collect(), Snapshot(
        stage.scan("layer_metrics").collect(), states, counts, extra["layers"]
    )


def trial_row(point: ResolvedPoint, result: TrialResult, baseline: Stage) -> dict[str, Any]:
    """The trial's row of table `trials`."""
    from orchestrator.answers.evaluate import accuracy_columns, blind_columns
    from orchestrator.finetune.drift import compare, compare_asked

    run, config, log, measured = point.run, point.run.finetune, result.log, result.measured
    base_answers, base_snapshot = load_baseline(baseline)
    row: dict[str, Any] = {
        "trial": point.stages["finetune"].digest,
        "model": run.model.label,
        "complexity_ratio": config.complexity_ratio,
        "seed": config.seed,
        "status": "done",
        "n_steps": config.n_steps,
        "train_seconds": log.seconds,
        "train_flops": log.flops,
        "final_loss": log.final_loss,
        **setting_columns(run),
        "step_seconds": median(step.seconds for step in log.steps),
        "train_tokens": sum(step.n_tokens for step in log.steps),
    }
    row |= accuracy_columns(measured.answers)
    row |= accuracy_columns(base_answers, "_base")
    row |= blind_columns(measured.answers)
    row |= tier_facts(make_evaluation(config, task_source(run, held_out=True)))
    for tier in ("low", "high"):
        if f"accuracy/{tier}" in row:
            row[f"gain/{tier}"] = row[f"accuracy/{tier}"] - row[f"accuracy_base/{tier}"]
    row |= compare(base_snapshot, measured.snapshot)
    if measured.asked is not None:
        row |= compare_asked(baseline.scan("asked_metrics").collect(), measured.asked, measured.answers)
    return row | {"n_trained": result.n_trained, "trial_seconds": result.seconds}


def setting_columns(run: RunConfig) -> dict[str, Any]:
    """The settings of a trial as flat columns."""
    config = run.finetune
    return {
        "method": config.method,
        "lora_rank": config.language.rank,
        "lora_rank_projector": config.projector.rank,
        "lora_rank_vision": config.vision.rank,
        "learning_rate": config.language.learning_rate,
        "learning_rate_projector": config.projector.learning_rate,
        "learning_rate_vision": config.vision.learning_rate,
        "batch_size": config.batch_size,
        "n_examples": config.n_examples,
        "novelty_ratio": config.novelty_ratio,
    }
