"""`python -m benchmarks.probes [--quick] [--device cuda]`: the batched probes against a joblib loop of scikit-learn.

The grid is 8 layers x 24 positions x 8 attributes x 7 penalties x 5 folds at n = 2,000, d = 256, and, for ridge,
2 layers x 8 positions at d = 3,584. Both sides fit the same features, labels and splits, make the same nested choice of
the penalty and use the same cores: one process a core, single-threaded, fed by joblib. scikit-learn uses its own best
tricks: `RidgeCV` shares one SVD among all targets and penalties, logistic regression walks the penalties with warm
starts, MLPs work in float32 and take the same number of steps. Two more comparisons: `GridSearchCV` beside `RidgeCV`,
which never refits and so is no K-fold, and scikit-learn's default MLP (up to 200 epochs) beside ours.

Times are processor seconds over the number of cores, so that a busy machine does not change them (wall time where the
batched engine runs on a GPU). Slow solvers are timed on a part of the grid, and compared by time per feature matrix:
`matrices` says how many each side fitted. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # inherited by joblib's workers; set before numpy is loaded

import joblib
import numpy as np
import torch

from orchestrator.cluster.placement import n_cores
from orchestrator.config import ProbeConfig
from orchestrator.probes.engines import SOLVERS, Block, Fit
from orchestrator.probes.factor import factorise, gram, standardise
from orchestrator.probes.grid import positions_at_once
from orchestrator.probes.labels import Labels, make_labels
from orchestrator.probes.ridge import fit_ridge
from orchestrator.probes.score import accuracy, r2
from orchestrator.probes.split import make_split
from orchestrator.probes.targets import make_target

N_ATTRIBUTES = 8


@dataclass(frozen=True)
class Grid:
    """One layer's worth of features, drawn anew for each layer from its number."""

    n: int
    d: int
    n_positions: int

    def latent(self) -> np.ndarray:
        return np.random.default_rng(0).normal(size=(self.n, 24))

    def features(self, layer: int) -> np.ndarray:
        """(n, positions, d) float16: a falling spectrum, as hidden states have, and 24 directions with the labels."""
        random = np.random.default_rng(1 + layer)
        latent = self.latent().astype(np.float32)
        parts = []
        for _ in range(self.n_positions):
            noise = random.standard_normal((self.n, self.d), np.float32) * np.logspace(
                0.5, -1, self.d, dtype=np.float32
            )
            signal = latent @ random.standard_normal((24, self.d), np.float32) * random.uniform(0.05, 0.4)
            parts.append((signal + noise).astype(np.float16))
        return np.stack(parts, 1)

    def labels(self, solver: str) -> list[Labels]:
        """Eight numbers (ridge), eight classes of 2 to 8 values (logistic), or four of each (mlp)."""
        latent, random = self.latent(), np.random.default_rng(99)
        numbers = [
            make_target(f"number{i}", "continuous", latent[:, i] + 0.3 * i * random.normal(size=self.n))
            for i in range(N_ATTRIBUTES)
        ]
        classes = [
            make_target(f"class{i}", "categorical", (latent[:, i : i + 2 + i % 7] + 0.3 * random.normal()).argmax(1))
            for i in range(N_ATTRIBUTES)
        ]
        targets = {"ridge": numbers, "logistic": classes, "mlp": numbers[:4] + classes[:4]}[solver]
        split = make_split(range(self.n), 0.3, 5, 0)
        return [make_labels(target, split, 0) for target in targets]

    def block(self, layer: int, positions: slice, config: ProbeConfig, device: str = "cpu") -> Block:
        split = make_split(range(self.n), 0.3, 5, 0)
        part = torch.from_numpy(self.features(layer)[:, positions].transpose(1, 0, 2).copy()).to(device).float()
        return Block(part[:, split.train], part[:, split.test], split.fold, config)


@dataclass
class Timed:
    """Seconds of the fits alone, scores (matrices x attributes), and the worker's peak memory, MB."""

    seconds: float
    scores: np.ndarray
    peak_mb: float


def fit(engine: str, solver: str, grid: Grid, layer: int, positions: slice, config: ProbeConfig, device: str) -> Timed:
    """One task: the features are made outside the timed part, as if a shard had been read."""
    labels, size = grid.labels(solver), positions_at_once(grid.n, grid.d, device)
    seconds, scores = 0.0, []
    for first in range(positions.start, positions.stop, size):
        block = grid.block(layer, slice(first, min(first + size, positions.stop)), config, device)
        started = clock(device)
        fits = SOLVERS[engine, solver](block, labels)
        seconds += clock(device) - started
        scores.append(np.stack([score(fits[label.target.name], label) for label in labels], 1))
    return Timed(seconds, np.concatenate(scores), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def clock(device: str) -> float:
    """Processor seconds of this process, or wall seconds once a GPU has finished what it was given."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def score(fit: Fit, label: Labels) -> np.ndarray:
    none = np.empty((0, len(label.test)))
    if label.is_classification:
        return accuracy(fit.predicted == label.test[:, None], label.test_valid, none)[0]
    return r2(fit.predicted, label.test, label.test_valid, none)[0]


def grid_search(grid: Grid, layer: int, positions: slice, config: ProbeConfig) -> Timed:
    """Ridge as most people write it: `GridSearchCV` over five folds, one attribute after the other."""
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV, PredefinedSplit

    labels, block = grid.labels("ridge"), grid.block(layer, positions, config)
    started = clock("cpu")
    Z, Z_test, _, _ = standardise(block.train.double(), block.test.double())
    alphas = {"alpha": [p * Z.shape[1] for p in config.penalties]}
    scores = []
    for train, test in zip(Z.numpy(), Z_test.numpy(), strict=True):
        folds = PredefinedSplit(block.fold)
        models = [GridSearchCV(Ridge(), alphas, cv=folds).fit(train, label.train) for label in labels]
        scores.append([m.score(test, label.test) for m, label in zip(models, labels, strict=True)])
    return Timed(clock("cpu") - started, np.array(scores), 0.0)


def default_net(grid: Grid, layer: int, positions: slice, config: ProbeConfig) -> Timed:
    """MLPs with scikit-learn's own defaults for steps and learning rate; size and L2 term as ours."""
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    labels, block = grid.labels("mlp"), grid.block(layer, positions, config)
    hidden = (config.mlp_width,) * config.mlp_depth
    started = clock("cpu")
    Z, Z_test, _, _ = standardise(block.train, block.test)
    fits = []
    for label in labels:
        kind = MLPClassifier if label.is_classification else MLPRegressor
        y = label.train if label.is_classification else label.train.astype(np.float32)
        net = kind(hidden_layer_sizes=hidden, alpha=200 * config.mlp_penalties[0], random_state=0).fit(Z[0].numpy(), y)
        fits.append(Fit(np.zeros(1), net.predict(Z_test[0].numpy())[:, None], None))
    seconds = clock("cpu") - started
    return Timed(seconds, np.stack([score(f, label) for f, label in zip(fits, labels, strict=True)], 1), 0.0)


def on_cores(tasks: list[tuple[Callable[..., Timed], tuple]], jobs: int) -> tuple[float, np.ndarray, float]:
    """The tasks' times in sum over the number of cores, their scores in order, the largest peak memory."""
    done = joblib.Parallel(n_jobs=jobs)(joblib.delayed(function)(*arguments) for function, arguments in tasks)
    assert done
    seconds = sum(timed.seconds for timed in done) / jobs
    return seconds, np.concatenate([timed.scores for timed in done]), max(timed.peak_mb for timed in done)


def compare(
    solver: str, grid: Grid, n_layers: int, sklearn_matrices: int, config: ProbeConfig, device: str, jobs: int
) -> dict[str, Any]:
    """Both engines on the same features: seconds per matrix, ratio, and differences of held-out scores."""
    all_positions = slice(0, grid.n_positions)
    ours = [(fit, ("batched", solver, grid, layer, all_positions, config, device)) for layer in range(n_layers)]
    places = [(layer, p) for p in range(grid.n_positions) for layer in range(n_layers)][:sklearn_matrices]
    theirs = [(fit, ("sklearn", solver, grid, layer, slice(p, p + 1), config, "cpu")) for layer, p in places]
    our_jobs = 1 if device != "cpu" else jobs
    seconds, scores, peak = on_cores(ours, our_jobs)
    their_seconds, their_scores, _ = on_cores(theirs, jobs)
    n_ours = n_layers * grid.n_positions
    index = [layer * grid.n_positions + p for layer, p in places]
    difference = scores[index] - their_scores
    return {
        "matrices": [n_ours, len(places)],
        "ours_s_per_matrix": seconds / n_ours,
        "sklearn_s_per_matrix": their_seconds / len(places),
        "ratio": (their_seconds / len(places)) / (seconds / n_ours),
        "largest_score_difference": float(np.abs(difference).max()),
        "mean_score_difference": float(difference.mean()),
        "mean_score": float(their_scores.mean()),
        "peak_mb": peak,
        "features_mb": grid.n * grid.n_positions * grid.d * 2 / 2**20,
    }


def bottleneck(grid: Grid, config: ProbeConfig, device: str) -> dict[str, float]:
    """Seconds a matrix of the parts of a ridge grid on one core."""
    block = grid.block(0, slice(0, min(4, grid.n_positions)), config, device)
    labels = grid.labels("ridge")
    Y = torch.from_numpy(np.stack([label.train for label in labels])).to(block.train)

    def timed(function: Callable[[], Any]) -> tuple[float, Any]:
        function()
        started = clock(device)
        result = function()
        return (clock(device) - started) / len(block.train), result

    scaling, (Z, _, _, _) = timed(lambda: standardise(block.train, block.test))
    product, smaller = timed(lambda: gram(Z.mT if Z.shape[1] >= Z.shape[2] else Z))
    eigen, _ = timed(lambda: torch.linalg.eigh(smaller, UPLO="U"))
    total, factor = timed(lambda: factorise(block.train, block.test))
    ridge, _ = timed(lambda: fit_ridge(factor, Y, Y.new_tensor(config.penalties) * Y.shape[1]))
    rest = total - scaling - product - eigen
    return {"standardise": scaling, "gram": product, "eigh": eigen, "rest": rest, "ridge": ridge}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small grid, to see that everything runs")
    parser.add_argument("--device", default="cpu", help="device of the batched engine (cpu, cuda)")
    parser.add_argument("--jobs", type=int, default=n_cores(), help="processes of each side")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = ProbeConfig(controls=(), mlp_penalties=(0.1,))
    small, wide, n_layers = Grid(2000, 256, 24), Grid(2000, 3584, 8), 8
    fitted = {
        "ridge": (8, 192),
        "wide": (2, 16),
        "logistic": (options.jobs, 2 * options.jobs),
        "mlp": (1, options.jobs),
    }
    if options.quick:
        small, wide, n_layers = Grid(400, 32, 4), Grid(200, 300, 2), 1
        fitted = {"ridge": (1, 4), "wide": (1, 2), "logistic": (1, 2), "mlp": (1, 1)}
        config = config.model_copy(update={"mlp_steps": 40})
    joblib.Parallel(n_jobs=options.jobs)(  # start the workers and import everything before the clock runs
        joblib.delayed(fit)("sklearn", "ridge", Grid(100, 4, 1), i, slice(0, 1), config, "cpu")
        for i in range(options.jobs)
    )
    results: dict[str, dict[str, Any]] = {}
    for name, (layers, matrices) in fitted.items():
        solver, grid = ("ridge", wide) if name == "wide" else (name, small)
        results[name] = compare(solver, grid, layers, matrices, config, options.device, options.jobs)
        print(f"{name:9s}", {k: round(v, 5) if isinstance(v, float) else v for k, v in results[name].items()})
    searched = [(grid_search, (small, layer, slice(0, 1), config)) for layer in range(min(n_layers, options.jobs))]
    seconds, _, _ = on_cores(searched, options.jobs)
    grid_search_ratio = seconds / len(searched) / results["ridge"]["ours_s_per_matrix"]
    default = [(default_net, (small, 0, slice(p, p + 1), config)) for p in range(options.jobs)]
    seconds, default_scores, _ = on_cores(default, options.jobs)
    default_ratio = seconds / len(default) / results["mlp"]["ours_s_per_matrix"]
    ours = fit("batched", "mlp", small, 0, slice(0, options.jobs), config, options.device)
    parts = {"d=256": bottleneck(small, config, options.device), "d=3584": bottleneck(wide, config, options.device)}
    print("seconds a matrix by part:", {k: {p: round(s, 5) for p, s in v.items()} for k, v in parts.items()})
    print(
        json.dumps(
            {
                "benchmark": "probes",
                "device": torch.cuda.get_device_name() if options.device != "cpu" else f"cpu x {options.jobs}",
                **{f"sklearn_over_ours_{k}": round(v["ratio"], 2) for k, v in results.items()},
                "sklearn_defaults_over_ours_mlp": round(default_ratio, 2),
                "mean_score_difference_mlp_defaults": float((ours.scores - default_scores).mean()),
                "gridsearchcv_over_ours_ridge": round(grid_search_ratio, 2),
                **{f"score_difference_{k}": v["largest_score_difference"] for k, v in results.items()},
                **{f"mean_score_difference_{k}": v["mean_score_difference"] for k, v in results.items()},
                "seconds_whole_ridge_grid": round(results["ridge"]["ours_s_per_matrix"] * 8 * 24, 2),
                "peak_mb": round(max(v["peak_mb"] for v in results.values())),
                "quick": options.quick,
            }
        )
    )


if __name__ == "__main__":
    main()
