"""`python -m benchmarks.metrics [--quick]`: cost of all compression metrics.

The default set, and with the exact or the estimated spectrum, beside (a) the forward pass of decoder layers of the
same size and (b) `torch.linalg.svdvals`, once for each layer's raw states, which alone would give no centred,
trimmed, norm or cosine metric. States are drawn with a large mean token and a falling spectrum, as hidden states
have. `suite_over_forward` is the whole suite over the forward pass: on a CPU of `reference-joint` on scenes (vision
and text tokens, all tap points), on a GPU of a 7B-shaped decoder in bfloat16.

Medians of interleaved rounds: on a CPU processor time of one core, on a GPU wall time. The last line is JSON.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core for all; set before numpy and torch are loaded

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import Qwen2Config, Qwen2Model

from benchmarks.common import header, last_line, seconds
from orchestrator.capture.taps import Taps
from orchestrator.compression.metrics import compute
from orchestrator.compression.registry import ALIGNMENTS, default_names
from orchestrator.config import ModelConfig, ScenesConfig
from orchestrator.data.source import make_source
from orchestrator.models.loading import load_adapter

SIZES = {(144, 128): 32, (576, 1024): 4, (704, 3584): 2, (1152, 4096): 1}
"""(N, d) -> layers measured together on a CPU; on a GPU it is `GPU_LAYERS` for all."""
GPU_LAYERS = 28
EXACT, ESTIMATED = (
    tuple(name for name in default_names(kind) if name not in ALIGNMENTS) for kind in ("exact", "estimate")
)
HEAD = 64
"""Width of an attention head in the layers compared with."""


def make_states(n_layers: int, n: int, d: int, device: str) -> list[Float[Tensor, "1 N D"]]:
    """Hidden states of one image at several layers."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, -1.5, d)
    states = []
    for _ in range(n_layers):
        tokens = torch.randn(1, n, d, generator=generator) * scales + torch.randn(d, generator=generator) * 0.5
        states.append(tokens.to(device, torch.bfloat16 if device == "cuda" else torch.float32))
    return states


def decoder(n_layers: int, d: int, device: str, heads: int) -> Qwen2Model:
    """Randomly weighted Qwen2 decoder layers (7B-shaped at d = 3,584)."""
    config = Qwen2Config(
        vocab_size=32,
        hidden_size=d,
        intermediate_size=round(5.29 * d),
        num_hidden_layers=n_layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 4),
    )
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with torch.device(device):
        return Qwen2Model(config).to(dtype).eval()


@torch.no_grad()
def measure_size(n: int, d: int, n_layers: int, device: str, repeats: int) -> dict[str, float]:
    """Seconds a layer of `ours`, `svdvals` and `forward` at one size."""
    states = make_states(n_layers, n, d, device)
    mask: Bool[Tensor, "1 N"] = torch.ones(1, n, dtype=torch.bool, device=device)
    run_layers = n_layers if device == "cuda" else 1
    model = decoder(run_layers, d, device, heads=28 if d == 3584 else d // HEAD)
    functions: dict[str, Callable[[], object]] = {
        "ours": lambda: compute(torch.cat(states), mask.expand(n_layers, n)),
        "exact": lambda: compute(torch.cat(states), mask.expand(n_layers, n), EXACT),
        "estimate": lambda: compute(torch.cat(states), mask.expand(n_layers, n), ESTIMATED),
        "svdvals": lambda: [torch.linalg.svdvals(state.float()) for state in states],
        "forward": lambda: model(inputs_embeds=states[0]),
    }
    times = seconds(functions, repeats, device)
    per = {"forward": run_layers}
    return {name: value / per.get(name, n_layers) for name, value in times.items()}


@torch.no_grad()
def reference_share(n_images: int, repeats: int) -> float:
    """Whole suite on the states of all tap points of `reference-joint` over its forward pass, on scenes."""
    adapter = load_adapter(ModelConfig(name="reference-joint"), "cpu")
    source = make_source(ScenesConfig(n_images=n_images, width=112, height=112, n_objects=(1, 10)))
    batch = adapter.collate([adapter.prepare(source.load(i).image, "describe the image .") for i in range(n_images)])
    with Taps(adapter, ["decoder", "projector"]) as taps:
        adapter.run(batch)
        states = list(taps.states(batch))
    groups = [(state.hidden, mask) for state in states for mask in (state.vision, state.text) if mask is not None]
    times = seconds(
        {"suite": lambda: [compute(*group) for group in groups], "forward": lambda: adapter.run(batch)}, repeats, "cpu"
    )
    print(
        f"reference-joint, {n_images} images, {len(groups)} (tap point, group) states: forward "
        f"{1e3 * times['forward'] / n_images:.2f} ms/image, suite {1e3 * times['suite'] / n_images:.2f} ms/image"
    )
    return times["suite"] / times["forward"]


def main() -> None:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, the two smaller sizes only")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    header("python -m benchmarks.metrics" + " --quick" * options.quick)
    repeats = 3
    figures: dict[str, float] = {}
    shares: dict[tuple[int, int], float] = {}
    print(f"{'N x d':>12} {'ours':>10} {'exact':>10} {'estimate':>10} {'svdvals':>10} {'forward':>10}   ms a layer")
    for (n, d), n_layers in list(SIZES.items())[: 2 if options.quick else None]:
        times = measure_size(n, d, GPU_LAYERS if options.device == "cuda" else n_layers, options.device, repeats)
        print(
            f"{f'{n} x {d}':>12} "
            + " ".join(f"{1e3 * times[k]:10.2f}" for k in ("ours", "exact", "estimate", "svdvals", "forward"))
        )
        figures[f"svdvals_over_ours_{n}x{d}"] = round(times["svdvals"] / times["ours"], 2)
        figures[f"svdvals_over_exact_{n}x{d}"] = round(times["svdvals"] / times["exact"], 2)
        shares[n, d] = times["ours"] / times["forward"]
        figures[f"suite_over_forward_{n}x{d}"] = round(shares[n, d], 4)
    if options.device == "cpu":
        figures["suite_over_forward"] = round(reference_share(16 if options.quick else 32, repeats), 4)
    else:
        figures["suite_over_forward"] = round(shares.get((704, 3584), max(shares.values())), 4)
    last_line(figures)


if __name__ == "__main__":
    main()
