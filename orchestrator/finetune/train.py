"""The training loop: warm-up and cosine, accumulation, clipping, loss on answer tokens only, exact resume.

A step, dropout included, depends only on its number and on the state in a checkpoint (weights, optimiser), not on when
the process started: a resumed run ends with exactly the weights of an uninterrupted one. A checkpoint is one
safetensors file; nothing is pickled. Of several processes (`process_group.py`) each prepares and computes a share of
every step.

Shapes: B examples of a micro-batch, S sequence positions, K last positions that hold answer tokens.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch.utils.flop_counter import FlopCounterMode

from orchestrator.answers.logits import answer_logits, answer_loss
from orchestrator.config import FinetuneConfig
from orchestrator.errors import DivergedError
from orchestrator.finetune.lora import Tuned
from orchestrator.finetune.process_group import ProcessGroup, current_process_group
from orchestrator.finetune.recompute import needs_recomputing, recomputing
from orchestrator.models.adapter import Adapter
from orchestrator.models.batching import Batch

MicroBatches = Callable[[int], Sequence[Batch]]
"""Step number -> this process's micro-batches, each with `labels`: of several processes every n-th from its rank on."""


@dataclass
class StepRecord:
    """Record of one optimiser step; a row of table `training`."""

    step: int
    loss: float
    """Mean cross-entropy of the step's answer tokens, nats."""
    grad_norm: float
    """Global gradient norm, before clipping."""
    rate: float
    """Factor of the peak learning rates, from the schedule."""
    n_answer_tokens: int
    n_tokens: int
    """Sequence positions of the step's examples without padding (padding depends on which examples share a pass)."""
    seconds: float
    """Wall time, including preparation of the examples."""


@dataclass
class TrainingLog:
    """Records of all finished steps, independent of the number of processes."""

    steps: list[StepRecord] = field(default_factory=list)
    flops_per_token: float = 0.0
    """Floating-point operations of forward and backward per sequence position, counted on the first step."""

    @property
    def seconds(self) -> float:
        return sum(s.seconds for s in self.steps)

    @property
    def flops(self) -> float:
        return self.flops_per_token * sum(s.n_tokens for s in self.steps)

    @property
    def final_loss(self) -> float:
        """Mean loss over the last tenth of the steps."""
        last = self.steps[-max(1, len(self.steps) // 10) :]
        return sum(s.loss for s in last) / len(last)


def schedule(step: int, config: FinetuneConfig) -> float:
    """Factor of the peak learning rate at a step (from 0): linear warm-up, then cosine decay to near zero."""
    warm = round(config.warmup_share * config.n_steps)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, config.n_steps - warm)))


def train(
    adapter: Adapter,
    tuned: Tuned,
    micro_batches: MicroBatches,
    config: FinetuneConfig,
    *,
    resume: bytes | None = None,
    save: Callable[[bytes], None] | None = None,
    save_every: int = 50,
    report: Callable[[StepRecord], None] | None = None,
    recompute: bool | None = None,
    sample: Batch | None = None,
) -> TrainingLog:
    """Train until `config.n_steps` steps are done.

    Args:
        micro_batches: the data; a function of the step number only.
        resume: a checkpoint that an earlier call passed to `save`.
        save: receives a checkpoint every `save_every` steps and after the last one.
        report: receives each step's record.
        recompute: whether the backward pass recomputes activations; None decides by free memory, and switches it
            on at the first step that runs out of memory.
        sample: example on which operations are counted; None for the first micro-batch.

    Raises:
        DivergedError: the loss is not finite.
    """
    processes = current_process_group()
    # The fused kernel exists on CUDA only; it needs float32, the dtype of the master weights.
    fused = True if adapter.device.type == "cuda" else None
    optimiser = torch.optim.AdamW(tuned.optimiser_groups(), weight_decay=config.weight_decay, fused=fused)
    log = TrainingLog()
    if resume is not None:
        log = _restore(resume, tuned, optimiser)
    adapter.model.train(config.dropout > 0)
    with _ahead(micro_batches, config.n_steps) as batches_of:
        for step in range(len(log.steps), config.n_steps):
            started = time.perf_counter()
            batches = batches_of(step)
            if not log.flops_per_token:
                log.flops_per_token = _flops_per_token(adapter, tuned, batches[0] if sample is None else sample)
            largest = max((batch["input_ids"].numel() for batch in batches), default=0)
            again = needs_recomputing(adapter, largest) if recompute is None else recompute
            n_answer = int(processes.sum(answer_tokens(batches), adapter.device))
            work = partial(
                _backward, adapter, tuned, batches, processes, (config.seed, step), n_answer, dropout=config.dropout > 0
            )
            loss = _within_memory(work, again)
            if loss is None:
                tuned.zero_grad()
                torch.cuda.empty_cache()
                recompute = True
                loss = work(recompute=True)
            masters = list(tuned.masters.values())
            processes.sum_gradients(masters)
            norm = torch.nn.utils.clip_grad_norm_(masters, config.max_grad_norm)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                words = f"the loss is {loss} and the norm of its gradient {float(norm)}"
                raise DivergedError(f"{words} at step {step}: training diverged. Lower the learning rates.")
            rate = schedule(step, config)
            for group in optimiser.param_groups:
                group["lr"] = rate * tuned.settings[group["part"]].learning_rate
            optimiser.step()
            tuned.publish()
            tuned.zero_grad()
            n_tokens = int(processes.sum(sum(int(b["attention_mask"].sum()) for b in batches), adapter.device))
            seconds = time.perf_counter() - started
            log.steps.append(StepRecord(step, loss, float(norm), rate, n_answer, n_tokens, seconds))
            if save is not None and processes.is_main and ((step + 1) % save_every == 0 or step + 1 == config.n_steps):
                save(_checkpoint(tuned, optimiser, log))
            if report is not None:
                report(log.steps[-1])
    adapter.model.eval()
    return log


@contextmanager
def _ahead(micro_batches: MicroBatches, n_steps: int) -> Iterator[MicroBatches]:
    """The same batches, prefetched: a thread prepares those of the next step while a step runs."""
    futures: dict[int, Future[Sequence[Batch]]] = {}
    with ThreadPoolExecutor(1) as thread:

        def batches(step: int) -> Sequence[Batch]:
            current = futures.pop(step, None) or thread.submit(micro_batches, step)
            if step + 1 < n_steps:
                futures[step + 1] = thread.submit(micro_batches, step + 1)
            return current.result()

        yield batches


def answer_tokens(batches: Sequence[Batch]) -> int:
    """Tokens whose loss counts."""
    return sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)


def _within_memory(work: Callable[..., float], recompute: bool) -> float | None:
    """Do a step's passes; None where they do not fit the GPU without recomputing. Its tensors are gone on return."""
    try:
        return work(recompute=recompute)
    except torch.OutOfMemoryError:
        if recompute:
            raise
    return None


def _precision(adapter: Adapter) -> AbstractContextManager[Any]:
    """Autocast only if gradients would underflow: adapters in bfloat16 are 13 % faster per step without it."""
    if adapter.device.type == "cuda" and adapter.dtype == torch.float16:
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()


def _flops_per_token(adapter: Adapter, tuned: Tuned, batch: Batch) -> float:
    """Operations of forward and backward per sequence position, counted on one batch, without recomputation.

    If torch has no formula for an operation (grouped-query attention before 2.13), two per weight and pass are
    assumed: forward, backward for activations, and backward for weights if all are trained.
    """
    try:
        with FlopCounterMode(display=False) as counter, _precision(adapter):
            answer_loss(*answer_logits(adapter, batch))[0].backward()
    except AssertionError:
        n_weights = sum(parameter.numel() for parameter in tuned.model.parameters())
        return (4.0 if tuned.wrapped is not None else 6.0) * n_weights
    finally:
        tuned.zero_grad()
    return float(counter.get_total_flops()) / batch["input_ids"].numel()


def _backward(
    adapter: Adapter,
    tuned: Tuned,
    batches: Sequence[Batch],
    processes: ProcessGroup,
    seed: tuple[int, ...],
    n_answer: int,
    *,
    recompute: bool = False,
    dropout: bool = True,
) -> float:
    """Add the gradients of this process's share of the step's mean loss over all its answer tokens; return that loss.

    However the step is split, over micro-batches or processes, the sum is the same.

    Args:
        batches: this process's share.
        seed: decides the dropout of each micro-batch with its place in the step, whichever process computes it.
        n_answer: answer tokens of the whole step.
    """
    total = torch.zeros((), dtype=torch.float64, device=adapter.device)
    with recomputing(adapter, recompute, dropout=dropout):
        for k, batch in enumerate(batches):
            place = processes.rank + k * processes.size
            torch.manual_seed(int(np.random.SeedSequence([*seed, place]).generate_state(1)[0]))
            with _precision(adapter):
                loss, _ = answer_loss(*answer_logits(adapter, batch))
            (loss / n_answer).backward()
            tuned.gather_gradients()
            total += loss.detach().to(total.device)
    return processes.sum(float(total), adapter.device) / n_answer


def _checkpoint(tuned: Tuned, optimiser: torch.optim.Optimizer, log: TrainingLog) -> bytes:
    tensors = {f"weight/{name}": tensor for name, tensor in tuned.weights().items()}
    for name, parameter in tuned.masters.items():
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"optimiser/{key}/{name}"] = value.detach().cpu().contiguous().clone()
    record = json.dumps(asdict(log))
    return to_safetensors(tensors, metadata={"log": record, "checksum": _checksum(tensors, record)})


def _checksum(tensors: Mapping[str, torch.Tensor], log: str) -> str:
    """BLAKE2b of the log and of every tensor's name, dtype, shape and bytes."""
    hasher = hashlib.blake2b(log.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


def check_checkpoint(data: bytes) -> str:
    """The fault of a checkpoint, or an empty string if it is valid safetensors and matches its checksum."""
    try:
        tensors = from_safetensors(data)
        metadata = _metadata(data)
        return "" if metadata["checksum"] == _checksum(tensors, metadata["log"]) else "its checksum does not match"
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        return f"{type(error).__name__}: {str(error)[:200]}"


def _metadata(data: bytes) -> dict[str, str]:
    header_size = int.from_bytes(data[:8], "little")
    return dict(json.loads(data[8 : 8 + header_size])["__metadata__"])


def _restore(data: bytes, tuned: Tuned, optimiser: torch.optim.Optimizer) -> TrainingLog:
    tensors = from_safetensors(data)
    record = json.loads(_metadata(data)["log"])
    tuned.load({name.removeprefix("weight/"): t for name, t in tensors.items() if name.startswith("weight/")})
    for name, parameter in tuned.masters.items():
        state = {}
        for key in ("step", "exp_avg", "exp_avg_sq"):
            value = tensors[f"optimiser/{key}/{name}"]
            state[key] = value if key == "step" else value.to(parameter.device)
        optimiser.state[parameter] = state
    return TrainingLog([StepRecord(**s) for s in record["steps"]], record["flops_per_token"])
