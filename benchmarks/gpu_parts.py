"""Parts of `benchmarks.gpu`, which explains their figures: capture, metrics, ablation and training of a 7B model."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import flop_counter
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu_model
from benchmarks.common import seconds
from orchestrator.capture.recorder import Recorder
from orchestrator.capture.taps import Taps, default_taps
from orchestrator.capture.vision_quantiles import vision_quantiles
from orchestrator.compression.metrics import NORMS, measure
from orchestrator.compression.registry import default_names
from orchestrator.config import CaptureConfig, FinetuneConfig
from orchestrator.models.adapter import Adapter
from orchestrator.models.batching import Batch
from orchestrator.models.random_models import random_example

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
"""Dense bfloat16 rate of a card by its data sheet, operations/s."""
SETS: dict[str, tuple[str, ...]] = {
    "norms": (*NORMS, "massive_share"),
    "default": default_names(),
    "full_exact": (*default_names(), "effective_rank", "rank_90"),
    "full_estimate": (*default_names(), "effective_rank_estimate", "effective_rank_estimate_se", "rank_90_estimate"),
    "full_exact_all": default_names("exact"),
}
"""Metric sets; `full_exact_all` has the spectra of all four variants, as with `capture.spectrum: exact`."""


@dataclass
class Settings:
    """Device and size, and the 7B-shaped model once created."""

    device: str
    tiny: bool
    made: dict[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> gpu_model.Shape:
        return gpu_model.TINY if self.tiny else gpu_model.SEVEN_B

    def model(self) -> tuple[Adapter, Batch]:
        """The 7B-shaped model in memory and a batch for it."""
        if "model" not in self.made:
            adapter = gpu_model.in_memory(self.shape, self.device)
            examples = [random_example(adapter, n_text=self.shape.text, seed=i) for i in range(self.shape.images)]
            self.made["model"] = adapter, adapter.collate(examples)
        return self.made["model"]  # type: ignore[no-any-return]

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def count_grouped_heads() -> None:
    """Let torch before 2.13 count attention whose keys have fewer heads than its queries; newer ones do."""
    for name in ("sdpa_flop_count", "sdpa_backward_flop_count"):
        known = getattr(flop_counter, name)

        def count(*shapes: Any, known: Callable[..., int] = known) -> int:
            *first, key, value = shapes
            heads = first[-1][1]
            wide = [(shape[0], heads, *shape[2:]) for shape in (key, value)]
            return known(*first, *wide)

        setattr(flop_counter, name, count)


if torch.__version__ < "2.13":
    count_grouped_heads()


def free() -> None:
    """Release cached memory of the previous part."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# ---------------------------------------------------------------- capture


def passes(adapter: Adapter, batch: Batch, metrics: Sequence[str] | None, n: int) -> None:
    """`n` passes as in a worker: results are read while the next pass runs. Bare passes for None."""
    config = CaptureConfig()
    quantiles = vision_quantiles(config.n_vision_positions, config.seed)
    layers = {tap: len(tap_layers) for tap, tap_layers in Taps(adapter, default_taps(adapter)).select.items()}
    waiting = None
    for _ in range(n):
        if metrics is None:
            with torch.inference_mode():
                adapter.run(batch, logits_to_keep=1)
            continue
        recorder = Recorder(config, metrics, quantiles, layers)
        with torch.inference_mode():
            with Taps(adapter, default_taps(adapter), on_state=recorder):
                adapter.run(batch, logits_to_keep=1)
            pending = recorder.launch()
        if waiting is not None:
            waiting.result()
        waiting = pending
    if waiting is not None:
        waiting.result()


def capture(settings: Settings) -> dict[str, float]:
    """A pass of the 7B-shaped model with each set of metrics."""
    adapter, batch = settings.model()
    n, repeats = (2, 1) if settings.tiny else (4, 3)
    works: dict[str, Callable[[], object]] = {"bare": lambda: passes(adapter, batch, None, n)}
    for name, metrics in SETS.items():
        works[name] = lambda metrics=metrics: passes(adapter, batch, metrics, n)  # type: ignore[misc]
    figures: dict[str, float] = {}
    times = {name: seconds({name: works[name]}, 1, settings.device)[name] for name in ("full_exact", "full_exact_all")}
    quick = {name: work for name, work in works.items() if not name.startswith("full_exact")}
    if settings.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times |= seconds(quick, repeats, settings.device)
    each = {name: value / n for name, value in times.items()}
    for name in SETS:
        figures[f"capture_{name}_over_bare"] = each[name] / each["bare"]
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        adapter.run(batch, logits_to_keep=1)
    figures["bare_ms"] = 1e3 * each["bare"]
    figures["images_per_s_bare"] = settings.shape.images / each["bare"]
    figures["images_per_s"] = settings.shape.images / each["default"]
    figures["tflop_a_pass"] = counter.get_total_flops() / 1e12
    if settings.device == "cuda":
        name = torch.cuda.get_device_name()
        peak = next((rate for card, rate in PEAK.items() if card in name), None)
        if peak is not None:
            figures["mfu_bare"] = counter.get_total_flops() / each["bare"] / peak
            figures["mfu"] = counter.get_total_flops() / each["default"] / peak
        figures["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return figures


def metrics(settings: Settings) -> dict[str, float]:
    """Metrics only, on the states of a pass, all layers together, ms."""
    shape = settings.shape
    rows, n = (shape.layers + 1) * shape.images, -(-(shape.side**2) // 16) * 16
    hidden = torch.randn(rows, n, shape.width, dtype=torch.bfloat16, device=settings.device)
    hidden += 2 * torch.randn(1, 1, shape.width, dtype=torch.bfloat16, device=settings.device)
    counts = torch.full((rows,), shape.side**2, device=settings.device)
    figures: dict[str, float] = {}
    for name in ("norms", "default", "full_estimate", "full_exact"):
        times = seconds({name: lambda name=name: measure(hidden, counts, SETS[name])}, 2, settings.device)  # type: ignore[misc]
        figures[f"metrics_{name}_ms"] = 1e3 * times[name]
    if settings.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
        measure(hidden, counts, SETS["default"])
        settings.wait()
        figures["metrics_default_gb"] = (torch.cuda.max_memory_allocated() - base) / 1e9
    return figures


def profile(settings: Settings) -> None:
    """Print the slowest kernels of one capture pass with the default set, and of the metrics with the estimate."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    adapter, batch = settings.model()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (settings.device == "cuda")
    by = "self_device_time_total" if settings.device == "cuda" else "self_cpu_time_total"
    for name in ("default", "full_estimate"):
        passes(adapter, batch, SETS[name], 1)
        settings.wait()
        with torch_profile(activities=activities) as profiler:
            passes(adapter, batch, SETS[name], 1)
            settings.wait()
        events = profiler.key_averages()
        print(f"== {name}: {sum(e.count for e in events if e.device_type != torch.autograd.DeviceType.CPU)} kernels")
        print(events.table(sort_by=by, row_limit=32, max_name_column_width=70), flush=True)


# ---------------------------------------------------------------- ablation and training


def ablation(settings: Settings) -> dict[str, float]:
    """The decoder with a quarter of the visual tokens kept, over the plain pass."""
    adapter, batch = settings.model()
    counts = adapter.n_vision(batch).tolist()
    keep = torch.zeros(len(counts), max(counts), dtype=torch.bool)
    keep[:, ::4] = True
    short = adapter.drop(batch, keep)
    spent: list[float] = []
    began = [0.0]

    def begin(*_: Any) -> None:
        settings.wait()
        began[0] = time.perf_counter()

    def end(*_: Any) -> None:
        settings.wait()
        spent.append(time.perf_counter() - began[0])

    handles = [adapter.decoder.register_forward_pre_hook(begin), adapter.decoder.register_forward_hook(end)]
    times = {}
    for name, inputs in (("plain", batch), ("short", short)):
        spent.clear()
        for _ in range(4):
            with torch.inference_mode():
                adapter.run(inputs, logits_to_keep=1)
        times[name] = statistics.median(spent[1:])
    for handle in handles:
        handle.remove()
    return {"decoder_at_25_percent": times["short"] / times["plain"], "decoder_ms": 1e3 * times["plain"]}


def training(settings: Settings) -> dict[str, float]:
    """A LoRA step by `finetune.train` and by a bare loop over the same peft model and batches."""
    import peft

    from orchestrator.answers.logits import answer_logits, answer_loss
    from orchestrator.finetune.lora import lora_config, part_settings, tunable
    from orchestrator.finetune.recompute import needs_recomputing, recomputing
    from orchestrator.finetune.train import train

    adapter, batch = settings.model()
    n_steps = 9 if settings.tiny else 7
    config = FinetuneConfig(n_steps=n_steps, dropout=0.0, batch_size=settings.shape.images)
    labels = torch.full_like(batch["input_ids"], -100)
    labels[:, -4:] = batch["input_ids"][:, -4:]
    batch = {**batch, "labels": labels}
    again = needs_recomputing(adapter, batch["input_ids"].numel())
    free()
    with tunable(adapter, config) as tuned:
        log = train(adapter, tuned, lambda _: [batch], config, recompute=again)
    ours = statistics.median(step.seconds for step in log.steps[1:])
    free()
    cast = adapter.dtype != torch.bfloat16
    wrapped = peft.get_peft_model(
        adapter.model,  # type: ignore[arg-type]
        lora_config(adapter, config, part_settings(config)),
        autocast_adapter_dtype=cast,
    )
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4, fused=settings.device == "cuda" or None)
    spent = []
    for _ in range(n_steps):
        settings.wait()
        started = time.perf_counter()
        with recomputing(adapter, again, dropout=False):
            loss, n = answer_loss(*answer_logits(adapter, batch))
            (loss / n).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        settings.wait()
        spent.append(time.perf_counter() - started)
    bare = statistics.median(spent[1:])
    wrapped.unload()
    adapter.model.eval().requires_grad_(False)
    return {"step_over_peft": ours / bare, "step_ms": 1e3 * ours, "peft_ms": 1e3 * bare, "recomputing": float(again)}
