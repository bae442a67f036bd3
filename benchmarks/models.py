"""What capture costs beside the bare forward pass, for every class at a common small size.

    python -m benchmarks.models [--quick] [--families llava,mllama]

Random models of width 256 with 8 decoder layers and about 576 vision tokens an image, two images a pass. Times over the
bare pass, minus one: `taps` hands every state over with its masks and drops it; `features` keeps what probes need and
the norm-based metrics; `metrics` also computes every compression metric, as a capture stage does by default
(benchmarks.metrics is about those). With a GPU at hand, a 7B-shaped LLaVA in bfloat16 with 729 vision tokens as well,
eight images a pass. The last line is one JSON object: `overhead_FAMILY` is that of taps and features,
`with_metrics_FAMILY` that of all. Processor time on a CPU; use OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Any

import torch

from benchmarks.common import header, last_line, seconds
from orchestrator.capture.recorder import Recorder
from orchestrator.capture.taps import Taps, default_taps
from orchestrator.capture.vision_quantiles import vision_quantiles
from orchestrator.compression.registry import METRICS
from orchestrator.config import CaptureConfig
from orchestrator.models.adapter import Adapter
from orchestrator.models.batching import Batch
from orchestrator.models.families import make_adapter
from orchestrator.models.random_configs import Size
from orchestrator.models.random_models import FAMILIES, random_adapter, random_example

WIDTH, LAYERS, TOKENS, IMAGES = 256, 8, 576, 2
NORMS = ["gini", "participation_ratio", "norm_entropy", "hoyer", "tokens_90"]
TILES = {"smolvlm": (2, 2), "idefics3": (2, 2), "internvl": (2, 2), "gemma3": (2, 2), "mllama": (2, 2)}
"""Families that cut an image into tiles get four, of a quarter of the tokens each."""


def small_model(family: str, *, quick: bool) -> tuple[Adapter, Batch]:
    """Return a model of the common size and a batch for it."""
    tiles = TILES.get(family, (1, 1))
    tokens = (TOKENS // 4 if quick else TOKENS) // (tiles[0] * tiles[1])
    size = Size(
        width=WIDTH, layers=LAYERS, heads=8, vision_width=64, vision_layers=2, side=round(tokens**0.5), patch=14
    )
    if family in ("llava_next", "molmo2", "llava_onevision"):  # these see the whole image besides its tiles
        size = Size(**{**vars(size), "side": round((tokens / 2) ** 0.5)})
    if family in ("qwen2_5_vl", "qwen3_vl"):  # theirs is made of 2 x 2 tokens
        tiles = (size.side // 2, size.side // 2)
    adapter = random_adapter(family, size)
    return adapter, adapter.collate([random_example(adapter, tiles, n_text=24, seed=i) for i in range(IMAGES)])


def measure(adapter: Adapter, batch: Batch, repeats: int) -> dict[str, float]:
    """Return the seconds of a bare pass, of one with taps, of one that keeps features, and of one with all metrics."""
    config = CaptureConfig()
    quantiles = vision_quantiles(config.n_vision_positions, config.seed)
    taps = default_taps(adapter)

    def bare() -> None:
        adapter.run(batch, logits_to_keep=1)

    def tapped() -> None:
        with Taps(adapter, taps, on_state=lambda _: None):
            adapter.run(batch, logits_to_keep=1)

    def recorded(metrics: list[str]) -> None:
        recorder = Recorder(config, metrics, quantiles)
        with Taps(adapter, taps, on_state=recorder):
            adapter.run(batch, logits_to_keep=1)
        recorder.finish()

    with torch.no_grad():
        times = {
            "bare": bare,
            "taps": tapped,
            "features": partial(recorded, NORMS),
            "metrics": partial(recorded, [*METRICS]),
        }
        return seconds(times, repeats, adapter.device.type)


def seven_billion(repeats: int) -> dict[str, Any]:
    """Return the same of a 7B-shaped LLaVA in bfloat16 on a GPU, with images a second and peak memory."""
    import transformers as hf

    text = {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    }
    # 22 x 32 patches would be Molmo's 704 tokens at 640 x 480 px; a square tower of 27 x 27 = 729 is its nearest.
    vision = {"model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "image_size": 378}
    vision |= {"num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14, "projection_dim": 768}
    config = hf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=120)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = hf.LlavaForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    adapter = make_adapter(model)
    n = 8
    batch = adapter.collate([random_example(adapter, n_text=24, seed=i) for i in range(n)])
    torch.cuda.reset_peak_memory_stats()
    times = measure(adapter, batch, repeats)
    return {
        "overhead_7b_gpu": round(times["features"] / times["bare"] - 1, 4),
        "with_metrics_7b_gpu": round(times["metrics"] / times["bare"] - 1, 4),
        "images_per_s_7b_gpu": round(n / times["metrics"], 2),
        "peak_gb_7b_gpu": round(torch.cuda.max_memory_allocated() / 1e9, 2),
    }


def main() -> None:
    """Measure every family and print a table, then the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a quarter of the tokens, fewer repeats")
    parser.add_argument("--families", default=",".join(FAMILIES), help="comma-separated")
    args = parser.parse_args()
    header(" ".join(["python -m benchmarks.models", *sys.argv[1:]]))
    repeats = 3 if args.quick else 5
    figures: dict[str, Any] = {}
    print(f"{'family':16}{'vision':>8}{'bare ms':>10}{'taps':>9}{'features':>10}{'metrics':>9}")
    for family in args.families.split(","):
        adapter, batch = small_model(family, quick=args.quick)
        times = measure(adapter, batch, repeats)
        taps, features, metrics = (times[name] / times["bare"] - 1 for name in ("taps", "features", "metrics"))
        vision = int(adapter.n_vision(batch)[0])
        print(f"{family:16}{vision:8d}{times['bare'] * 1e3:10.1f}{taps:9.1%}{features:10.1%}{metrics:9.1%}", flush=True)
        figures[f"overhead_{family}"] = round(features, 4)
        figures[f"with_metrics_{family}"] = round(metrics, 4)
    if torch.cuda.is_available():
        figures |= seven_billion(repeats)
    last_line(figures)


if __name__ == "__main__":
    main()
