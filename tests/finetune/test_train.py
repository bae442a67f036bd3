"""The loop trains on answers alone, does not depend on how a step is split, and resumes exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import flop_counter

from orchestrator.answers.logits import answer_logits, answer_loss
from orchestrator.answers.prepared import Prepared
from orchestrator.config import RunConfig
from orchestrator.data.mixture import make_mixture
from orchestrator.errors import StageError
from orchestrator.finetune import recompute
from orchestrator.finetune import train as train_module
from orchestrator.finetune import worker as worker_module
from orchestrator.finetune.lora import tunable
from orchestrator.finetune.process_group import ProcessGroup
from orchestrator.finetune.train import _backward, answer_tokens, check_checkpoint, schedule, train
from orchestrator.finetune.worker import step_indices, worker_for
from orchestrator.models.adapter import Adapter
from orchestrator.models.loading import load_adapter
from orchestrator.store.filesystem import Storage
from tests.points import trial_point

MakeRun = Callable[..., RunConfig]


def fixed_batches(adapter: Adapter, run: RunConfig) -> Callable[[int], list]:
    prepared, mixture = Prepared(adapter), make_mixture(run.finetune, 0.5, 0)
    size = run.finetune.batch_size // run.finetune.accumulate

    def batches(step: int) -> list:
        chosen = step_indices(step, run.finetune.batch_size, len(mixture), run.finetune.seed)
        examples = [prepared.with_answer(mixture[i]) for i in chosen]
        return [adapter.collate(examples[i : i + size]) for i in range(0, len(examples), size)]

    return batches


def trained(adapter: Adapter, run: RunConfig, **kwargs: Any) -> tuple[dict[str, torch.Tensor], list[float]]:
    with tunable(adapter, run.finetune) as tuned:
        log = train(adapter, tuned, fixed_batches(adapter, run), run.finetune, **kwargs)
        return tuned.weights(), [step.loss for step in log.steps]


def test_the_loss_is_of_answer_tokens_alone(adapter: Adapter, make_run: MakeRun) -> None:
    example = Prepared(adapter).with_answer(make_mixture(make_run().finetune, 1.0, 0)[0])
    labels = example["labels"][0]
    answer = adapter.tokenizer.decode(labels[labels != -100], skip_special_tokens=True)
    assert answer == make_mixture(make_run().finetune, 1.0, 0)[0].question.answer
    assert (labels[labels != -100] == example["input_ids"][0][labels != -100]).all()
    with torch.no_grad():
        loss, n = answer_loss(*answer_logits(adapter, example))
        full = adapter.run({k: v for k, v in example.items() if k != "labels"}).logits[0].log_softmax(-1)
    places = (labels != -100).nonzero()[:, 0]
    expected = -sum(float(full[place - 1, labels[place]]) for place in places)
    assert n == len(places)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_the_gradient_of_a_question_token_target_is_zero(adapter: Adapter, make_run: MakeRun) -> None:
    """Other answers to the same question change the loss; other labels of unlabelled places cannot."""
    example = Prepared(adapter).with_answer(make_mixture(make_run().finetune, 0.0, 0)[0])
    logits = torch.zeros(1, example["labels"].shape[1], 50, requires_grad=True)
    answer_loss(logits, example["labels"].clamp(max=49))[0].backward()
    touched = logits.grad.abs().sum(-1)[0] > 0
    labelled = example["labels"][0] != -100
    assert torch.equal(touched[:-1], labelled[1:])


def test_accumulation_changes_nothing(adapter: Adapter, make_run: MakeRun) -> None:
    whole, losses = trained(adapter, make_run(accumulate=1))
    split, split_losses = trained(adapter, make_run(accumulate=4))
    assert losses == pytest.approx(split_losses, rel=1e-4)
    for name, weight in whole.items():
        torch.testing.assert_close(split[name], weight, rtol=1e-3, atol=1e-3)


def test_recomputing_activations_changes_nothing(adapter: Adapter, make_run: MakeRun) -> None:
    plain, losses = trained(adapter, make_run())
    recomputed, same = trained(adapter, make_run(), recompute=True)
    assert losses == pytest.approx(same, rel=1e-6)
    assert all(torch.allclose(recomputed[name], weight, atol=1e-5) for name, weight in plain.items())


def test_a_step_without_room_recomputes_from_then_on(adapter: Adapter, make_run: MakeRun, monkeypatch) -> None:
    plain, losses = trained(adapter, make_run())
    asked: list[bool] = []
    work = train_module._backward

    def full(*args: Any, recompute: bool, **kwargs: Any) -> float:
        asked.append(recompute)
        found = work(*args, recompute=recompute, **kwargs)
        if not recompute:
            raise torch.OutOfMemoryError
        return found

    monkeypatch.setattr(train_module, "_backward", full)
    again, same = trained(adapter, make_run())
    assert asked == [False, True, True, True, True]
    assert losses == pytest.approx(same, rel=1e-6)
    assert all(torch.allclose(again[name], weight, atol=1e-5) for name, weight in plain.items())


def test_memory_at_hand_decides_about_recomputing(adapter: Adapter, monkeypatch) -> None:
    monkeypatch.setattr(recompute, "free_bytes", lambda _: 10**9)
    assert not recompute.needs_recomputing(adapter, 100)
    assert recompute.needs_recomputing(adapter, 10**8)


def test_counted_operations_do_not_depend_on_recomputing(adapter: Adapter, make_run: MakeRun) -> None:
    run = make_run(n_steps=1)
    counts = []
    for again in (False, True):
        with tunable(adapter, run.finetune) as tuned:
            counts.append(train(adapter, tuned, fixed_batches(adapter, run), run.finetune, recompute=again).flops)
    assert counts[0] == counts[1] > 0


def test_an_operation_without_a_formula_stops_no_training(adapter: Adapter, make_run: MakeRun, monkeypatch) -> None:
    def unknown(*_: Any) -> int:
        raise AssertionError("query/key/value shapes are incompatible")

    run = make_run(n_steps=1)
    counts = []
    for broken in (False, True):
        if broken:
            monkeypatch.setattr(flop_counter, "sdpa_flop_count", unknown)
        with tunable(adapter, run.finetune) as tuned:
            counts.append(train(adapter, tuned, fixed_batches(adapter, run), run.finetune).flops_per_token)
    assert 0.3 < counts[1] / counts[0] < 3  # embeddings count as weights, attention does not


@pytest.mark.parametrize("method", ["lora", "full"])
def test_small_changes_of_bfloat16_weights_are_kept(make_run: MakeRun, method: str) -> None:
    """A change below half a unit in the last place is lost in bfloat16, and adds up in the float32 master."""
    part = {"rank": 4, "learning_rate": 1e-5}
    run = make_run(method=method, language=part, projector=part, n_steps=4, warmup_share=0.0)
    coarse = load_adapter(run.model.model_copy(update={"dtype": "bfloat16"}))
    with tunable(coarse, run.finetune) as tuned:
        assert {p.dtype for p in tuned.parameters.values()} == {torch.bfloat16}
        before = tuned.weights()
        train(coarse, tuned, fixed_batches(coarse, run), run.finetune)
        after = tuned.weights()
        for name, parameter in tuned.parameters.items():
            assert torch.equal(parameter.detach(), after[name].to(torch.bfloat16))
    assert {weight.dtype for weight in after.values()} == {torch.float32}
    moved = torch.cat([(after[name] - before[name]).abs().flatten() for name in after])
    assert 1e-6 < float(moved.max()) < 1e-4
    assert float((moved > 0).float().mean()) > 0.4


@pytest.mark.parametrize("settings", [{}, {"dropout": 0.3}, {"method": "full"}])
def test_resume_equals_an_uninterrupted_run(adapter: Adapter, make_run: MakeRun, settings: dict) -> None:
    run = make_run(**settings)
    weights, losses = trained(adapter, run)
    saved: list[bytes] = []
    before: list[Any] = []

    class Killed(Exception):  # noqa: N818
        pass

    def kill(record: Any) -> None:
        before.append(record)
        if record.step == 2:
            raise Killed

    with pytest.raises(Killed):
        trained(adapter, run, save=saved.append, save_every=2, report=kill)
    torch.rand(7)  # whatever happened in between
    with tunable(adapter, run.finetune) as tuned:
        log = train(adapter, tuned, fixed_batches(adapter, run), run.finetune, resume=saved[-1])
        resumed = tuned.weights()
    assert [record.loss for record in log.steps] == losses
    assert log.steps[:2] == before[:2], "seconds and tokens of the first attempt count"
    assert log.seconds == pytest.approx(sum(r.seconds for r in (*before[:2], *log.steps[2:])))
    for name, weight in weights.items():
        assert torch.equal(resumed[name], weight), name


def test_dropout_follows_from_seed_step_and_place_alone(adapter: Adapter, make_run: MakeRun, monkeypatch) -> None:
    """So every process of a trial resumes exactly, on whichever devices, from the one checkpoint its leader wrote."""
    run = make_run(dropout=0.5, accumulate=2)
    batches = fixed_batches(adapter, run)(0)
    monkeypatch.setattr(ProcessGroup, "sum", lambda *given: given[1])

    def gradient(seed: tuple[int, ...], processes: ProcessGroup) -> torch.Tensor:
        with tunable(adapter, run.finetune) as tuned:
            adapter.model.train()
            torch.rand(torch.seed() % 5)
            _backward(adapter, tuned, processes.share(batches), processes, seed, answer_tokens(batches))
            found = [torch.zeros_like(p) if p.grad is None else p.grad for p in tuned.parameters.values()]
            return torch.cat([grad.flatten() for grad in found])

    alone = gradient((0, 3), ProcessGroup())
    assert torch.equal(gradient((0, 3), ProcessGroup()), alone)
    assert not torch.equal(gradient((0, 4), ProcessGroup()), alone)
    shared = gradient((0, 3), ProcessGroup(0, 2)) + gradient((0, 3), ProcessGroup(1, 2))
    torch.testing.assert_close(shared, alone)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_step_depends_on_neither_the_number_of_processes_nor_of_micro_batches(
    make_run: MakeRun, monkeypatch, tmp_path: Path, dropout: float
) -> None:
    """Through the worker's own micro-batches: gradient, loss and counted tokens; examples may come twice in a step.

    Each process prepares its own share alone.
    """

    def step_of(n_processes: int, accumulate: int) -> tuple[torch.Tensor, float, int, int, int]:
        run = make_run(dropout=dropout, batch_size=6, accumulate=accumulate, n_examples=8)
        point = trial_point(run, Storage(str(tmp_path)))
        worker, shares, n_prepared = worker_for(point), [], 0
        monkeypatch.setattr(worker_module, "train", lambda *args, **_: shares.append(args[2](1)))
        monkeypatch.setattr(ProcessGroup, "sum", lambda *given: given[1])
        prepared = worker.prepared(point)
        for rank in range(n_processes):
            asked: list[Any] = []
            monkeypatch.setattr(
                worker_module, "current_process_group", lambda rank=rank: ProcessGroup(rank, n_processes)
            )
            with monkeypatch.context() as patch:
                original = prepared.with_answer
                patch.setattr(prepared, "with_answer", lambda one: asked.append(one) or original(one))  # noqa: B023
                worker.train(point, None, point.storage)  # type: ignore[arg-type]
            n_prepared += len(asked) - 1  # operations are counted on one more
        total, loss, n_answer = torch.zeros(()), 0.0, sum(map(answer_tokens, shares))
        for rank, found in enumerate(shares):
            with tunable(worker.adapter, run.finetune) as tuned:
                worker.adapter.model.train(dropout > 0)
                part = _backward(worker.adapter, tuned, found, ProcessGroup(rank, n_processes), (0, 1), n_answer)
                grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in tuned.parameters.values()]
                total = total + torch.cat([grad.flatten() for grad in grads])
                loss += part
            worker.adapter.model.eval()
        n_tokens = sum(int(batch["attention_mask"].sum()) for found in shares for batch in found)
        return total, loss, n_answer, n_tokens, n_prepared

    alone = step_of(1, 1)
    assert alone[4] == 6
    assert alone[0].abs().max() > 0
    for other in (step_of(2, 1), step_of(3, 1), step_of(1, 3)):
        torch.testing.assert_close(other[0], alone[0], rtol=1e-3, atol=1e-5)
        assert other[1] == pytest.approx(alone[1], rel=1e-4)
        assert other[2:] == alone[2:]


def test_a_finished_checkpoint_trains_no_further(adapter: Adapter, make_run: MakeRun) -> None:
    saved: list[bytes] = []
    weights, _ = trained(adapter, make_run(), save=saved.append)
    seen: list[Any] = []
    again, _ = trained(adapter, make_run(), resume=saved[-1], report=seen.append)
    assert not seen
    assert all(torch.equal(again[name], weight) for name, weight in weights.items())


def test_a_checkpoint_of_other_parts_is_refused(adapter: Adapter, make_run: MakeRun) -> None:
    saved: list[bytes] = []
    trained(adapter, make_run(), save=saved.append)
    with pytest.raises(StageError, match="differ in trained parameters"):
        trained(adapter, make_run(vision={"rank": 2, "learning_rate": 1e-3}), resume=saved[-1])


def test_divergence_is_an_error_that_names_the_step(adapter: Adapter, make_run: MakeRun) -> None:
    run = make_run(language={"rank": 4, "learning_rate": 1e30}, max_grad_norm=1e30, warmup_share=0.0)
    with pytest.raises(StageError, match=r"at step \d: training diverged"):
        trained(adapter, run)


def test_the_schedule_warms_up_and_falls_to_nothing(make_run: MakeRun) -> None:
    config = make_run(n_steps=100, warmup_share=0.1).finetune
    rates = [schedule(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == 1.0
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001
    assert math.isclose(rates[55], 0.5, abs_tol=0.01)


def test_every_pass_over_the_mixture_takes_each_example_once() -> None:
    first = [i for step in range(4) for i in step_indices(step, 8, 32, seed=3)]
    second = [i for step in range(4, 8) for i in step_indices(step, 8, 32, seed=3)]
    assert first == list(range(32)), "the first pass keeps the mixture's own order"
    assert sorted(second) == first
    assert second != first
    across = [i for step in range(8) for i in step_indices(step, 5, 10, seed=3)]
    assert all(sorted(across[k : k + 10]) == list(range(10)) for k in range(0, 40, 10))


def test_a_checkpoint_that_is_damaged_or_no_checkpoint_is_known_by_its_checksum(
    adapter: Adapter, make_run: MakeRun, tmp_path: Path
) -> None:
    saved: list[bytes] = []
    trained(adapter, make_run(n_steps=1), save=saved.append)
    data = saved[-1]
    assert not check_checkpoint(data)
    flipped = bytearray(data)
    flipped[-5] ^= 1
    torch.save({"x": torch.zeros(1)}, tmp_path / "pickle")
    other_log = data.replace(b"n_tokens", b"n_tokenz")
    for bad in (bytes(flipped), data[:-7], b"", other_log, (tmp_path / "pickle").read_bytes(), b"\xff" * 64):
        assert check_checkpoint(bad)
