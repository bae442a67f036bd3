"""The part `probes` of `benchmarks.gpu`."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_parts import Settings
from orchestrator.config import ProbeConfig

PROBE_SIZES = {"128": (400, 27, 128), "4096": (128, 27, 4096), "3584x2000": (2000, 8, 3584)}
"""Images, positions and width of a block of probes."""
TINY_PROBE_SIZES = {"128": (60, 3, 16), "4096": (40, 3, 80)}
BLOCKS = ("128", "4096")
"""Blocks of which `probe_block_s` is the slowest."""


def probe_problem(n: int, n_positions: int, width: int) -> tuple[np.ndarray, list, Any, list[str]]:
    """Features of one (tap, layer) and ten attributes, as a study of scenes has."""
    from orchestrator.probes.split import make_split
    from orchestrator.probes.targets import make_target

    random = np.random.default_rng(0)
    latent = random.normal(size=(n, 10)).astype(np.float32)
    features = np.stack([latent @ random.standard_normal((10, width), np.float32) for _ in range(n_positions)], 1)
    features += random.standard_normal(features.shape, np.float32) * np.logspace(0.5, -1, width, dtype=np.float32)
    targets = [make_target(f"number{i}", "continuous", latent[:, i] + random.normal(size=n)) for i in range(5)]
    targets += [make_target(f"class{c}", "categorical", latent[:, :c].argmax(1)) for c in (2, 2, 3, 4, 5)]
    names = [f"vision_{p:02d}" for p in range(n_positions)]
    return features.astype(np.float16), targets, make_split(range(n), 0.3, 5, 0), names


def probes(settings: Settings) -> dict[str, float]:
    """One block of probes, warm, by width and device, and scikit-learn's time per matrix relative to ours."""
    from orchestrator.probes.grid import fit_grid

    config = ProbeConfig(solvers=("ridge", "logistic"))
    sizes = TINY_PROBE_SIZES if settings.tiny else PROBE_SIZES
    figures: dict[str, float] = {}
    for name, size in sizes.items():
        features, targets, split, positions_of = probe_problem(*size)
        for device in dict.fromkeys((settings.device, "cpu")):
            if device == "cpu" and name == "3584x2000":
                continue
            before = torch.get_num_threads()
            torch.set_num_threads(1 if device == "cpu" else before)
            spent = []
            for _ in range(2):
                started = time.perf_counter()
                fit_grid(
                    features, targets, config, split, tap="decoder", layer=0, positions=positions_of, device=device
                )
                spent.append(time.perf_counter() - started)
            torch.set_num_threads(before)
            figures[f"probe_block_{name}_{device}_s"] = spent[-1]
    device = settings.device
    figures["probe_block_s"] = max(min(figures[f"probe_block_{n}_{d}_s"] for d in (device, "cpu")) for n in BLOCKS)
    n, _, width = sizes["128"]
    features, targets, split, positions_of = probe_problem(n, 1, width)
    single = config.model_copy(update={"engine": "sklearn"})
    started = time.perf_counter()
    fit_grid(features, targets, single, split, tap="decoder", layer=0, positions=positions_of)
    a_matrix = time.perf_counter() - started
    ours = min(figures[f"probe_block_128_{d}_s"] for d in (device, "cpu")) / sizes["128"][1]
    return {**figures, "probe_sklearn_over_ours": a_matrix / ours}
