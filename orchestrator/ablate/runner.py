"""One model's ablation: a cell in, its tables out. A plain class; Ray only calls it from an actor."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import torch

from orchestrator.ablate.bench import Answered, Bench
from orchestrator.ablate.cells import Cell
from orchestrator.ablate.cost import decoder_flops
from orchestrator.ablate.pairs import make_pairs
from orchestrator.capture.taps import Taps
from orchestrator.compression.depth import third_of
from orchestrator.compression.metrics import compute_layers
from orchestrator.compression.registry import METRICS
from orchestrator.config import RunConfig, ScenesConfig, TaskConfig
from orchestrator.data.mixture import Example, ExampleMaker
from orchestrator.data.source import make_source
from orchestrator.finetune.evaluate import wilson
from orchestrator.models.adapter import Adapter, load_adapter
from orchestrator.schema import check_table


def half_of(image_id: str) -> str:
    """`choose` or `judge`: a policy is chosen on the images of one half and judged on those of the other."""
    return ("choose", "judge")[zlib.crc32(image_id.encode()) % 2]


def load_ablation(run: RunConfig) -> Ablation:
    """Load the run's model in this process."""
    if run.how.torch_threads is not None:
        torch.set_num_threads(run.how.torch_threads)
    return Ablation(load_adapter(run.model, "cuda" if torch.cuda.is_available() else "cpu"), run)


class Ablation:
    """Questions, pairs and answers of one model, prepared on first use."""

    def __init__(self, adapter: Adapter, run: RunConfig) -> None:
        self.adapter, self.run = adapter, run
        self.checkpoint = run.model.adapter or "base"
        self._pairs: dict[str, tuple[Bench, Bench]] = {}

    @cached_property
    def bench(self) -> Bench:
        return Bench(self.adapter, make_questions(self.run), self.run.how.batch_size)

    def tables(self, cell: Cell) -> dict[str, pl.DataFrame]:
        """The rows of one cell, by table name."""
        return {
            "deletion": self._deletion,
            "knockout": self._knockout,
            "patching": self._patching,
            "metrics": self._metrics,
        }[cell.check](cell)

    # ------------------------------------------------------------ cells

    def _deletion(self, cell: Cell) -> dict[str, pl.DataFrame]:
        answered = self.bench.deleted(cell.method, cell.deleted_share, seed=max(cell.seed, 0), layer=cell.layer)
        setting = {"method": cell.method, "layer": cell.layer, "seed": cell.seed, "deleted_share": cell.deleted_share}
        seconds = answered.seconds / len(self.bench.asked)
        rows = [
            {**setting, **row, "kept_tokens": float(answered.kept[numbers].mean()), "seconds": seconds}
            for row, numbers in self._by_family(answered)
        ]
        tokens = [self._tokens(i) for i in range(len(self.bench.asked))]
        single = [
            {
                "checkpoint": self.checkpoint,
                **setting,
                "question_id": item.question.question_id,
                "image_id": item.question.image_id,
                "family": item.question.family,
                "tier": item.question.tier,
                "half": half_of(item.question.image_id),
                "n_vision": vision,
                "kept_tokens": int(kept),
                "gflop": decoder_flops(self.adapter, text, vision, int(kept), cell.layer) / 1e9,
                "correct": bool(correct),
            }
            for item, kept, correct, (vision, text) in zip(
                self.bench.asked, answered.kept, answered.correct, tokens, strict=True
            )
        ]
        return {
            "deletion": check_table(pl.DataFrame(rows), "deletion"),
            "deletion_answers": check_table(pl.DataFrame(single), "deletion_answers"),
        }

    def _tokens(self, i: int) -> tuple[int, int]:
        """Visual and other tokens of a question."""
        example = self.bench.inputs[i]
        vision = int(self.adapter.n_vision(example)[0])
        length = int(example["attention_mask"].sum())
        return vision, length - vision if self.adapter.vision_kind == "residual" else length

    def _knockout(self, cell: Cell) -> dict[str, pl.DataFrame]:
        layers = list(range(cell.layer, cell.last_layer + 1))
        answered = self.bench.blocked(layers)
        window = {"first_layer": cell.layer, "last_layer": cell.last_layer}
        rows = [{**window, **row} for row, _ in self._by_family(answered)]
        return {"knockout": check_table(pl.DataFrame(rows), "knockout")}

    def _patching(self, cell: Cell) -> dict[str, pl.DataFrame]:
        own, donors = self._pair(cell.attribute)
        # Only pairs that the model tells apart say anything about where it reads the difference.
        usable = own[1].correct & donors[1].correct
        patched = own[0].patched(donors[0], cell.layer)
        wanted = [item.question.answer for item in donors[0].asked]
        flips = np.array([p == w for p, w in zip(patched.predicted, wanted, strict=True)])[usable]
        n, k = len(flips), int(flips.sum())
        low, high = wilson(k, n) if n else (None, None)
        row = {
            "checkpoint": self.checkpoint,
            "layer": cell.layer,
            "attribute": cell.attribute,
            "flip_share": k / n if n else None,
            "ci_low": low,
            "ci_high": high,
            "n": n,
        }
        return {"patching": check_table(pl.DataFrame([row]), "patching")}

    def _pair(self, attribute: str) -> tuple[tuple[Bench, Answered], tuple[Bench, Answered]]:
        if attribute not in self._pairs:
            config = self.run.ablate
            scenes = ScenesConfig(n_objects=(1, config.n_objects_high[1]), n_objects_spacing="uniform")
            own, donors = make_pairs(attribute, config.n_per_family, config.seed, scenes)
            benches = [Bench(self.adapter, asked, self.run.how.batch_size) for asked in (own, donors)]
            self._pairs[attribute] = tuple((bench, bench.answer()) for bench in benches)  # type: ignore[assignment]
        return self._pairs[attribute]  # type: ignore[return-value]

    def _metrics(self, cell: Cell) -> dict[str, pl.DataFrame]:
        """Compression of each question's image, by depth third: what `link` compares with the tokens it needs."""
        tap = "decoder" if self.adapter.vision_kind == "residual" else "cross_v"
        rows: list[dict[str, Any]] = []
        for numbers in self.bench.batches(self.bench.inputs):
            batch = self.adapter.collate([self.bench.inputs[i] for i in numbers])
            with Taps(self.adapter, [tap]) as taps, torch.no_grad():
                self.adapter.run(batch, logits_to_keep=1)
                states = [s for s in taps.states(batch) if s.vision is not None]
                found = compute_layers([(s.hidden, s.vision) for s in states], list(METRICS))
            for i, state_values in (
                (row, [{k: float(v[r]) for k, v in f.items()} for f in found]) for r, row in enumerate(numbers)
            ):
                question = self.bench.asked[i].question
                for position, values in enumerate(state_values):
                    third = third_of(position, len(states))
                    rows.append({"question_id": question.question_id, "third": third, **values})
        frame = pl.DataFrame(rows).group_by("question_id", "third", maintain_order=True).mean()
        return {"question_metrics": check_table(frame, "question_metrics")}

    # ------------------------------------------------------------ rows

    def _by_family(self, answered: Answered) -> list[tuple[dict[str, Any], np.ndarray]]:
        keys = [(item.question.tier, item.question.family) for item in self.bench.asked]
        found = []
        for tier, family in dict.fromkeys(keys):
            numbers = np.array([i for i, key in enumerate(keys) if key == (tier, family)])
            k, n = int(answered.correct[numbers].sum()), len(numbers)
            low, high = wilson(k, n)
            row = {"family": family, "tier": tier, "accuracy": k / n, "ci_low": low, "ci_high": high, "n": n}
            found.append(({"checkpoint": self.checkpoint, **row}, numbers))
        return found


def make_questions(run: RunConfig) -> Sequence[Example]:
    """`n_per_family` questions of each family and tier that the ablation asks."""
    config = run.ablate
    task = TaskConfig(
        source=config.source,
        low_families=config.low_families,
        high_families=config.high_families,
        n_objects_high=config.n_objects_high,
    )
    maker = ExampleMaker(task, make_source(run.data) if config.source == "coco" else None)  # type: ignore[arg-type]
    wanted = [("low", f) for f in config.low_families] + [("high", f) for f in config.high_families]
    return [maker.make(family, tier, config.seed, i) for tier, family in wanted for i in range(config.n_per_family)]
