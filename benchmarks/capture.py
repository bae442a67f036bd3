"""Cost of capture relative to the forward pass, on this machine.

    python -m benchmarks.capture [--quick]

Two models: the shipped `reference-joint`, and a random LLaVA of width 256, 8 decoder layers and 576 visual tokens. Four
modes for each, each in a separate process, timed after the model is loaded:

    bare        load, preprocess and run the images; results are discarded
    local       `run_capture` in this process: every metric, features, tables written
    ray         the same on Ray with one actor; the steady part, after the first two shards
    numpy_save  `output_hidden_states=True`, then `numpy.save` of all of them, as without this package

The speed of a shared machine drifts within minutes. Every round therefore runs `bare` first and last, each ratio is to
the mean of these two, and the table has the median over rounds with the smallest and the largest.

Memory is the peak of the process tree's proportional set size. The last line is one JSON object, each ratio the worse
of the two models: `local_over_bare`, `ray_over_bare`, `numpy_save_over_local` (time), `memory_5000_over_500` (peak of
`local` with ten times the images, reference model) and `bytes_per_image` (`local`, reference model).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from orchestrator.config import HowConfig, ModelConfig, RunConfig, ScenesConfig
from orchestrator.store.filesystem import Storage
from orchestrator.study.resolve import resolve_run

BATCH = 16
SHARDS = {112: 64, 336: 16}
"""Side of the image, px -> images per shard: enough shards for a steady state, each with seconds of work."""
ROUNDS = {"reference-joint": 3, "llava-256": 3}
WAYS = ("bare", "local", "ray", "numpy_save")


# ---------------------------------------------------------------- one mode, in a child process


def make_run(model: str, n_images: int, backend: str) -> RunConfig:
    side = 336 if "/" in model else 112
    how = HowConfig(backend=backend, batch_size=BATCH, shard_size=SHARDS[side], object_store_gb=0.5)  # type: ignore[arg-type]
    data = ScenesConfig(n_images=n_images, n_objects=(1, 50), width=side, height=side)
    return RunConfig(model=ModelConfig(name=model), data=data, how=how)


def time_forward(run: RunConfig, folder: Path, *, save: bool) -> float:
    """Seconds of a plain loop over the images; with `save`, hidden states are saved by hand."""
    import numpy as np
    import torch

    from orchestrator.data.source import make_source
    from orchestrator.models.loading import load_adapter

    adapter = load_adapter(run.model, "cpu")
    source = make_source(run.data)
    options: dict[str, Any] = {"logits_to_keep": 1, **({"output_hidden_states": True} if save else {})}

    def batches() -> Iterator[Any]:
        for start in range(0, len(source), BATCH):
            images = [source.load(i).image for i in range(start, min(start + BATCH, len(source)))]
            yield adapter.collate([adapter.prepare(image, run.capture.prompt) for image in images])

    with torch.inference_mode():
        adapter.run(next(batches()), **options)
        started = time.perf_counter()
        for number, batch in enumerate(batches()):
            output = adapter.run(batch, **options)
            if save:
                np.save(folder / f"{number:05d}.npy", torch.stack(output.hidden_states, 1).numpy())
        return time.perf_counter() - started


def time_local(run: RunConfig, folder: Path) -> float:
    """Seconds of `run_capture`, from the loaded model to `_SUCCESS`."""
    from orchestrator.capture.capture_stage import make_model_worker, run_capture
    from orchestrator.capture.loading import load_shard
    from orchestrator.capture.shard_job import Job, Worker
    from orchestrator.data.source import make_source

    ready = [0.0]

    def make_worker(job: Job, threads: int | None) -> Worker:
        worker = make_model_worker(job, threads)
        worker.shard(load_shard(make_source(job.run.data), range(BATCH)))
        ready[0] = time.perf_counter()
        return worker

    point = resolve_run(run, Storage(str(folder)), "capture")
    run_capture(point, quiet=True, make_worker=make_worker)
    return time.perf_counter() - ready[0]


def time_ray(run: RunConfig, folder: Path) -> float:
    """Seconds for all images at the rate after the first two shards, which an actor processes together."""
    from orchestrator.capture.capture_stage import make_job
    from orchestrator.capture.ray import stream_ray
    from orchestrator.cluster.placement import capture_pool
    from orchestrator.cluster.session import session
    from orchestrator.data.source import make_source

    point = resolve_run(run, Storage(str(folder)), "capture")
    source = make_source(run.data)
    job = make_job(point, point.stages["capture"].open({"n_images": len(source), "shard_size": run.how.shard_size}))
    with session(run.how, point.storage) as cluster:
        pool = capture_pool(run.how, cluster.nodes)
        times, counts = [], []
        for stats in stream_ray(job, source, range(job.n_shards), pool, 1):
            times.append(time.perf_counter())
            counts.append(stats.n_images)
    return (times[-1] - times[1]) / sum(counts[2:]) * sum(counts)


def child(way: str, model: str, n_images: int, folder: Path) -> None:
    run = make_run(model, n_images, "ray" if way == "ray" else "local")
    measure: dict[str, Callable[[], float]] = {
        "bare": lambda: time_forward(run, folder, save=False),
        "numpy_save": lambda: time_forward(run, folder, save=True),
        "local": lambda: time_local(run, folder),
        "ray": lambda: time_ray(run, folder),
    }
    print(json.dumps({"seconds": measure[way]()}))


# ---------------------------------------------------------------- the parent


def make_llava(folder: Path) -> str:
    """A checkpoint folder with random weights, from the reference model's processor and config at a larger size."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    from orchestrator.models.catalogue import resolve

    reference = str(resolve(ModelConfig()).folder)
    processor = AutoProcessor.from_pretrained(reference)
    processor.image_processor.size = {"height": 336, "width": 336}
    processor.patch_size = 14
    processor.save_pretrained(folder)
    config = AutoConfig.from_pretrained(reference)
    for part in (config.vision_config, config.text_config):
        part.hidden_size, part.intermediate_size = 256, 688
    config.vision_config.image_size, config.vision_config.patch_size = 336, 14
    config.text_config.num_hidden_layers, config.text_config.max_position_embeddings = 8, 1024
    config.text_config.head_dim, config.image_seq_length = 64, 576
    if getattr(config.text_config, "layer_types", None):
        config.text_config.layer_types = None
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    return str(folder)


def measure(way: str, model: str, n_images: int) -> dict[str, float]:
    """Run one mode in a child process; seconds, images per second, peak memory and bytes per image."""
    with tempfile.TemporaryDirectory(prefix="vtsweep-") as folder:
        command = [sys.executable, "-m", "benchmarks.capture", "--child", way, model, str(n_images), folder]
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
            peak = 0
            while process.poll() is None:
                peak = max(peak, tree_memory(process.pid))
                time.sleep(0.25)
            assert process.stdout is not None
            lines = process.stdout.read().strip().splitlines()
            if process.returncode:
                errors.seek(0)
                raise SystemExit(f"{way} on {model} failed:\n{errors.read()[-3000:]}")
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    seconds = json.loads(lines[-1])["seconds"]
    return {
        "seconds": seconds,
        "images_per_second": n_images / seconds,
        "peak_mb": peak / 1e6,
        "bytes_per_image": size / n_images,
    }


def one_round(ways: Sequence[str], model: str, n_images: int) -> dict[str, dict[str, float]]:
    """One measurement of each mode; the time of `bare` is the mean of those at the start and at the end."""
    found = {way: measure(way, model, n_images) for way in ways}
    last = measure("bare", model, n_images)
    for key in ("seconds", "images_per_second"):
        found["bare"][key] = (found["bare"][key] + last[key]) / 2
    return found


def tree_memory(pid: int) -> int:
    """Proportional set size of a process and all below it, bytes."""
    total = 0
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few images and one round; rates are rough")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        way, model, n_images, folder = arguments.child
        child(way, model, int(n_images), Path(folder))
        return
    quick = arguments.quick
    counts = {"reference-joint": 256, "llava-256": 32} if quick else {"reference-joint": 640, "llava-256": 96}
    results: dict[str, dict[str, dict[str, float]]] = {}
    print(
        f"{'model':<16} {'way':<11} {'images/s':>9} {'of bare':>8} {'spread':>10} {'peak MB':>8} {'bytes/image':>12}",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="vtsweep-llava-") as folder:
        for model, n_images in counts.items():
            path = make_llava(Path(folder)) if model == "llava-256" else model
            rows = results[model] = {}
            ways = ("bare", "local") if quick and model == "llava-256" else WAYS
            rounds = [one_round(ways, path, n_images) for _ in range(1 if quick else ROUNDS[model])]
            for way in ways:
                row = rows[way] = {
                    key: statistics.median(round_[way][key] for round_ in rounds) for key in rounds[0][way]
                }
                shares = [round_["bare"]["seconds"] / round_[way]["seconds"] for round_ in rounds]
                row["of_bare"] = statistics.median(shares)
                spread = f"{min(shares):.2f}-{max(shares):.2f}"
                print(
                    f"{model:<16} {way:<11} {row['images_per_second']:>9.2f} {row['of_bare']:>8.2f} {spread:>10} "
                    f"{row['peak_mb']:>8.0f} {row['bytes_per_image']:>12.0f}",
                    flush=True,
                )
    few, many = (64, 320) if quick else (500, 5000)
    peaks = [measure("local", "reference-joint", n)["peak_mb"] for n in (few, many)]
    print(f"peak of local with {few} and {many} images: {peaks[0]:.0f} and {peaks[1]:.0f} MB")

    def worst(way: str, over: str = "bare") -> float:
        rates = [
            rows[way]["of_bare"] / rows[over]["of_bare"] for rows in results.values() if way in rows and over in rows
        ]
        return min(rates)

    summary = {
        "local_over_bare": worst("local"),
        "ray_over_bare": worst("ray"),
        "numpy_save_over_local": worst("local", "numpy_save"),
        "memory_5000_over_500": peaks[1] / peaks[0],
        "bytes_per_image": results["reference-joint"]["local"]["bytes_per_image"],
    }
    print(json.dumps({name: round(value, 3) for name, value in summary.items()}))


if __name__ == "__main__":
    main()
