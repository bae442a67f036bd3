"""`python -m benchmarks.sweep [--quick]`: what orchestration costs beside training.

Two questions. A sweep of 12 trials (4 ratios x 3 seeds) on the reference model: its whole time, Ray's start, model
loading, evaluation, capture and results included, over the training seconds of its trials shared among the trials that
run at a time; once with workers kept from trial to trial, once with a new process each. And one optimiser step of
`finetune.train` over one of a bare peft loop on the same batches, medians of interleaved runs. Wall times: the machine
must be quiet. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # inherited by the workers; set before torch is loaded

from orchestrator.cluster.placement import n_cores
from orchestrator.config import RunConfig
from orchestrator.finetune.ray.trials import plan_resources, run_trials
from orchestrator.store.filesystem import Storage
from orchestrator.study.resolve import resolve_run


def make_run(n_steps: int, ratio: float = 0.5, seed: int = 0, reuse: bool = True) -> RunConfig:
    """A trial of `n_steps` steps of 32 examples with a small evaluation."""
    return RunConfig.model_validate(
        {
            "data": {"source": "scenes", "n_images": 16},
            "finetune": {
                "complexity_ratio": ratio,
                "seed": seed,
                "n_steps": n_steps,
                "n_examples": 32 * n_steps,
                "n_eval_per_family": 4,
                "n_capture_images": 16,
            },
            "how": {"reuse_workers": reuse, "batch_size": 32},
        }
    )


def sweep_overhead(n_steps: int, ratios: tuple[float, ...], seeds: int, reuse: bool) -> dict[str, float]:
    """Wall time of a sweep from nothing, and the training seconds inside it."""
    runs = [make_run(n_steps, r, s, reuse) for r in ratios for s in range(seeds)]
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(folder)
        started = time.perf_counter()
        points = run_trials([resolve_run(run, storage, "finetune") for run in runs], quiet=True)
        wall = time.perf_counter() - started
        rows = [point.stages["finetune"].scan("trials").collect().row(0, named=True) for point in points]
    at_a_time = min(plan_resources(runs[0].how, n_cores(), 0.0).n_trials, len(runs))
    training = sum(row["train_seconds"] for row in rows) / at_a_time
    work = sum(row["trial_seconds"] for row in rows) / at_a_time
    return {"wall": wall, "training": training, "ratio": wall / training, "over_work": wall / work}


def step_times(n_steps: int, repeats: int) -> dict[str, float]:
    """Median seconds of a step of `finetune.train` and of a bare peft loop, same batches, interleaved."""
    import peft
    import torch

    from orchestrator.answers.prepared import Prepared
    from orchestrator.data.mixture import make_mixture
    from orchestrator.finetune.lora import lora_config, part_settings, tunable
    from orchestrator.finetune.train import train
    from orchestrator.models.loading import load_adapter

    torch.set_num_threads(1)
    run = make_run(n_steps)
    adapter, config = load_adapter(run.model), run.finetune
    prepared = Prepared(adapter)
    mixture = make_mixture(config, 0.5, 0)
    examples = [prepared.with_answer(example) for example in mixture]
    batches = [adapter.collate(examples[i : i + 32]) for i in range(0, len(examples), 32)]
    inputs = [{**adapter.model_inputs(batch), "labels": batch["labels"]} for batch in batches]

    def ours() -> float:
        with tunable(adapter, config) as tuned:
            log = train(adapter, tuned, lambda step: [batches[step]], config)
        return statistics.median(step.seconds for step in log.steps[1:])

    def bare() -> float:
        model = peft.get_peft_model(adapter.model, lora_config(adapter, config, part_settings(config)))
        trained = [p for p in model.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(trained, lr=1e-3)
        seconds = []
        for batch in inputs:
            started = time.perf_counter()
            model(**batch, use_cache=False).loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            seconds.append(time.perf_counter() - started)
        model.unload()
        return statistics.median(seconds[1:])

    measured: dict[str, list[float]] = {"ours": [], "bare": []}
    functions: dict[str, Callable[[], float]] = {"ours": ours, "bare": bare}
    for repeat in range(repeats):
        for name in ("ours", "bare") if repeat % 2 else ("bare", "ours"):
            measured[name].append(functions[name]())
    return {name: statistics.median(values) for name, values in measured.items()}


def main() -> None:
    """Measure, print a few lines, and JSON last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="2 trials of 4 steps: shows that it runs, measures nothing"
    )
    quick = parser.parse_args().quick
    steps = step_times(4 if quick else 12, 2 if quick else 6)
    print(f"step: {steps['ours'] * 1e3:.1f} ms, bare peft loop {steps['bare'] * 1e3:.1f} ms")
    result: dict[str, Any] = {"step_over_peft": round(steps["ours"] / steps["bare"], 4)}
    n_steps, ratios, seeds = (4, (0.0, 1.0), 1) if quick else (100, (0.0, 0.25, 0.5, 1.0), 3)
    for name, reuse in (("reuse", True), ("fresh", False)):
        overhead = sweep_overhead(n_steps, ratios, seeds, reuse)
        print(f"{name}: {overhead['wall']:.1f} s for {overhead['training']:.1f} s of training")
        result[f"wall_over_training_{name}"] = round(overhead["ratio"], 4)
        result[f"wall_over_work_{name}"] = round(overhead["over_work"], 4)
    result["wall_over_training"] = result["wall_over_training_reuse"]
    print(json.dumps({"benchmark": "sweep", "quick": quick, "cores": n_cores(), **result}))


if __name__ == "__main__":
    main()
