"""The training loop: warm-up and cosine, accumulation, clipping, loss on answer tokens only, exact resume.

Everything that a step does, dropout included, depends on its number and on the state that a checkpoint holds (weights,
optimiser), never on when the process started: a run that was killed and resumed ends with the very weights of an
undisturbed one. A checkpoint is one safetensors file; nothing is pickled. Of several processes (`team.py`) each
computes a share of every step.

Letters: B examples of a micro-batch, S sequence positions, K last positions that hold answer tokens.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute
from torch.utils.flop_counter import FlopCounterMode

from orchestrator.config import FinetuneConfig
from orchestrator.errors import DivergedError
from orchestrator.finetune.lora import Tuned
from orchestrator.finetune.team import Team, this_team
from orchestrator.models.adapter import Adapter
from orchestrator.models.batching import Batch

MicroBatches = Callable[[int], Sequence[Batch]]
"""Step number -> its micro-batches, each with `labels`."""


@dataclass
class StepRecord:
    """What one optimiser step did; a row of table `training`."""

    step: int
    loss: float
    """Mean cross-entropy of the step's answer tokens, nats."""
    grad_norm: float
    """Norm of all gradients together, before clipping."""
    rate: float
    """Share of the peak learning rates that the schedule allowed."""
    n_answer_tokens: int
    n_tokens: int
    """Sequence positions computed, padding included."""
    seconds: float
    """Wall time, the preparation of its examples included."""


@dataclass
class TrainingLog:
    """Records of all finished steps, whatever number of processes ran them."""

    steps: list[StepRecord] = field(default_factory=list)
    flops_per_token: float = 0.0
    """Floating-point operations of forward and backward a sequence position, counted on the first step."""

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
    """Share of the peak learning rate at a step (from 0): linear warm-up, then a cosine that ends near zero."""
    warm = round(config.warmup_share * config.n_steps)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, config.n_steps - warm)))


def answer_loss(logits: Float[Tensor, "B K V"], labels: Int[Tensor, "B K"]) -> tuple[Float[Tensor, ""], int]:
    """Sum of the cross-entropy of the labelled tokens, each predicted from the position before it, and their number."""
    targets = labels[:, 1:].reshape(-1).to(logits.device)
    wanted = targets != -100
    predictions = logits[:, :-1].reshape(-1, logits.shape[-1])[wanted]
    return nn.functional.cross_entropy(predictions.float(), targets[wanted], reduction="sum"), int(wanted.sum())


def answer_logits(adapter: Adapter, batch: Batch) -> tuple[Float[Tensor, "B K V"], Int[Tensor, "B K"]]:
    """Logits and labels of the last K positions, from the one before the first labelled position of any row on.

    Logits of earlier positions are not computed where the model can leave them out.
    """
    labels = batch["labels"]
    first = int((labels != -100).any(dim=0).nonzero()[0])
    keep = labels.shape[1] - first + 1
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    few = {"logits_to_keep": keep} if "logits_to_keep" in inspect.signature(adapter.model.forward).parameters else {}
    return adapter.run(inputs, **few).logits[:, -keep:], labels[:, -keep:]


@contextmanager
def checkpointed(adapter: Adapter, enabled: bool) -> Iterator[None]:
    """Recompute the decoder blocks' activations in the backward pass.

    `use_reentrant=False` everywhere: the reentrant form drops the gradients of inputs that are not passed by position
    (vision features in some classes).
    """
    if not enabled:
        yield
        return
    originals = [(layer, layer.forward) for layer in adapter.layers]

    def wrap(forward: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: recompute(forward, *args, use_reentrant=False, **kwargs)

    for layer, forward in originals:
        layer.forward = wrap(forward)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer, _ in originals:
            del layer.forward


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
) -> TrainingLog:
    """Train until `config.n_steps` steps are done.

    Args:
        micro_batches: the data; a function of the step number alone.
        resume: a checkpoint that an earlier call gave to `save`.
        save: receives a checkpoint every `save_every` steps and after the last one.
        report: receives each step's record.

    Raises:
        DivergedError: the loss is not finite.
    """
    team = this_team()
    optimiser = torch.optim.AdamW(tuned.optimiser_groups(), weight_decay=config.weight_decay)
    log = TrainingLog()
    if resume is not None:
        log = _restore(resume, tuned, optimiser)
    adapter.model.train(config.dropout > 0)
    with checkpointed(adapter, config.gradient_checkpointing), _ahead(micro_batches, config.n_steps) as batches_of:
        for step in range(len(log.steps), config.n_steps):
            started = time.perf_counter()
            batches = batches_of(step)
            counter = FlopCounterMode(display=False) if not log.flops_per_token else None
            with counter or nullcontext():
                loss, n_answer = _backward(adapter, batches, team, (config.seed, step))
            team.sum_gradients(tuned.parameters.values())
            norm = torch.nn.utils.clip_grad_norm_(list(tuned.parameters.values()), config.max_grad_norm)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                found = f"the loss is {loss} and the norm of its gradient {float(norm)}"
                raise DivergedError(f"{found} at step {step}: training diverged. Lower the learning rates.")
            rate = schedule(step, config)
            for group in optimiser.param_groups:
                group["lr"] = rate * tuned.settings[group["part"]].learning_rate
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            n_tokens = sum(batch["input_ids"].numel() for batch in batches)
            if counter is not None:
                flops = team.sum(float(counter.get_total_flops()), adapter.device)
                log.flops_per_token = flops / n_tokens
            seconds = time.perf_counter() - started
            log.steps.append(StepRecord(step, loss, float(norm), rate, n_answer, n_tokens, seconds))
            if save is not None and team.leads and ((step + 1) % save_every == 0 or step + 1 == config.n_steps):
                save(_checkpoint(tuned, optimiser, log))
            if report is not None:
                report(log.steps[-1])
    adapter.model.eval()
    return log


@contextmanager
def _ahead(micro_batches: MicroBatches, n_steps: int) -> Iterator[MicroBatches]:
    """The same batches, those of the next step made in a thread while a step runs: a GPU waits for no processor."""
    made: dict[int, Future[Sequence[Batch]]] = {}
    with ThreadPoolExecutor(1) as thread:

        def batches(step: int) -> Sequence[Batch]:
            current = made.pop(step, None) or thread.submit(micro_batches, step)
            if step + 1 < n_steps:
                made[step + 1] = thread.submit(micro_batches, step + 1)
            return current.result()

        yield batches


def _backward(adapter: Adapter, batches: Sequence[Batch], team: Team, seed: tuple[int, ...]) -> tuple[float, int]:
    """Add the gradients of this process's share of the step's mean loss over all answer tokens of all its batches.

    However the step is split, over micro-batches or processes, the sum is the same. Returns that loss and the tokens.

    Args:
        seed: decides the dropout of each micro-batch, whichever process and device computes it.
    """
    n_answer = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
    cuda = adapter.device.type == "cuda"
    total = 0.0
    for place, batch in team.share(list(enumerate(batches))):
        torch.manual_seed(int(np.random.SeedSequence([*seed, place]).generate_state(1)[0]))
        with torch.autocast("cuda", torch.bfloat16) if cuda else nullcontext():
            loss, _ = answer_loss(*answer_logits(adapter, batch))
        (loss / n_answer).backward()
        total += float(loss.detach())
    return team.sum(total, adapter.device) / n_answer, n_answer


def _checkpoint(tuned: Tuned, optimiser: torch.optim.Optimizer, log: TrainingLog) -> bytes:
    tensors = {f"weight/{name}": tensor for name, tensor in tuned.weights().items()}
    for name, parameter in tuned.parameters.items():
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"optimiser/{key}/{name}"] = value.detach().cpu().contiguous().clone()
    record = json.dumps(asdict(log))
    return to_safetensors(tensors, metadata={"log": record, "checksum": _checksum(tensors, record)})


def _checksum(tensors: Mapping[str, Tensor], log: str) -> str:
    """BLAKE2b of the log and of every tensor's name, type, shape and bytes."""
    made = hashlib.blake2b(log.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        made.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        made.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return made.hexdigest()


def check_checkpoint(data: bytes) -> str:
    """What is wrong with a checkpoint, or an empty string: it is safetensors, and equals its own checksum."""
    try:
        tensors = from_safetensors(data)
        metadata = _metadata(data)
        return "" if metadata["checksum"] == _checksum(tensors, metadata["log"]) else "its checksum does not fit"
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        return f"{type(error).__name__}: {str(error)[:200]}"


def _metadata(data: bytes) -> dict[str, str]:
    header_size = int.from_bytes(data[:8], "little")
    return dict(json.loads(data[8 : 8 + header_size])["__metadata__"])


def _restore(data: bytes, tuned: Tuned, optimiser: torch.optim.Optimizer) -> TrainingLog:
    tensors = from_safetensors(data)
    record = json.loads(_metadata(data)["log"])
    tuned.load({name.removeprefix("weight/"): t for name, t in tensors.items() if name.startswith("weight/")})
    for name, parameter in tuned.parameters.items():
        state = {}
        for key in ("step", "exp_avg", "exp_avg_sq"):
            value = tensors[f"optimiser/{key}/{name}"]
            state[key] = value if key == "step" else value.to(parameter.device)
        optimiser.state[parameter] = state
    return TrainingLog([StepRecord(**s) for s in record["steps"]], record["flops_per_token"])
