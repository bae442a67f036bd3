"""What deleting visual tokens saves: time an image by the share kept, against the plain forward pass.

    python -m benchmarks.ablation [--quick]

A random LLaVA of 576 visual tokens, width 256 and 8 decoder layers, on one core. Processor time, the best of several
rounds in which all shares take turns, so that a busy machine does not change it. "decoder" is the decoder's own call,
shortening of the sequence included; "whole" adds vision encoder and projector; "selection" is the scoring of tokens by
leverage, from states at hand. The last line is one JSON object; the aim is `time_at_25_percent` (decoder time at 25 %
kept over that of the plain pass) of at most 0.40.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from benchmarks.common import header, last_line
from orchestrator.ablate.selection import _by_states, keep_mask, random_scores
from orchestrator.models.adapter import Adapter
from orchestrator.models.batching import Batch
from orchestrator.models.random_configs import Size
from orchestrator.models.random_models import random_adapter, random_example

SIZE = Size(width=256, layers=8, heads=8, vision_width=128, vision_layers=4, side=24, patch=14)
SHARES = (1.0, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01, 0.0)
N_TEXT = 24


class Clock:
    """Processor seconds spent in the decoder, hooks of a deletion included, since the last reset."""

    def __init__(self, adapter: Adapter) -> None:
        self.seconds = self._began = 0.0
        adapter.decoder.register_forward_pre_hook(self._begin)
        adapter.decoder.register_forward_hook(self._end)

    def _begin(self, *_: Any) -> None:
        self._began = time.process_time()

    def _end(self, *_: Any) -> None:
        self.seconds += time.process_time() - self._began


@torch.no_grad()
def measure(adapter: Adapter, batch: Batch, keeps: dict[float, Batch], rounds: int) -> dict[float, tuple[float, float]]:
    """Decoder and whole seconds of an image at each share kept, the best round; the plain pass under the key -1."""
    clock, best = Clock(adapter), {share: (float("inf"), float("inf")) for share in (-1.0, *keeps)}
    for _ in range(rounds + 1):  # the first round warms up and is as good as any other for a minimum
        for share, inputs in ((-1.0, batch), *keeps.items()):
            clock.seconds, started = 0.0, time.process_time()
            adapter.run(inputs, logits_to_keep=1)
            whole = time.process_time() - started
            best[share] = min(best[share][0], clock.seconds), min(best[share][1], whole)
    n = len(batch["input_ids"])
    return {share: (decoder / n, whole / n) for share, (decoder, whole) in best.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds of one image instead of eight of two")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    adapter = random_adapter("llava", SIZE)
    batch = adapter.collate([random_example(adapter, n_text=N_TEXT, seed=i) for i in range(1 if quick else 2)])
    counts = adapter.n_vision(batch).tolist()
    scores = [random_scores(n, (0, i)) for i, n in enumerate(counts)]
    keeps = {s: adapter.drop(batch, keep_mask(scores, [1 - s] * len(counts))) for s in SHARES}
    found = measure(adapter, batch, keeps, 2 if quick else 8)
    started = time.process_time()
    _by_states("leverage", torch.randn(counts[0], SIZE.width))
    selection = time.process_time() - started
    plain = found.pop(-1.0)
    header("python -m benchmarks.ablation" + (" --quick" if quick else ""))
    print(f"{counts[0]} visual and {N_TEXT} text tokens, width {SIZE.width}, {SIZE.layers} layers, one core")
    print(f"{'kept':>6} {'decoder ms':>11} {'of plain':>9} {'whole ms':>9} {'of plain':>9}")
    print(f"{'plain':>6} {plain[0] * 1e3:>11.1f} {1:>9.2f} {plain[1] * 1e3:>9.1f} {1:>9.2f}")
    for share, (decoder, whole) in found.items():
        row = f"{share:>6.0%} {decoder * 1e3:>11.1f} {decoder / plain[0]:>9.2f}"
        print(f"{row} {whole * 1e3:>9.1f} {whole / plain[1]:>9.2f}")
    print(f"selection {selection * 1e3:.1f} ms")
    last_line({"time_at_25_percent": round(found[0.25][0] / plain[0], 3)})


if __name__ == "__main__":
    main()
