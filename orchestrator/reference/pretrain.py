"""Pre-train the reference checkpoints on every family of questions about simple scenes, on a CPU or a GPU.

Two phases: first the vision encoder only, on the dense loss; then all weights, on packed questions and the dense loss.
``reference-cross`` may be initialised from a trained ``reference-joint`` and then skips the first phase.

If interrupted, run the same command again to resume from the last checkpoint.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import LlavaForConditionalGeneration

from orchestrator.data.scenes import COLOURS, SHAPES
from orchestrator.data.templates import vocabulary
from orchestrator.reference.build import (
    WIDTH,
    make_cross,
    make_joint,
    make_processor,
    save,
    transplant,
)
from orchestrator.reference.dense_loss import DenseHead, WordHead
from orchestrator.reference.forward import answer_loss, encode, packed_logits
from orchestrator.reference.pretrain_data import Batches, Pool


@dataclass(frozen=True)
class Recipe:
    """All settings of a pre-training run."""

    model: str
    """``reference-joint`` or ``reference-cross``."""
    encoder_steps: int = 1000
    """Steps of the first phase."""
    answer_steps: int = 1800
    """Steps of the second phase."""
    minutes: float | None = None
    """Time limit of the second phase, min; the learning-rate schedule ends there too."""
    encoder_batch: tuple[int, int] = (64, 16)
    """Images with possible questions, and crowded images, per step of the first phase."""
    answer_batch: tuple[int, int] = (64, 6)
    """The same per step of the second phase."""
    lr: float = 3e-3
    """Peak learning rate of matrices (Muon)."""
    lr_other: float = 1.5e-3
    """Peak learning rate of embeddings, norms, biases and gates (AdamW)."""
    dense_weight: float = 0.3
    """Weight of the dense loss in the second phase."""
    word_weight: float = 1.5
    """Weight of the two losses of named referents in the second phase."""
    bfloat16: bool = True
    """Multiply matrices in bfloat16 (weights stay float32): six times as fast on a CPU with AMX."""
    pool: int = 60_000
    """Training images."""
    seed: int = 1
    """Seed of scenes, questions and weights. Held-out scenes use other scene seeds."""


WORD_LAYERS = 4
"""Number of decoder layers after which word states are supervised by their referents; later layers compare."""
ASK_LAYERS = 5
"""Number of decoder layers after which the token before the answer is supervised by all referents of the question."""


def make_optimizers(modules: list[nn.Module], recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for all other parameters."""
    matrices: list[nn.Parameter] = []
    adamw_parameters: list[nn.Parameter] = []
    known_ids: set[int] = set()
    for module in modules:
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad or id(parameter) in known_ids:
                continue
            known_ids.add(id(parameter))
            inside = parameter.ndim == 2 and any(part in name for part in ("layers.", "multi_modal_projector"))
            (matrices if inside else adamw_parameters).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=recipe.lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(adamw_parameters, lr=recipe.lr_other, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def learning_rate(share: float) -> float:
    """Fraction of the peak learning rate after this share of a phase: short warm-up, plateau, linear decay."""
    return min(share / 0.03 + 0.01, 1.0, max(0.02, (1 - share) / 0.6))


@dataclass
class State:
    """State of a run: content of a checkpoint other than weights."""

    phase: str = "encoder"
    step: int = 0
    seconds: float = 0.0
    began: float = 0.0
    """Seconds of training at the start of the phase."""
    curve: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """Trains one model through its phases, with a checkpoint every ``every`` seconds."""

    def __init__(
        self,
        recipe: Recipe,
        work: Path,
        out: Path,
        *,
        start: Path | None = None,
        device: str = "cpu",
        every: float = 300,
        processes: int = 1,
        compiled: bool = True,
    ) -> None:
        """Prepare a run, or resume from the checkpoint in ``work``.

        Args:
            recipe: Settings of the run.
            work: Folder of the pool and of the run's checkpoint.
            out: Checkpoint folder to write the model to.
            start: Folder of a trained ``reference-joint`` to start from.
            device: ``cpu`` or ``cuda``.
            every: Seconds between checkpoints.
            processes: Processes that render the pool and make batches (about 5 ms per image).
            compiled: Compile the blocks on a CPU (about 1.8 times as fast; needs a C++ compiler).
        """
        self.recipe, self.work, self.out, self.every = recipe, work, out, every
        self.processes, self.device = processes, torch.device(device)
        self.compiled = compiled and self.device.type == "cpu"
        self.cross = recipe.model == "reference-cross"
        torch.manual_seed(recipe.seed)
        self.processor = make_processor(vocabulary(), cross=self.cross)
        build: Any = make_cross if self.cross else make_joint
        self.model: Any = build(len(self.processor.tokenizer))
        if start is not None:
            trained = LlavaForConditionalGeneration.from_pretrained(start)
            if self.cross:
                transplant(trained, self.model)
            else:
                self.model.load_state_dict(trained.state_dict())
        self.model.set_attn_implementation("eager")  # the fused kernel has a slow backward pass with a mask
        self.model.to(self.device)
        self.head = DenseHead(WIDTH, len(SHAPES), len(COLOURS)).to(self.device)
        self.word_head = WordHead(WIDTH).to(self.device)
        self.ask_head = WordHead(WIDTH, 2).to(self.device)
        self.state = State()
        self.pool = Pool(work, recipe.pool, recipe.seed, processes=processes)
        self.file = work / f"{recipe.model}.pt"
        self.saved = torch.load(self.file, weights_only=True, map_location=device) if self.file.exists() else None
        if self.saved is not None:
            for name in ("model", "head", "word_head", "ask_head"):
                getattr(self, name).load_state_dict(self.saved[name])
            self.state = State(**self.saved["state"])

    def run(self) -> None:
        """Run the remaining phases and write the checkpoint folder."""
        if self.state.phase == "encoder":
            if self.recipe.encoder_steps:
                self._phase("encoder", self.recipe.encoder_steps)
            self.state.phase, self.state.step, self.saved = "answers", 0, None
            self.state.began = self.state.seconds
        self._phase("answers", self.recipe.answer_steps)

    def _batches(self, phase: str, start: int, stop: int) -> Iterator[dict[str, Tensor]]:
        answers = phase == "answers"
        n_asked, n_crowded = self.recipe.answer_batch if answers else self.recipe.encoder_batch
        tokenizer = self.processor.tokenizer if answers else None
        seed = self.recipe.seed * 1000 + 7 * answers
        batches = Batches(self.pool, tokenizer, n_asked, n_crowded, seed=seed, cross=self.cross)
        loader = DataLoader(
            batches,
            sampler=range(start, stop),
            batch_size=None,
            num_workers=self.processes,
            prefetch_factor=6,
            pin_memory=self.device.type == "cuda",
        )
        for batch in loader:
            yield {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}

    def _optimizers(self, *, answers: bool) -> list[torch.optim.Optimizer]:
        """Optimizers of a phase, with saved state if the phase is resumed; compiles the blocks."""
        vision = self.model.model.vision_model if self.cross else self.model.model.vision_tower
        heads = [self.head, self.word_head, self.ask_head]
        optimizers = make_optimizers([self.model if answers else vision, *heads], self.recipe)
        if self.saved is not None and "optimizers" in self.saved:
            for optimizer, saved in zip(optimizers, self.saved["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        if self.compiled:
            decoder = self.model.model.language_model.layers if answers else []
            encoder = vision.transformer.layers if self.cross else vision.encoder.layers
            for layer in (*encoder, *decoder):
                layer.compile(dynamic=True)
        return optimizers

    def _loss(self, batch: dict[str, Tensor], *, answers: bool) -> tuple[Tensor, dict[str, list[float]]]:
        """Loss of one batch, and scores as [sum, number]."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bfloat16):
            states, projected = encode(self.model, batch["pixels"])
            if answers:
                logits, words = packed_logits(self.model, projected[: self.recipe.answer_batch[0]], batch)
        loss, dense_scores = self.head(states.float(), batch["classes"], batch["numbers"])
        scores = {name: [value, 1.0] for name, value in dense_scores.items() if value == value}
        scores["dense_loss"] = [loss.item(), 1.0]
        if answers:
            answer_term, counted = answer_loss(logits, batch)
            scores |= counted
            scores["answer_loss"] = [answer_term.item(), 1.0]
            named: Any = 0.0
            for kind, head, depth, at, truth in (
                ("word", self.word_head, WORD_LAYERS, "marks", "mark_values"),
                ("ask", self.ask_head, ASK_LAYERS, "asks", "ask_values"),
            ):
                rows, tokens = batch[at].T
                part, errors = head(words[depth][rows, tokens].float(), batch[truth])
                named = named + part
                scores |= {f"{kind}_{name}": [value, 1.0] for name, value in errors.items()}
            loss = self.recipe.dense_weight * loss + self.recipe.word_weight * named + answer_term
        return loss, scores

    def _phase(self, phase: str, n_steps: int) -> None:
        answers = phase == "answers"
        optimizers = self._optimizers(answers=answers)
        trained = [p for o in optimizers for group in o.param_groups for p in group["params"]]
        self.model.train()
        last_save = last_log = time.monotonic()
        sums: dict[str, list[float]] = {}
        limit = 60 * self.recipe.minutes if answers and self.recipe.minutes else math.inf
        spent = self.state.seconds - self.state.began
        if spent >= limit:
            return
        for batch in self._batches(phase, self.state.step, n_steps):
            spent = self.state.seconds - self.state.began + time.monotonic() - last_log
            share = max(self.state.step / n_steps, spent / limit)
            ended = share >= 1 or self.state.step + 1 == n_steps
            for optimizer, peak in zip(optimizers, (self.recipe.lr, self.recipe.lr_other), strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = peak * learning_rate(share)
            loss, scores = self._loss(batch, answers=answers)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self.state.step += 1
            for name, (value, n) in scores.items():
                before = sums.get(name, [0.0, 0.0])
                sums[name] = [before[0] + value, before[1] + n]
            if self.state.step % 20 == 0 or ended:
                self.state.seconds += time.monotonic() - last_log
                last_log = time.monotonic()
                point: dict[str, Any] = {"phase": phase, "step": self.state.step}
                point |= {"minutes": round(self.state.seconds / 60, 2)}
                point |= {name: round(value / n, 4) for name, (value, n) in sums.items()}
                self.state.curve.append(point)
                print(json.dumps(point), flush=True)
                sums = {}
            if time.monotonic() - last_save > self.every or ended:
                last_save = time.monotonic()
                self._save(optimizers)
            if ended:
                break

    def _save(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Write the resumable checkpoint, the model's folder and the curve, by renaming or file by file."""
        partial = self.file.with_suffix(".partial")
        torch.save(
            {
                "model": self.model.state_dict(),
                "head": self.head.state_dict(),
                "word_head": self.word_head.state_dict(),
                "ask_head": self.ask_head.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "state": vars(self.state),
            },
            partial,
        )
        partial.rename(self.file)
        save(self.model, self.processor, self.out)
        lines = "".join(json.dumps(point) + "\n" for point in self.state.curve)
        (self.work / f"{self.recipe.model}-curve.jsonl").write_text(lines)
