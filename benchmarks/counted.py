"""Cost of a capture pass on a GPU, counted without a GPU: kernels launched, bytes moved, operations.

The real code runs on fake `cuda` tensors (`FakeTensorMode`): nothing is computed, but every operation is observed
with its shapes. `Work` sums, for each operation that launches a kernel, the bytes that it reads and writes and its
operations; `seconds` is a roofline estimate: each operation is bound by memory or compute rate, and by the launch time.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks import gpu_model
from benchmarks.fake_cuda import fake_cuda
from orchestrator.capture.recorder import Recorder
from orchestrator.capture.taps import State
from orchestrator.capture.vision_quantiles import vision_quantiles
from orchestrator.config import CaptureConfig, ProbeConfig
from orchestrator.study.cards import SPECTRUM_SECONDS

LAUNCH_S = 4e-6
"""Minimum time of a kernel, s."""
MEMORY, BFLOAT16, FLOAT32 = 4.3e12, 760e12, 52e12
"""An H200's rates, measured: bytes/s read and written, operations/s of bfloat16 and of float32 products."""
FORWARD = 520e12
"""Operations/s of a complete pass of a 7B model on it, measured (161 ms for eight images)."""
FREE = ("view", "alias", "detach", "expand", "permute", "transpose", "t.", "slice", "select", "unsqueeze", "squeeze")
FREE += (
    "new_empty",
    "as_strided",
    "split",
    "unbind",
    "diagonal",
    "lift",
    "empty",
    "_unsafe_view",
    "set_",
    "resize",
    "prim::",
)
"""Prefixes of operations that launch no kernel."""


@dataclass
class Work(TorchDispatchMode):
    """Counts the kernels in a `with` block, and the copies from and to the host.

    `device`: whose tensors count. Code that reads values (a solver's tests of convergence) cannot run on fake tensors:
    it runs on the CPU, and its operations are counted as those of a GPU.
    """

    device: str = "cuda"
    n_launches: int = 0
    n_bytes: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    to_host: int = 0
    by_operation: collections.Counter[str] = field(default_factory=collections.Counter)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        name = func._schema.name.removeprefix("aten::")
        on_gpu = [t for t in (*tensors, *outputs) if t.device.type == self.device]
        if not on_gpu or any(name.startswith(free) for free in FREE):
            return out
        if name in ("_to_copy", "copy_") and {t.device.type for t in (*tensors, *outputs)} == {"cpu", "cuda"}:
            self.to_host += (outputs or tensors)[0].device.type == "cpu"
        reads = {id(t): _bytes(t) for t in (*on_gpu,)}
        moved = sum(reads.values())
        flops = _flops(func, args, kwargs, out)
        half = any(t.dtype in (torch.bfloat16, torch.float16) for t in tensors)
        duration = max(LAUNCH_S, moved / MEMORY, flops / (BFLOAT16 if half else FLOAT32))
        self.n_launches += 1
        self.n_bytes += moved
        self.flops += flops
        self.seconds += duration
        self.by_operation[name] += round(duration * 1e9)
        return out


def _flops(func: Any, args: tuple, kwargs: dict[str, Any], out: Any) -> float:
    formula = flop_registry.get(func._overloadpacket)
    if formula is None:
        return 0.0
    inputs = args[:2] if func._overloadpacket is torch.ops.aten.bmm else args  # a third argument is the output dtype
    return float(formula(*inputs, **({} if len(inputs) < len(args) else kwargs), out_val=out))


def _bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's elements in memory: an expanded one is read once."""
    n = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        n *= size if stride else 1
    return n * tensor.element_size()


def masks(shape: gpu_model.Shape) -> tuple[Tensor, Tensor]:
    """Masks of vision and text positions of a pass; real tensors, as a recorder reads them on the host."""
    vision = torch.zeros(shape.images, shape.side**2 + shape.text + 3, dtype=torch.bool)
    vision[:, 3 : 3 + shape.side**2] = True
    text = torch.zeros_like(vision)
    text[:, 3 + shape.side**2 :] = True
    return vision, text


@contextmanager
def counting() -> Iterator[Work]:
    """Fake `cuda` tensors inside the block, and their counted work."""
    with fake_cuda(), Work() as work:
        yield work


def recorded(shape: gpu_model.Shape, metrics: Sequence[str], n_layers: int | None = None) -> Work:
    """The work of recording one pass."""
    n_layers = shape.layers + 1 if n_layers is None else n_layers
    config = CaptureConfig()
    quantiles = vision_quantiles(config.n_vision_positions, config.seed)
    vision, text = masks(shape)
    with counting() as work, torch.no_grad():
        recorder = Recorder(config, metrics, quantiles, {"decoder": n_layers})
        for layer in range(n_layers):
            hidden = torch.empty(*vision.shape, shape.width, dtype=torch.bfloat16, device="cuda")
            recorder(State("decoder", layer, hidden, vision, text))
        recorder.launch()
    return work


def forward(shape: gpu_model.Shape) -> tuple[float, float]:
    """Operations of the decoder's own pass, and its seconds at the rate measured for whole passes."""
    n = shape.side**2 + shape.text + 3
    heads = max(1, shape.heads // 7) / shape.heads
    weights = shape.width**2 * (2 + 2 * heads) + 3 * shape.width * shape.inner
    flops = shape.images * shape.layers * (2.0 * n * weights + 4.0 * n**2 * shape.width)
    return flops, flops / FORWARD


def probe_work(n: int, n_positions: int, width: int) -> Work:
    """The work of one block of probes, as a GPU would do it."""
    from benchmarks.gpu_probes import probe_problem
    from orchestrator.probes import grid, logistic

    features, targets, split, names = probe_problem(n, n_positions, width)
    config = ProbeConfig(solvers=("ridge", "logistic"), n_bootstrap=0)
    sizes = [(grid.BLOCK_BYTES, "cpu"), (logistic.BATCH_BYTES, "cpu"), (logistic.TOGETHER, "cpu")]
    with ExitStack() as stack:
        for table, device in sizes:
            stack.enter_context(mock.patch.dict(table, {device: table["cuda"]}))  # type: ignore[attr-defined]
        work = stack.enter_context(Work(device="cpu"))
        grid.fit_grid(features, targets, config, split, tap="decoder", layer=0, positions=names)
    return work


def table(*, tiny: bool = False) -> dict[str, float]:
    """Print launches, bytes, operations and time of a bare pass, of each set of metrics and of blocks of probes."""
    from benchmarks.gpu_parts import PEAK, SETS
    from benchmarks.gpu_probes import BLOCKS, PROBE_SIZES, TINY_PROBE_SIZES

    shape = gpu_model.TINY if tiny else gpu_model.SEVEN_B
    flops, seconds = forward(shape)
    print(f"{'work of a pass':<18}{'launches':>9}{'GB moved':>10}{'TFLOP':>8}{'ms on an H200':>15}{'to host':>9}")
    print(f"{'bare (decoder)':<18}{'':>9}{'':>10}{flops / 1e12:>8.2f}{1e3 * seconds:>15.1f}")
    figures = {"counted_bare_ms": round(1e3 * seconds, 2)}
    for name, metrics in SETS.items():
        n_spectra = {"full_exact": 1, "full_exact_all": 4}.get(name, 0)
        # the work of an eigensolver does not follow from shapes: its time is that measured on an H200
        solver = n_spectra * (shape.layers + 1) * shape.images * SPECTRUM_SECONDS * shape.side**6
        work = recorded(shape, SETS["default"] if n_spectra else metrics)
        _print(name, work, solver)
        figures[f"capture_{name}_over_bare"] = round(1 + (work.seconds + solver) / seconds, 4)
        if not n_spectra:
            figures[f"launches_{name}"] = work.n_launches
    pass_seconds = figures["capture_default_over_bare"] * seconds
    figures["images_per_s"] = round(shape.images / pass_seconds, 2)
    figures["mfu"] = round(flops / pass_seconds / PEAK["H200"], 4)
    for name, size in (TINY_PROBE_SIZES if tiny else PROBE_SIZES).items():
        if name in BLOCKS:
            work = probe_work(*size)
            _print(f"probes, {name}", work)
            figures[f"probe_block_{name}_s"] = round(work.seconds, 4)
            figures[f"launches_probe_block_{name}"] = work.n_launches
    figures["probe_block_s"] = max(figures[f"probe_block_{name}_s"] for name in BLOCKS)
    return figures


def _print(name: str, work: Work, more_seconds: float = 0.0) -> None:
    print(
        f"{name:<18}{work.n_launches:>9}{work.n_bytes / 1e9:>10.1f}{work.flops / 1e12:>8.2f}"
        f"{1e3 * (work.seconds + more_seconds):>15.1f}{work.to_host:>9}",
        flush=True,
    )
