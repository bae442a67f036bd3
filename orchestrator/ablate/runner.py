"""One model's ablation: takes a cell, returns its tables. Knows nothing of Ray."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import torch

from orchestrator.ablate.attention import attention_tables
from orchestrator.ablate.bench import Answered, Bench
from orchestrator.ablate.cells import Cell
from orchestrator.ablate.cost import Stages, decoder_flops, selection_flops
from orchestrator.ablate.identity import checkpoint_of
from orchestrator.ablate.pairs import make_pairs
from orchestrator.ablate.questions import half_of, make_questions
from orchestrator.ablate.reading import lens_rows
from orchestrator.ablate.replacing import Moments, moments, replaced
from orchestrator.ablate.routing import route_rows, routed
from orchestrator.ablate.selectors.entries import DOWNSAMPLE
from orchestrator.ablate.selectors.registry import get_selector
from orchestrator.ablate.selectors.schedules import average_share, schedule_for
from orchestrator.answers.evaluate import figures
from orchestrator.answers.judging import judge
from orchestrator.capture.taps import State, Taps, tap_layers
from orchestrator.cluster.placement import n_cores
from orchestrator.compression.depth import THIRDS
from orchestrator.compression.metrics import compute
from orchestrator.config import RunConfig, TaskConfig
from orchestrator.data.mixture import Example, ExampleMaker
from orchestrator.models.adapter import Adapter
from orchestrator.models.groups import TEXT
from orchestrator.models.loading import load_adapter
from orchestrator.models.routes import Route
from orchestrator.stats.intervals import wilson
from orchestrator.store.tables.core import TABLES, check_table


def load_model(run: RunConfig) -> Adapter:
    """The run's model, loaded in this process with its share of threads."""
    if run.how.torch_threads is not None:
        torch.set_num_threads(min(run.how.torch_threads, n_cores()))  # a cluster's mean may exceed this node's cores
    return load_adapter(
        run.model, "cuda" if torch.cuda.is_available() else "cpu", run.how.device_map, run.how.weights_cache
    )


class Ablation:
    """Questions, pairs and answers of one model, prepared on first use."""

    def __init__(self, adapter: Adapter, run: RunConfig) -> None:
        self.adapter, self.run = adapter, run
        self.checkpoint = checkpoint_of(run.model)
        self._moments: dict[int, Moments] = {}
        self._pairs: dict[str, tuple[Bench, Bench]] = {}

    @cached_property
    def bench(self) -> Bench:
        return self._bench(make_questions(self.run))

    def _bench(self, examples: list[Example]) -> Bench:
        config = self.run.ablate
        return Bench(self.adapter, examples, self.run.how.batch_size, config.instruction, config.selector_settings)

    def tables(self, cell: Cell) -> dict[str, pl.DataFrame]:
        """The rows of one cell, by table name."""
        kinds = {
            "deletion": self._deletion,
            "knockout": self._knockout,
            "patching": self._patching,
            "metrics": self._metrics,
            "rivals": self._rivals,
            "routes": self._routes,
            "lens": self._lens,
            "attention": self._attention,
            "replacing": self._replacing,
        }
        return {name: check_table(frame, name) for name, frame in kinds[cell.check](cell).items()}

    # ------------------------------------------------------------ cells

    def _deletion(self, cell: Cell) -> dict[str, pl.DataFrame]:
        answered = self.bench.deleted(cell.method, cell.deleted_share, seed=max(cell.seed, 0), layer=cell.layer)
        setting = {"method": cell.method, "layer": cell.layer, "seed": cell.seed, "deleted_share": cell.deleted_share}
        setting = {"checkpoint": self.checkpoint, **setting}
        seconds = answered.seconds / len(self.bench.examples)
        rows = [
            {**setting, **row, "kept_tokens": float(answered.kept[numbers].mean()), "seconds": seconds}
            for row, numbers in self._by_family(answered)
        ]
        single = [
            {
                **setting,
                **item.question.keys,
                "half": half_of(item.question.cluster),
                "answer": item.question.answer,
                "n_objects": item.question.detail.get("n_objects"),
                "n_vision": n_tokens(self.bench, i)[0],
                "kept_tokens": int(answered.kept[i]),
                "gflop": gflop(self.bench, i, cell.method, answered.stages(i)),
                "correct": bool(answered.correct[i]),
                "score": float(answered.score[i]),
                "predicted": answered.predicted[i],
            }
            for i, item in enumerate(self.bench.examples)
        ]
        return {"deletion": pl.DataFrame(rows), "deletion_answers": pl.DataFrame(single)}

    def _rivals(self, cell: Cell) -> dict[str, pl.DataFrame]:
        bench, n = self.bench, len(self.bench.examples)
        cross = list(getattr(self.adapter, "cross_layers", ()))
        if cell.budget >= 1.0:
            answered = bench.plain
        elif cell.method == DOWNSAMPLE:
            answered = bench.keeping([1.0 - cell.budget] * n, DOWNSAMPLE)
        else:
            schedule = schedule_for(get_selector(cell.method), self.adapter.n_layers, cross, cell.budget)
            layers, shares = zip(*schedule, strict=True)
            answered = bench.reduced(cell.method, layers, [[share] * n for share in shares], seed=max(cell.seed, 0))
        setting = {"checkpoint": self.checkpoint, "method": cell.method, "budget": cell.budget, "seed": cell.seed}
        setting |= {
            "selection_seconds": answered.selection_seconds / n,
            "prefill_seconds": answered.prefill_seconds / n,
            "decode_seconds": answered.decode_seconds / n,
            "cache_mb": None if answered.cache_bytes is None else answered.cache_bytes / n / 1e6,
            "peak_mb": None if answered.peak_bytes is None else answered.peak_bytes / 1e6,
        }
        rows = []
        for i, item in enumerate(bench.examples):
            question, n_vision, stages = item.question, n_tokens(bench, i)[0], answered.stages(i)
            present = [(depth, left / max(1, n_vision)) for depth, left in stages]
            rows.append(
                {
                    **setting,
                    **question.keys,
                    "n_vision": n_vision,
                    "correct": bool(answered.correct[i]),
                    "score": float(answered.score[i]),
                    "kept_share": average_share(present, self.adapter.n_layers, cross),
                    "gflop": gflop(bench, i, cell.method if stages else DOWNSAMPLE, stages),
                }
            )
        return {"rival_answers": pl.DataFrame(rows, infer_schema_length=None)}

    def _knockout(self, cell: Cell) -> dict[str, pl.DataFrame]:
        answered = self.bench.blocked(range(cell.layer, cell.last_layer + 1))
        window = {"checkpoint": self.checkpoint, "first_layer": cell.layer, "last_layer": cell.last_layer}
        return {"knockout": pl.DataFrame([{**window, **row} for row, _ in self._by_family(answered)])}

    @cached_property
    def _unrouted(self) -> tuple[Answered, np.ndarray]:
        return routed(self.bench, Route("image", "last"), ())

    def _routes(self, cell: Cell) -> dict[str, pl.DataFrame]:
        route = Route.of(cell.method)
        blocked = routed(self.bench, route, range(cell.layer, cell.last_layer + 1))
        setting: dict[str, Any] = {"checkpoint": self.checkpoint, "source": route.source, "target": route.target}
        setting |= {"first_layer": cell.layer, "last_layer": cell.last_layer}
        rows = [{**setting, **row} for row in route_rows(self.bench, self._unrouted, blocked)]
        return {"routes": pl.DataFrame(rows, infer_schema_length=None)}

    def _replacing(self, cell: Cell) -> dict[str, pl.DataFrame]:
        if cell.layer not in self._moments:
            self._moments[cell.layer] = moments(self.bench, cell.layer)
        of = self._moments[cell.layer]
        answered = replaced(self.bench, cell.method, cell.layer, max(cell.seed, 0), of, cell.place)
        settings = {"kind": cell.method, "place": cell.place, "layer": cell.layer, "seed": cell.seed}
        setting = {"checkpoint": self.checkpoint, **settings}
        columns = ("family", "tier", "accuracy", "ci_low", "ci_high", "n")
        rows = [{**setting, **{c: row[c] for c in columns}} for row, _ in self._by_family(answered)]
        return {"replacing": pl.DataFrame(rows, infer_schema_length=None)}

    def _lens(self, _: Cell) -> dict[str, pl.DataFrame]:
        points, layers = lens_rows(self.bench, self.run.ablate.lens_tokens)
        return {"lens": self._frame("lens", points), "lens_layers": self._frame("lens_layers", layers)}

    def _attention(self, _: Cell) -> dict[str, pl.DataFrame]:
        config = self.run.ablate
        rows, maps = attention_tables(self.bench, config.attention_layers, config.attention_maps)
        return {"attention": self._frame("attention", rows), "attention_maps": self._frame("attention_maps", maps)}

    def _frame(self, table: str, rows: list[dict[str, Any]]) -> pl.DataFrame:
        """Rows with the checkpoint as a frame, which has all columns even without rows."""
        if not rows:
            return pl.DataFrame(schema=list(TABLES[table].columns))
        return pl.DataFrame([{"checkpoint": self.checkpoint, **row} for row in rows], infer_schema_length=None)

    def _patching(self, cell: Cell) -> dict[str, pl.DataFrame]:
        originals, donors = self._pair(cell.attribute)
        patched = originals.patched(donors, cell.layer, cell.place)
        # Only pairs with both answers right show where the model reads the difference.
        usable = originals.plain.correct & donors.plain.correct
        became = [judge(item.question, p)[0] for item, p in zip(donors.examples, patched.predicted, strict=True)]
        flips = np.array(became)[usable]
        n, k = len(flips), int(flips.sum())
        low, high = wilson(k, n) if n else (None, None)
        row = {
            "checkpoint": self.checkpoint,
            "layer": cell.layer,
            "attribute": cell.attribute,
            "place": cell.place,
            "flip_share": k / n if n else None,
            "ci_low": low,
            "ci_high": high,
            "n": n,
        }
        return {"patching": pl.DataFrame([row])}

    def _pair(self, attribute: str) -> tuple[Bench, Bench]:
        if attribute not in self._pairs:
            config = self.run.ablate
            task = TaskConfig(n_objects_low=config.n_objects_low, n_objects_high=config.n_objects_high)
            maker = ExampleMaker(task)
            originals, donors = make_pairs(attribute, config.n_per_family, config.seed, maker)
            self._pairs[attribute] = self._bench(originals), self._bench(donors)
        return self._pairs[attribute]

    def _metrics(self, cell: Cell) -> dict[str, pl.DataFrame]:
        return {"question_metrics": image_metrics(self.bench, depth_points(self.adapter))}

    # ------------------------------------------------------------ rows

    def _by_family(self, answered: Answered) -> list[tuple[dict[str, Any], np.ndarray]]:
        keys = [(item.question.tier, item.question.family) for item in self.bench.examples]
        rows = []
        for tier, family in dict.fromkeys(keys):
            numbers = np.array([i for i, key in enumerate(keys) if key == (tier, family)])
            k, n = int(answered.correct[numbers].sum()), len(numbers)
            low, high = wilson(k, n)
            row = {"family": family, "tier": tier, "accuracy": k / n, "ci_low": low, "ci_high": high, "n": n}
            row |= figures([self.bench.examples[i] for i in numbers], [answered.predicted[i] for i in numbers])
            rows.append((row, numbers))
        return rows


# ---------------------------------------------------------------- cost of a question, and compression of its image


def n_tokens(bench: Bench, i: int) -> tuple[int, int]:
    """Visual and other tokens of question `i`."""
    example = bench.inputs[i]
    vision, length = int(bench.adapter.n_vision(example)[0]), int(example["attention_mask"].sum())
    return vision, length - vision if bench.adapter.vision_kind == "residual" else length


def gflop(bench: Bench, i: int, method: str, stages: Stages) -> float:
    """Operations of selection and of the decoder on the prompt of question `i`, 1e9.

    Args:
        stages: (depth, visual tokens left), ascending.
    """
    vision, text = n_tokens(bench, i)
    question = int((bench.inputs[i]["groups"] == TEXT).sum())
    total = decoder_flops(bench.adapter, text, vision, stages)
    return (total + selection_flops(bench.adapter, method, text, vision, question, stages)) / 1e9


def depth_points(adapter: Adapter) -> dict[tuple[str, int], str]:
    """Tap points at which an image is measured: the projector, and the middle of each third of the decoder."""
    tap = "decoder" if adapter.vision_kind == "residual" else "cross_v"
    layers = tap_layers(adapter, tap)
    points = {("projector", 0): "projector"}
    for k, third in enumerate(THIRDS):
        points.setdefault((tap, layers[(2 * k + 1) * len(layers) // 6]), third)
    return points


def image_metrics(bench: Bench, points: dict[tuple[str, int], str], names: list[str] | None = None) -> pl.DataFrame:
    """Table `question_metrics`: compression of each question's image at tap points, without an intervention."""
    rows: list[dict[str, Any]] = []
    chunk: list[int] = []

    def measure(state: State) -> None:
        if state.vision is None:
            return
        measured = compute(state.hidden, state.vision, names)
        for row, i in enumerate(chunk):
            values = {name: float(value[row]) for name, value in measured.items()}
            depth = points[state.tap, state.layer]
            rows.append({"question_id": bench.examples[i].question.question_id, "depth": depth, **values})

    select = {tap: [layer for t, layer in points if t == tap] for tap, _ in points}
    with Taps(bench.adapter, select, on_state=measure), torch.no_grad():
        for chunk in bench.batches(range(len(bench.examples)), bench.inputs):
            bench.adapter.run(bench.adapter.collate([bench.inputs[i] for i in chunk]), logits_to_keep=1)
    fixed = pl.DataFrame(rows)
    metrics = [pl.col(c).cast(pl.Float32) for c in fixed.columns if c not in ("question_id", "depth")]
    return fixed.select("question_id", "depth", *metrics)
