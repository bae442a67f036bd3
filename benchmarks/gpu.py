"""Every stage on one GPU relative to the bare work, in under eight minutes.

    python -m benchmarks.gpu [--only capture,metrics,probes,train,ablation,small,ray,quickstart] [--tiny] [--profile]

A randomly weighted 7B-shaped LLaVA (28 blocks of width 3,584, 729 visual tokens, bfloat16) made in the GPU's memory,
eight images a pass, and the shipped `reference-joint`. Every part prints a JSON line when it is done, so that
an interrupted run keeps its results; the last line has the figures of all completed parts:

    capture_X_over_bare     time of a pass with features and the metrics X over the pass alone: `norms`, `default`
                            (norms and Gram), `full_exact` and `full_estimate` (those and one full spectrum a layer)
    ray_over_local          images/s of the steady part on Ray over those in this process, a model loaded from disk
    probe_block_s           one (tap, layer) of probes in a warm process, s
    probe_sklearn_over_ours a joblib-free loop of scikit-learn on one core over ours, by time a feature matrix
    step_over_peft          LoRA step over that of a bare peft loop, same batches, adapters and recomputing
    decoder_at_25_percent   decoder time with a quarter of the visual tokens over the plain pass
    quickstart_s            `vtsweep run sweeps/quickstart.yaml`, wall time
    images_per_s, mfu       of capture with the default set; floating-point operations of the bare pass over
                            time times the card's dense bfloat16 rate

`--profile` prints the slowest kernels of one capture pass. `--tiny` runs the same code at small sizes, on a
CPU too. Without a GPU the costs of capture and of probes are counted instead (`benchmarks/counted.py`): kernels
launched, bytes moved and operations, and the estimated time at an H200's rates. What only a run can tell is then
measured on processor cores, all but the quick start at small sizes; `measured_on_cores` names these figures.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks import gpu_parts, gpu_probes, gpu_studies
from benchmarks.common import header

PARTS: dict[str, Callable[[gpu_parts.Settings], dict[str, float]]] = {
    "capture": gpu_parts.capture,
    "metrics": gpu_parts.metrics,
    "ablation": gpu_parts.ablation,
    "train": gpu_parts.training,
    "probes": gpu_probes.probes,
    "small": gpu_studies.small,
    "quickstart": gpu_studies.quickstart,
    "ray": gpu_studies.on_ray,
}
"""In order of execution: first the parts that need most memory, last those that start processes."""


KEYS = (
    "capture_default_over_bare",
    "capture_norms_over_bare",
    "capture_full_exact_over_bare",
    "capture_full_estimate_over_bare",
    "ray_over_local",
    "probe_block_s",
    "probe_sklearn_over_ours",
    "step_over_peft",
    "quickstart_s",
    "images_per_s",
    "mfu",
)
"""Figures of the last line whatever was run; null for those whose part was left out or failed."""
ON_CORES = ("train", "small", "ray", "quickstart")
"""Parts whose figures cannot be counted; without a GPU they run on processor cores, all but the last at small sizes."""


def counted(settings: gpu_parts.Settings, wanted: Sequence[str]) -> dict[str, Any]:
    """The counted table, printed, and its figures, with those of the parts that only a run can give."""
    from benchmarks.counted import table

    figures: dict[str, Any] = {"counted": True}
    if {"capture", "metrics", "probes"} & set(wanted):
        figures |= table(tiny=settings.tiny)
    small = gpu_parts.Settings("cpu", tiny=True)
    named: dict[str, dict[str, Any]] = {}
    for name in ON_CORES:
        if name in wanted:
            named[name] = run_part(name, settings if name == "quickstart" else small)
    if "probes" in wanted:
        found = run_part("probes", gpu_parts.Settings("cpu", settings.tiny))
        named["probes"] = {key: found[key] for key in ("probe_sklearn_over_ours", "probes_failed") if key in found}
    on_cores = {key: value for found in named.values() for key, value in found.items()}
    return {**figures, **on_cores, "measured_on_cores": sorted(on_cores)}


def run_part(name: str, settings: gpu_parts.Settings) -> dict[str, Any]:
    """Run one part and print its line; a part that fails gives its error as `NAME_failed`."""
    started = time.perf_counter()
    try:
        found: dict[str, Any] = dict(PARTS[name](settings))
    except Exception as error:
        traceback.print_exc()
        found = {f"{name}_failed": f"{type(error).__name__}: {str(error)[:200]}"}
    gpu_parts.free()
    found = {key: round(value, 4) if isinstance(value, float) else value for key, value in found.items()}
    print(json.dumps({"part": name, "seconds": round(time.perf_counter() - started, 1), **found}), flush=True)
    return found


def main() -> None:
    """Run the requested parts; print one line per part, and one of all; exit code 1 if a part failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="comma-separated parts")
    parser.add_argument("--tiny", action="store_true", help="small sizes: shows that it runs, measures nothing")
    parser.add_argument("--profile", action="store_true", help="print the top kernels of one capture pass, and end")
    parser.add_argument("--counted", action="store_true", help="count instead of measuring, with a GPU too")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",")
    if unknown := sorted(set(wanted) - set(PARTS)):
        parser.error(f"no part {unknown[0]!r}; parts are {', '.join(PARTS)}")
    header("python -m benchmarks.gpu")
    has_gpu = torch.cuda.is_available()
    settings = gpu_parts.Settings("cuda" if has_gpu else "cpu", arguments.tiny)
    card = torch.cuda.get_device_name() if has_gpu else "none"
    figures: dict[str, Any] = dict.fromkeys(KEYS) | {"card": card, "torch": torch.__version__, "tiny": arguments.tiny}
    if arguments.profile:
        gpu_parts.profile(settings)
        return
    if arguments.counted or not (has_gpu or arguments.tiny):
        print("no GPU: figures are counted, not measured" if not has_gpu else "figures are counted, not measured")
        figures |= counted(settings, wanted)
    else:
        for name in PARTS:
            if name in wanted:
                figures |= run_part(name, settings)
    print(json.dumps(figures))
    raise SystemExit(any(key.endswith("_failed") for key in figures))


if __name__ == "__main__":
    main()
