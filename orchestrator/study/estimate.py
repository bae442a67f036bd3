"""Estimated duration of a study, and memory of its workers, on this machine; no model or data is loaded.

Operations come from `models.planning`; the machine's speed is that of a timed matrix product on a CPU and a share of
the published peak on a GPU. Fixed costs were measured with the shipped reference model on 2 Xeon cores. Durations are
accurate to about a factor of two; memory is a lower bound.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from orchestrator.cluster.placement import Pool, local_node, n_cores
from orchestrator.config import RunConfig, StageName
from orchestrator.errors import ModelError, StageError
from orchestrator.models.planning import Footprint
from orchestrator.probes.cost import Placement, place
from orchestrator.store.memory import memory_cap, object_store_gb
from orchestrator.study.row_pictures import row_footprint

_PEAK_TFLOPS = {"H200": 990, "H100": 990, "B200": 2250, "A100": 312, "L40": 362, "L4": 121, "A10": 125, "4090": 165,
                "3090": 71, "V100": 112, "T4": 65}  # fmt: skip
"""Published dense bfloat16 (V100, T4: float16) peak of a GPU, TFLOP/s, by a substring of its name."""
_SHARE_OF_PEAK = {"cpu": 0.5, "gpu": 0.3}
"""Share of a matrix product's speed, or of a GPU's peak, that a model's passes reach."""
LIBRARIES_GB = 0.4
"""Memory of a process on a CPU beside its model: torch, transformers and the package (measured: 0.38)."""
RAY_GB = 0.7
"""Memory of Ray's own processes and the driver (measured: 0.6 and 0.14)."""
START_SECONDS = 15.0
"""Start-up of Ray and of the first worker, s."""
_IMAGE_SECONDS = 0.08
"""Rendering or reading an image, metrics of all layers, and writing; s on one core, reference model."""
_QUESTION_SECONDS = 0.02
"""Rendering a question's image and preparing its model inputs; s on one core."""
_TRAIN_PASSES = {"lora": 2.0, "full": 3.0}
"""Passes of a training step: forward and backward for activations; with full training, also backward for all
weights."""


@dataclass(frozen=True)
class Machine:
    """A machine. `flops_per_second`: of all its cores, or of one GPU."""

    cores: int
    memory_gb: float
    gpus: int
    gpu: str
    gpu_memory_gb: float | None
    flops_per_second: float
    memory_of: str = "memory of this machine"
    """What sets `memory_gb`."""

    @property
    def words(self) -> str:
        if self.gpus:
            return f"{self.gpus} x {self.gpu or 'GPU'}"
        limited = "" if self.memory_of == "memory of this machine" else f" ({self.memory_of})"
        return f"{self.cores} cores, {self.memory_gb:.{0 if self.memory_gb >= 10 else 1}f} GB{limited}"


@cache
def this_machine() -> Machine:
    """This machine; takes a tenth of a second."""
    gpus = int(local_node().gpus)
    name, memory = _gpu() if gpus else ("", None)
    peak = next((peak for piece, peak in _PEAK_TFLOPS.items() if piece in name), 100)
    speed = peak * 1e12 * _SHARE_OF_PEAK["gpu"] if gpus else _matrix_product() * _SHARE_OF_PEAK["cpu"]
    cap = memory_cap()
    return Machine(n_cores(), cap.gb, gpus, name, memory, speed, cap.of)


def _gpu() -> tuple[str, float | None]:
    """Name and memory, GB, of the first GPU, from `nvidia-smi`."""
    if not shutil.which("nvidia-smi"):
        return "", None
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        first_line = subprocess.run(
            command, capture_output=True, text=True, timeout=20, check=True
        ).stdout.splitlines()[0]
        name, memory = first_line.rsplit(",", 1)
        return name.strip(), float(memory) * 1024**2 / 1e9
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return "", None


def _matrix_product(n: int = 512) -> float:
    """float32 operations per second of a matrix product on all cores.

    Uses the CPU time of one core, so that a busy machine is not measured as slow.
    """
    from threadpoolctl import threadpool_limits

    square = np.ones((n, n), np.float32)
    seconds = []
    with threadpool_limits(1):
        for _ in range(5):
            started = time.thread_time()
            square @ square
            seconds.append(time.thread_time() - started)
    return n_cores() * 2 * n**3 / max(min(seconds), 1e-6)


def probe_placement(run: RunConfig, images: int, model: Footprint, machine: Machine) -> Placement:
    """Device for the blocks of the probe grid, one per decoder layer, by the rule that a run applies."""
    places = run.capture.n_vision_positions
    positions = 4 + (model.vision_tokens if places == "all" else places) + run.capture.n_text_positions
    blocks = [(positions, images, model.width)] * (model.layers + 1)
    gpus = machine.gpus if run.probe.engine == "batched" else 0
    return place(blocks, machine.cores, gpus, mlp="mlp" in run.probe.solvers, requested=run.how.gpus_per_actor)


def stage_seconds(stage: StageName, run: RunConfig, images: int, model: Footprint, machine: Machine) -> float:
    """Seconds of one stage on the whole machine, without starting Ray."""
    workers = max(1, machine.gpus)
    a_pass = model.tflop_per_image * 1e12 / machine.flops_per_second
    an_image = model.pictures * _IMAGE_SECONDS / machine.cores + a_pass / workers
    if stage == "capture":
        return images * an_image
    if stage == "correlate":
        metrics = 30 * (model.layers + 1)  # layers x metrics x attributes x bootstraps
        return 2 + metrics * 10 * run.correlate.n_bootstrap * images * 2e-8
    if stage == "probe":
        chosen = probe_placement(run, images, model, machine)
        return 3 + (chosen.gpu_seconds if chosen.on_gpu else chosen.core_seconds)
    if stage == "finetune":
        tune = run.finetune
        trained = tune.n_steps * tune.batch_size * _TRAIN_PASSES[tune.method] * a_pass / workers
        n_questions = 2 * tune.n_eval_per_family * len(tune.task.families + tune.task.novel_families)
        asking = n_questions * (model.pictures * _QUESTION_SECONDS / machine.cores + 2 * a_pass / workers)
        return trained + asking + (tune.n_capture_images + 2 * tune.n_capture_questions) * an_image
    if stage != "ablate":
        raise StageError(f"no estimate of the time of stage {stage!r}")
    from orchestrator.ablate.cells import list_cells

    families = max(len(run.ablate.low_families), len(run.ablate.high_families), 1)
    return len(list_cells(run.ablate, model.layers)) * run.ablate.n_per_family * families * a_pass / workers


def memory_problems(runs: Sequence[RunConfig], pools: Sequence[Pool], machine: Machine | None = None) -> list[str]:
    """Workers whose models do not fit this machine's memory together, each with a remedy.

    The memory is the smallest limit set for this process (`store.memory`). Clusters are not judged, nor models whose
    sizes are not known here. Without pools it is one process without Ray.
    """
    machine = machine or this_machine()
    problems = []
    for run in runs:
        try:
            needed = worker_gb(run, on_gpu=machine.gpus > 0)
        except ModelError:
            continue
        for pool in pools or [Pool("process", 1, 1.0)]:
            needed_here = needed
            available, of, n = machine.memory_gb, machine.memory_of, pool.n
            beside = RAY_GB + object_store_gb(run.how, machine.memory_gb) if pools else 0.0
            if pool.gpus and machine.gpu_memory_gb:
                available, of = machine.gpu_memory_gb * max(1.0, pool.gpus), "memory of its GPUs"
                n, beside = max(1, int(1 / pool.gpus)) if pool.gpus < 1 else 1, 0.0
            elif not pool.gpus:
                needed_here = needed + LIBRARIES_GB
            if available and n * needed_here + beside > available:
                problems.append(_too_large(run, pool, n, needed_here, beside, available, of))
    return problems


def worker_gb(run: RunConfig, *, on_gpu: bool) -> float:
    """Minimum GB of a worker with a run's model: its weights; `dtype: auto` is float32 on a CPU."""
    if not on_gpu and run.model.dtype == "auto":
        run = run.model_copy(update={"model": run.model.model_copy(update={"dtype": "float32"})})
    batch = run.model_copy(update={"how": run.how.model_copy(update={"batch_size": 1})})
    return row_footprint(batch).memory_gb


def _too_large(run: RunConfig, pool: Pool, n: int, needed: float, beside: float, available: float, of: str) -> str:
    workers, ray = f"{n} x {pool.name}", f", Ray with its object store {beside:.1f} GB" if beside else ""
    need = f"{run.model.name}: {workers} need at least {n * needed:.1f} GB{ray}, and the {of} is {available:.1f} GB. "
    if n > 1 and needed + beside <= available:
        fits = int((available - beside) / needed)
        key = "how.concurrent_trials" if "trial" in pool.name else "how.n_actors"
        return need + f"Set {key}={fits}, or use a larger machine."
    smaller = "" if run.model.dtype in ("bfloat16", "float16") else " model.dtype=bfloat16 halves it;"
    if beside and needed <= available:
        return need + "Set how.backend=local, which needs no Ray, or use a larger machine."
    return need + f"Use a smaller model or a larger machine;{smaller} how.device_map=auto spreads a model over GPUs."
