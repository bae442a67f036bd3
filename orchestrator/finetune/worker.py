"""A process that runs trials: one loaded base model, and cached model inputs shared by trials."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch

from orchestrator.answers.evaluate import answer_table, predict
from orchestrator.answers.prepared import Prepared
from orchestrator.cluster.placement import n_cores
from orchestrator.compression.registry import chosen_names
from orchestrator.data.mixture import Example, make_evaluation, make_mixture
from orchestrator.data.source import make_source
from orchestrator.errors import DataError
from orchestrator.finetune.drift import Snapshot, take_snapshot
from orchestrator.finetune.finetune_stage import CHECKPOINT, Report, task_source
from orchestrator.finetune.lora import Tuned
from orchestrator.finetune.process_group import current_process_group
from orchestrator.finetune.train import TrainingLog, check_checkpoint, train
from orchestrator.models.adapter import Adapter
from orchestrator.models.batching import Batch
from orchestrator.models.loading import load_adapter
from orchestrator.store.filesystem import Storage
from orchestrator.store.resolved_point import ResolvedPoint
from orchestrator.store.stage_folder import digest

_WORKERS: dict[str, TrialWorker] = {}


def worker_for(point: ResolvedPoint) -> TrialWorker:
    """This process's worker for the point's base model, loaded on first use; only one model is in memory at a time."""
    run, key = point.run, digest(dict(point.model))
    if run.how.torch_threads is not None:
        torch.set_num_threads(min(run.how.torch_threads, n_cores()))  # a cluster's mean may exceed this node's cores
    if key not in _WORKERS:
        _WORKERS.clear()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        _WORKERS[key] = TrialWorker(load_adapter(run.model, device, run.how.device_map, run.how.weights_cache))
    return _WORKERS[key]


class TrialWorker:
    """Trains, evaluates and measures one model. Every method leaves the model unchanged."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self._prepared: dict[str, Prepared] = {}
        self._images: dict[str, tuple[list[str], list[Batch]]] = {}

    def prepared(self, point: ResolvedPoint) -> Prepared:
        """Cached inputs of the point's task; a task of different settings replaces it."""
        config = point.run.finetune
        data = dict(point.data) if config.task.source != "scenes" else None
        key = digest([config.task.model_dump(mode="json"), config.instruction, data])
        if key not in self._prepared:
            self._prepared = {key: Prepared(self.adapter, config.instruction)}
        return self._prepared[key]

    def train(self, point: ResolvedPoint, tuned: Tuned, store: Storage, report: Report | None = None) -> TrainingLog:
        """Train on the point's mixture, with checkpoints in `store`; resumes from an existing one."""
        run, config = point.run, point.run.finetune
        mixture = make_mixture(config, config.complexity_ratio, config.seed, task_source(run))
        prepared, processes = self.prepared(point), current_process_group()

        def micro_batches(step: int) -> list[Batch]:
            indices = step_indices(step, config.batch_size, len(mixture), config.seed)
            size = max(1, config.batch_size // config.accumulate // processes.size)
            if config.dropout:
                size = 1  # an example's dropout then depends on neither the examples beside it nor the processes
            batches = []
            for start in processes.share(range(0, len(indices), size)):
                examples = [prepared.with_answer(mixture[i]) for i in indices[start : start + size]]
                chunks = prepared.batches(dict(enumerate(examples)), size)
                batches += [self.adapter.collate([examples[i] for i in chunk]) for chunk in chunks]
            return batches

        return train(
            self.adapter,
            tuned,
            micro_batches,
            config,
            resume=_whole_checkpoint(store),
            save=lambda data: store.write(CHECKPOINT, data),
            save_every=run.how.checkpoint_steps,
            recompute=None if run.how.gradient_checkpointing == "auto" else run.how.gradient_checkpointing,
            sample=self.adapter.collate([prepared.with_answer(mixture[0])]),
            report=None if report is None else lambda record: report({"step": record.step + 1, "loss": record.loss}),
        )

    def answers(self, point: ResolvedPoint) -> pl.DataFrame:
        """Table `answers` of the point's held-out questions."""
        run = point.run
        questions: Sequence[Example] = make_evaluation(run.finetune, task_source(run, held_out=True))
        replies = predict(self.adapter, self.prepared(point), questions, run.how.batch_size, by=run.finetune.answer_by)
        return answer_table(questions, replies)

    def asked_metrics(self, point: ResolvedPoint) -> pl.DataFrame | None:
        """Compression on the images and prompts of `n_capture_questions` held-out questions; None for zero.

        Returns table `layer_metrics` with the question id in `image_id`.
        """
        run = point.run
        questions = spread(
            make_evaluation(run.finetune, task_source(run, held_out=True)), run.finetune.n_capture_questions
        )
        if not questions:
            return None
        prepared = self.prepared(point)
        examples = [prepared.prompt(item) for item in questions]
        ids = [item.question.question_id for item in questions]
        batches = prepared.batches(dict(enumerate(examples)), run.how.batch_size)
        metrics = chosen_names(run.capture.metrics, run.capture.spectrum)
        return take_snapshot(self.adapter, examples, ids, batches, metrics, 1).metrics

    def snapshot(self, point: ResolvedPoint) -> Snapshot:
        """The model's states on the first `n_capture_images` readable images of the point's data."""
        run = point.run
        ids, examples = self._capture_examples(point)
        batches = self.prepared(point).batches(dict(enumerate(examples)), run.how.batch_size)
        metrics = chosen_names(run.capture.metrics, run.capture.spectrum)
        return take_snapshot(self.adapter, examples, ids, batches, metrics, run.finetune.n_drift_tokens)

    def _capture_examples(self, point: ResolvedPoint) -> tuple[list[str], list[Batch]]:
        run, n_images = point.run, point.run.finetune.n_capture_images
        key = digest([dict(point.data), n_images, run.capture.prompt])
        if key not in self._images:
            source = make_source(run.data)
            ids: list[str] = []
            examples: list[Batch] = []
            for index in range(len(source)):
                if len(ids) == n_images:
                    break
                try:
                    sample = source.load(index)
                except DataError:
                    continue  # the capture stage of the same data records it as rejected
                ids.append(sample.image_id)
                examples.append(self.adapter.prepare(sample.pictures, sample.prompt or run.capture.prompt))
            if not ids:
                raise DataError(f"data: none of {len(source)} images can be read")
            self._images = {key: (ids, examples)}
        return self._images[key]


@dataclass(frozen=True)
class Measured:
    """Answers of one model, and its states on the fixed images."""

    answers: pl.DataFrame
    snapshot: Snapshot
    asked: pl.DataFrame | None
    """Compression on the images of held-out questions; None if not measured."""

    @property
    def tables(self) -> dict[str, pl.DataFrame]:
        """The tables written by a baseline and by a trial."""
        tables = {"answers": self.answers, "layer_metrics": self.snapshot.metrics}
        return tables if self.asked is None else {**tables, "asked_metrics": self.asked}


def measure(
    worker: TrialWorker, point: ResolvedPoint, answered: Callable[[pl.DataFrame], None] = lambda _: None
) -> Measured:
    """Answer and capture with the worker's model in its current state; `answered` is called before the capture."""
    answers = worker.answers(point)
    answered(answers)
    return Measured(answers, worker.snapshot(point), worker.asked_metrics(point))


def _whole_checkpoint(store: Storage) -> bytes | None:
    """A trial's checkpoint; None if absent or damaged, in which case the trial restarts."""
    try:
        data = store.read(CHECKPOINT)
    except FileNotFoundError:
        return None
    if problem := check_checkpoint(data):
        warnings.warn(f"{store.path(CHECKPOINT)} is damaged ({problem}); the trial restarts", stacklevel=2)
        return None
    return data


def spread(questions: Sequence[Example], n: int) -> list[Example]:
    """At most n questions, balanced over tiers and over the families of each tier."""
    tiers = sorted({item.question.tier or "" for item in questions})
    chosen: list[Example] = []
    for place, tier in enumerate(tiers):
        inside = [item for item in questions if (item.question.tier or "") == tier]
        share = min(len(inside), (n + len(tiers) - 1 - place) // len(tiers))
        chosen += [inside[i * len(inside) // share] for i in range(share)]
    return chosen


def step_indices(step: int, batch_size: int, n: int, seed: int) -> list[int]:
    """Examples of an optimiser step: the first epoch in the mixture's order, later epochs reshuffled.

    Depends on its arguments only, so that a resumed run continues with the next examples.
    """
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = places // n
    indices: list[int] = []
    for epoch in np.unique(epochs):
        order = np.arange(n) if epoch == 0 else np.random.default_rng([seed, int(epoch)]).permutation(n)
        indices += order[places[epochs == epoch] % n].tolist()
    return indices
