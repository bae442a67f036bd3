"""The parts of `benchmarks.gpu` on the shipped model, on Ray, and of a whole study."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import gpu_model
from benchmarks.common import seconds
from benchmarks.gpu_parts import SETS, Settings, free, passes
from orchestrator.config import RunConfig


def small(settings: Settings) -> dict[str, float]:
    """`reference-joint`: a pass with the default set over the bare one, 64 scenes a pass."""
    from orchestrator.data.source import make_source
    from orchestrator.models.loading import load_adapter

    run = study_run("reference-joint", 8 if settings.tiny else 64, 112, "local")
    adapter = load_adapter(run.model, settings.device)
    source = make_source(run.data)
    images = [source.load(i).image for i in range(len(source))]
    batch = adapter.collate([adapter.prepare(image, run.capture.prompt) for image in images])
    works: dict[str, Callable[[], object]] = {
        "bare": lambda: passes(adapter, batch, None, 4),
        "norms": lambda: passes(adapter, batch, SETS["norms"], 4),
        "default": lambda: passes(adapter, batch, SETS["default"], 4),
    }
    times = seconds(works, 3, settings.device)
    return {
        "small_norms_over_bare": times["norms"] / times["bare"],
        "small_default_over_bare": times["default"] / times["bare"],
        "small_images_per_s": 4 * len(images) / times["default"],
    }


def study_run(model: str, n_images: int, side: int, backend: str, **how: Any) -> RunConfig:
    """A capture run of scenes."""
    data = {"source": "scenes", "n_images": n_images, "n_objects": [1, 50], "width": side, "height": side}
    how_settings = {"backend": backend, "batch_size": 8, "shard_size": 16, **how}
    return RunConfig.model_validate({"model": {"name": model}, "data": data, "how": how_settings})


def on_ray(settings: Settings) -> dict[str, float]:
    """Capture of a model loaded from disk, in this process and on Ray with one actor: images/s of the steady part."""
    from benchmarks.capture import time_local, time_ray

    settings.made.clear()
    free()
    n_images = 160 if settings.tiny else 256
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="vtsweep-gpu-") as folder:
        name = gpu_model.checkpoint(settings.shape, settings.device, Path(folder, "model"))
        free()
        for backend, measured in (("local", time_local), ("ray", time_ray)):
            run = study_run(name, n_images, 14 * settings.shape.side, backend, object_store_gb=1.0)
            started = time.perf_counter()
            steady = measured(run, Path(folder, backend))
            figures[f"{backend}_images_per_s"] = n_images / steady
            figures[f"{backend}_total_s"] = time.perf_counter() - started
            free()
    figures["ray_over_local"] = figures["ray_images_per_s"] / figures["local_images_per_s"]
    return figures


def quickstart(settings: Settings) -> dict[str, float]:
    """Wall time of the quick start, in a separate process."""
    with tempfile.TemporaryDirectory(prefix="vtsweep-gpu-") as folder:
        changes = [f"storage={folder}", "track.enabled=false"]
        if settings.tiny:
            changes += ["base.data.n_images=24", "base.finetune.n_steps=2", "base.finetune.n_examples=64"]
            changes += ["base.finetune.n_eval_per_family=2", "base.finetune.n_capture_images=4", "how.backend=local"]
        command = [sys.executable, "-m", "orchestrator", "run", "sweeps/quickstart.yaml", *changes]
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ}, timeout=900, check=False)
        wall = time.perf_counter() - started
    print("\n".join(done.stdout.splitlines()[-25:]))
    if done.returncode:
        raise RuntimeError(f"quickstart ended with {done.returncode}: {done.stderr[-1500:]}")
    return {"quickstart_s": wall}
