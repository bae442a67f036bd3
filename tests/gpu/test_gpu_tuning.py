"""Training, drift, answers and deletion on a GPU are what they are on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.ablate.bench import Bench
from orchestrator.answers.evaluate import predict
from orchestrator.answers.prepared import Prepared
from orchestrator.config import RunConfig
from orchestrator.data.mixture import make_evaluation, make_mixture
from orchestrator.finetune.drift import compare
from orchestrator.finetune.lora import tunable
from orchestrator.finetune.train import TrainingLog, train
from orchestrator.finetune.worker import TrialWorker
from orchestrator.models.adapter import Adapter
from orchestrator.store.filesystem import Storage
from orchestrator.study.resolve import resolve_run
from tests.gpu.conftest import loaded, make_run

pytestmark = pytest.mark.cuda

SETTINGS: dict[str, Any] = {
    "finetune__n_steps": 3,
    "finetune__n_examples": 12,
    "finetune__batch_size": 4,
    "finetune__dropout": 0.0,
    "finetune__n_eval_per_family": 4,
    "finetune__n_capture_images": 3,
    "finetune__projector": {"rank": 4, "learning_rate": 1e-3},
}


def trained(adapter: Adapter, run: RunConfig) -> tuple[TrainingLog, dict[str, torch.Tensor]]:
    prepared, mixture = Prepared(adapter), make_mixture(run.finetune, 0.5, 0)

    def batches(step: int) -> list:
        chosen = [prepared.with_answer(mixture[(4 * step + i) % len(mixture)]) for i in range(4)]
        return [adapter.collate(chosen[:2]), adapter.collate(chosen[2:])]

    with tunable(adapter, run.finetune) as tuned:
        return train(adapter, tuned, batches, run.finetune), tuned.weights()


@pytest.mark.parametrize("model", ["reference-joint", "reference-cross"])
def test_losses_gradients_and_weights_in_float32_equal_those_of_the_cpu(model: str, gpu: str) -> None:
    run = make_run(model, **SETTINGS)
    (here, weights), (there, others) = (trained(loaded(model, device), run) for device in ("cpu", gpu))
    for a, b in zip(here.steps, there.steps, strict=True):
        assert b.loss == pytest.approx(a.loss, rel=1e-3)
        assert b.grad_norm == pytest.approx(a.grad_norm, rel=5e-3)
    # LoRA's A is drawn on the CPU in both; Adam's first steps have the size of the rate, whatever the gradient's
    moved = [torch.cat([w.flatten() for name, w in part.items() if "lora_B" in name]) for part in (weights, others)]
    assert torch.nn.functional.cosine_similarity(*moved, dim=0) > 0.99


def test_losses_in_bfloat16_are_close_to_those_in_float32(gpu: str) -> None:
    run = make_run(**SETTINGS)
    here = trained(loaded("reference-joint", "cpu"), run)[0]
    there = trained(loaded("reference-joint", gpu, "bfloat16"), run)[0]
    for a, b in zip(here.steps, there.steps, strict=True):
        assert b.loss == pytest.approx(a.loss, rel=0.05, abs=0.02)
        assert b.grad_norm == pytest.approx(a.grad_norm, rel=0.2)


def test_answers_equal_those_of_the_cpu(gpu: str) -> None:
    run = make_run(**SETTINGS)
    asked = make_evaluation(run.finetune)
    replies = [
        predict(loaded("reference-joint", device), Prepared(loaded("reference-joint", device)), asked, 8)
        for device in ("cpu", gpu)
    ]
    same = np.mean([a.predicted == b.predicted for a, b in zip(*replies, strict=True)])
    assert same >= 0.97  # two choices may be as good as equal
    written = np.mean([a.generated == b.generated for a, b in zip(*replies, strict=True)])
    assert written >= 0.97


def test_drift_between_two_models_equals_the_cpus(gpu: str, tmp_path: Path) -> None:
    point = resolve_run(make_run(**SETTINGS), Storage(str(tmp_path)), "finetune")
    found = []
    for device in ("cpu", gpu):
        adapter = loaded("reference-joint", device)
        worker = TrialWorker(adapter)
        base = worker.snapshot(point)
        block: Any = adapter.layers[1]
        weight = next(p for p in block.parameters() if p.ndim == 2)
        before = weight.detach().clone()
        with torch.no_grad():
            weight.mul_(1.2)
        changed = worker.snapshot(point)
        with torch.no_grad():
            weight.copy_(before)
        found.append(compare(base, changed))
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        loose = 0.02 if "alignment" in name else 5e-3
        assert found[1][name] == pytest.approx(value, rel=loose, abs=loose), name


@pytest.mark.parametrize("method", ["norm", "similarity", "leverage", "question_attention"])
def test_answers_with_deleted_tokens_equal_those_of_the_cpu(method: str, gpu: str) -> None:
    run = make_run(**SETTINGS)
    asked = make_evaluation(run.finetune)[:16]
    answered = [Bench(loaded("reference-joint", device), asked, 8).deleted(method, 0.5) for device in ("cpu", gpu)]
    assert answered[0].kept.tolist() == answered[1].kept.tolist()
    same = np.mean([a == b for a, b in zip(answered[0].predicted, answered[1].predicted, strict=True)])
    assert same >= 0.9  # tokens of nearly equal score may change places
