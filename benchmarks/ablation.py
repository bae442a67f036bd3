"""Time saved by deleting visual tokens: time per image by share kept, relative to the full forward pass.

    python -m benchmarks.ablation [--quick]

A random LLaVA of 576 visual tokens, width 256 and 8 decoder layers, on one core. CPU time, the minimum over
interleaved rounds, which is insensitive to other load. "decoder" is the decoder call including the shortening of the
sequence; "whole" adds vision encoder and projector. Then, for each token selection method: the time of reading and
selection divided by the decoder time saved by the same deletion, at a quarter of the tokens (a half on average for
methods that delete in several steps, whose early layers see all tokens).

The last line is one JSON object. Targets: `time_at_25_percent` (decoder time at 25 % kept over that of the plain pass)
at most 0.40; `selection_over_saving_METHOD` at most 0.2 for methods that do not read the vision encoder.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from benchmarks.common import header, last_line
from orchestrator.ablate.selection import make_reduction
from orchestrator.ablate.selectors.entries import ENTRIES
from orchestrator.ablate.selectors.kinds import Selector
from orchestrator.ablate.selectors.schedules import schedule_for
from orchestrator.models.adapter import Adapter
from orchestrator.models.batching import Batch
from orchestrator.models.random_configs import Size
from orchestrator.models.random_models import random_adapter, random_example

SIZE = Size(width=256, layers=8, heads=8, vision_width=128, vision_layers=4, side=24, patch=14)
SHARES = (1.0, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01, 0.0)
N_TEXT = 24


class Clock:
    """CPU seconds in the decoder, deletion hooks included, since the last reset."""

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
    """Decoder and total seconds per image at each share kept, best round; the full pass has the key -1."""
    clock, best = Clock(adapter), {share: (float("inf"), float("inf")) for share in (-1.0, *keeps)}
    for _ in range(rounds + 1):  # the first round is the warm-up and may count, as the minimum is taken
        for share, inputs in ((-1.0, batch), *keeps.items()):
            clock.seconds, started = 0.0, time.process_time()
            adapter.run(inputs, logits_to_keep=1)
            total = time.process_time() - started
            best[share] = min(best[share][0], clock.seconds), min(best[share][1], total)
    n = len(batch["input_ids"])
    return {share: (decoder / n, total / n) for share, (decoder, total) in best.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds of one image instead of eight of two")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    adapter = random_adapter("llava", SIZE)
    batch = adapter.collate([random_example(adapter, n_text=N_TEXT, seed=i) for i in range(1 if quick else 2)])
    counts = adapter.n_vision(batch).tolist()
    places = torch.rand(len(counts), max(counts), generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    keeps = {s: adapter.drop(batch, places < s * counts[0]) for s in SHARES}
    times = measure(adapter, batch, keeps, 2 if quick else 8)
    plain = times.pop(-1.0)
    header("python -m benchmarks.ablation" + (" --quick" if quick else ""))
    print(f"{counts[0]} visual and {N_TEXT} text tokens, width {SIZE.width}, {SIZE.layers} layers, one core")
    print(f"{'kept':>6} {'decoder ms':>11} {'of plain':>9} {'whole ms':>9} {'of plain':>9}")
    print(f"{'plain':>6} {plain[0] * 1e3:>11.1f} {1:>9.2f} {plain[1] * 1e3:>9.1f} {1:>9.2f}")
    for share, (decoder, total) in times.items():
        row = f"{share:>6.0%} {decoder * 1e3:>11.1f} {decoder / plain[0]:>9.2f}"
        print(f"{row} {total * 1e3:>9.1f} {total / plain[1]:>9.2f}")
    chosen = {entry.name: selection(adapter, batch, entry, plain[0], 2 if quick else 5) for entry in ENTRIES}
    print(f"{'method':>20} {'choosing ms':>12} {'saved ms':>9} {'ratio':>6}")
    for name, (cost, saved) in chosen.items():
        print(f"{name:>20} {cost * 1e3:>12.2f} {saved * 1e3:>9.1f} {cost / saved:>6.2f}")
    ratios = {f"selection_over_saving_{name}": round(cost / saved, 3) for name, (cost, saved) in chosen.items()}
    last_line({"time_at_25_percent": round(times[0.25][0] / plain[0], 3), **ratios})


@torch.no_grad()
def selection(adapter: Adapter, batch: Batch, entry: Selector, plain: float, rounds: int) -> tuple[float, float]:
    """Seconds per image of reading and selection, and of decoder time saved by the same deletion; best round of each.

    Reading and selection are wall time, measured inside the pass; the minimum over rounds approximates an idle machine.
    """
    n, budget = len(batch["input_ids"]), 0.25 if len(entry.depths) == 1 else 0.5
    if entry.at_input:
        schedule: Any = ((0, budget),) if max(entry.depths) == 0 else ((1, budget),)
    else:
        schedule = schedule_for(entry, adapter.n_layers, [], budget)
    layers, shares = zip(*schedule, strict=True)
    costs, clock, passes = [], Clock(adapter), []
    control = next(candidate for candidate in ENTRIES if candidate.name == "random")
    for _ in range(rounds + 1):
        for candidate in (entry, control):
            reduction = make_reduction(adapter, batch, candidate, layers, [[share] * n for share in shares])
            clock.seconds = 0.0
            adapter.run(adapter.reduce(batch, reduction), logits_to_keep=1)
            if candidate is entry:
                costs.append(reduction.seconds + reduction.seconds_before)
            if candidate is control:  # same depths and numbers, with negligible selection cost
                passes.append(clock.seconds)
    return min(costs) / n, plain - min(passes) / n


if __name__ == "__main__":
    main()
