"""The probe grid of one feature array: every position x attribute x solver. Arrays in, table `probes` out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch

from orchestrator.config import ProbeConfig
from orchestrator.errors import DataError
from orchestrator.probes.beyond import Covariates, skill_beyond
from orchestrator.probes.engines import Block, Fit, find_solver, tasks_of
from orchestrator.probes.labels import Labels, make_labels
from orchestrator.probes.score import accuracy, balanced_accuracy, r2
from orchestrator.probes.split import Split
from orchestrator.probes.targets import Target, subset_of
from orchestrator.stats.resample import resample_weights
from orchestrator.store.tables.core import TABLES, check_table

SOME_IMAGES = ("vision_object", "vision_background")
"""Positions that an image may lack, whose features are then NaN: it shows no object, or nothing else."""
BLOCK_BYTES = {"cpu": 8 * 2**20, "cuda": 2 * 2**30}
"""float32 features fitted at a time. The solvers hold a few copies; larger blocks leave a CPU's caches."""


def fit_grid(
    features: np.ndarray,
    targets: Sequence[Target],
    config: ProbeConfig,
    split: Split,
    *,
    tap: str,
    layer: int,
    positions: Sequence[str],
    device: str = "cpu",
    covariates: Covariates | None = None,
) -> pl.DataFrame:
    """Fit and score every probe on one (tap, layer).

    Positions that some images lack (`SOME_IMAGES`) are fitted on the images that have them.

    Args:
        features: (n_images, n_positions, width) float16 or float32; may be memory-mapped, read in blocks of positions.
        targets: labels of the same images.
        config: solvers, penalties and controls.
        split: training and held-out images, and inner folds.
        tap, layer, positions: identifiers of the table's rows.
        device: torch device of the batched engine; scikit-learn runs on the CPU.
        covariates: covariates of `skill_beyond` for the same images; without them it is null.

    Returns:
        Table `probes`. A probe that cannot be fitted is a row with a null score and its `reason`.

    Raises:
        DataError: shapes do not match.
    """
    names: dict[str, Any] = {"tap": tap, "layer": layer, "device": device}
    parts: list[pl.DataFrame] = []
    everywhere = list(range(len(positions)))
    for k in [k for k, position in enumerate(positions) if position in SOME_IMAGES and features.ndim == 3]:
        present = ~np.isnan(features[:, k]).all(axis=1)
        if present.all():
            continue
        everywhere.remove(k)
        rows = np.flatnonzero(present)
        if (subset := split.among(rows)) is None:
            parts.append(_absent(targets, config, positions[k], len(rows), tap, layer))
            continue
        own_targets = [subset_of(target, rows) for target in targets]
        held = None if covariates is None else Covariates(covariates.names, covariates.values[rows])
        own_features = features[rows, k : k + 1]
        options: dict[str, Any] = {"positions": [positions[k]], "covariates": held, **names}
        parts.append(fit_grid(own_features, own_targets, config, subset, **options))
    if parts and not everywhere:
        return pl.concat(parts)
    if parts:
        features, positions = features[:, everywhere], [positions[k] for k in everywhere]
    n_images = {len(target.values) for target in targets} | {len(features)}
    if covariates is not None:
        n_images |= {len(covariates.values)}
    if features.ndim != 3 or features.shape[1] != len(positions) or len(n_images) > 1:
        raise DataError(
            f"probes of {tap} layer {layer}: features {features.shape} with {len(positions)} position names and labels "
            f"of {sorted(n_images)} images; expected (n_images, n_positions, width)"
        )
    counts = resample_weights(len(split.test), config.n_bootstrap, config.seed).astype(np.float64)
    labels = [make_labels(target, split, config.seed) for target in targets]
    test_covariates = None if covariates is None else Covariates(covariates.names, covariates.values[split.test])
    table: list[dict[str, Any]] = []
    for block_names, train, test in _blocks(features, positions, split, device):
        nonfinite = _bad_positions(train, test)
        finite = [b for b in range(len(block_names)) if b not in nonfinite]
        table += [
            _empty_row(block_names[b], label, solver, config, nonfinite[b])
            for b in nonfinite
            for solver, group in _work(config, labels)
            for label in group
        ]
        block = Block(train[finite], test[finite], split.fold, config)
        for solver, group in _work(config, labels):
            usable = [label for label in group if label.reason is None]
            fits = find_solver(config.engine, solver)(block, usable) if usable and finite else {}
            for label in group:
                if label.reason is not None:
                    table += [_empty_row(block_names[b], label, solver, config, label.reason) for b in finite]
                elif finite:
                    good_names = [block_names[b] for b in finite]
                    table += _scored_rows(
                        good_names, label, solver, config, fits[label.target.name], counts, test_covariates
                    )
    return pl.concat([_table(table, tap, layer), *parts])


def _absent(
    targets: Sequence[Target], config: ProbeConfig, position: str, n: int, tap: str, layer: int
) -> pl.DataFrame:
    """Rows of a position that too few images have."""
    why = f"only {n} images have such a token"
    rows = [
        {
            "attribute": target.name, "kind": target.task, "solver": solver, "engine": config.engine, "n_train": 0,
            "n_test": 0, "n_classes": None, "n_left_out": target.n_left_out, "position": position, "reason": why,
        }
        for solver in config.solvers
        for target in targets
        if target.task in tasks_of(solver)
    ]  # fmt: skip
    return _table(rows, tap, layer)


_PLACE = ("tap", "layer")


def _table(rows: list[dict[str, Any]], tap: str, layer: int) -> pl.DataFrame:
    table = pl.DataFrame(rows, schema={c: s.dtype for c, s in TABLES["probes"].columns.items() if c not in _PLACE})
    return check_table(table.with_columns(tap=pl.lit(tap), layer=pl.lit(layer, pl.Int32)), "probes")


def _work(config: ProbeConfig, labels: list[Labels]) -> list[tuple[str, list[Labels]]]:
    return [(s, [label for label in labels if label.target.task in tasks_of(s)]) for s in config.solvers]


def _blocks(
    features: np.ndarray, positions: Sequence[str], split: Split, device: str
) -> Iterator[tuple[list[str], torch.Tensor, torch.Tensor]]:
    """Names, training and held-out features (B, n, d) of as many positions at a time as the device's budget allows."""
    n, n_positions, d = features.shape
    size = positions_at_once(n, d, device)
    for start in range(0, n_positions, size):
        part = features[:, start : start + size]
        train, test = (
            torch.from_numpy(np.ascontiguousarray(part[rows].transpose(1, 0, 2))).to(device).float()
            for rows in (split.train, split.test)
        )
        yield list(positions[start : start + size]), train, test


def positions_at_once(n: int, d: int, device: str) -> int:
    """Number of positions, of n images and width d, fitted at a time."""
    return max(1, BLOCK_BYTES[torch.device(device).type] // (4 * n * d))


def _bad_positions(train: torch.Tensor, test: torch.Tensor) -> dict[int, str]:
    finite = torch.cat([train, test], 1).isfinite().all(2)
    return {
        b: f"features are not finite in {int((~finite[b]).sum())} of {finite.shape[1]} images (NaN, or beyond float16)"
        for b in (~finite.all(1)).nonzero()[:, 0].tolist()
    }


def _shared(label: Labels, solver: str, config: ProbeConfig) -> dict[str, Any]:
    return {
        "attribute": label.target.name,
        "kind": label.target.task,
        "solver": solver,
        "engine": config.engine,
        "n_train": int(label.valid.sum()),
        "n_test": int(label.test_valid.sum()),
        "n_classes": label.n_classes if label.is_classification else None,
        "n_left_out": label.target.n_left_out,
    }


def _empty_row(position: str, label: Labels, solver: str, config: ProbeConfig, reason: str) -> dict[str, Any]:
    return {**_shared(label, solver, config), "position": position, "reason": reason}


def _scored_rows(
    positions: list[str],
    label: Labels,
    solver: str,
    config: ProbeConfig,
    fit: Fit,
    counts: np.ndarray,
    test_covariates: Covariates | None,
) -> list[dict[str, Any]]:
    controls = [] if fit.control is None else [fit.control]
    predicted = np.concatenate([fit.predicted, *controls], 1)
    B = len(positions)
    balanced = np.full(B, np.nan)
    if label.is_classification:
        right = predicted == label.test[:, None]
        score, low, high = accuracy(right, label.test_valid, counts)
        balanced = balanced_accuracy(fit.predicted, label.test, label.test_valid)
        majority = np.bincount(label.train[label.valid], minlength=label.n_classes).argmax()
        baseline = float((label.test[label.test_valid] == majority).mean())
    else:
        score, low, high = r2(predicted, label.test, label.test_valid, counts)
        mean = np.zeros((len(label.test), 1))  # labels are standardised by training images
        baseline = float(r2(mean, label.test, label.test_valid, counts[:0])[0][0])
    control = score[B:] if controls else np.full(B, np.nan)
    beyond = (np.full(B, np.nan),) * 3
    needs_skill_beyond = (
        test_covariates is not None and not label.is_classification and label.target.name not in test_covariates.names
    )
    if test_covariates is not None and needs_skill_beyond:
        beyond = skill_beyond(fit.predicted, label.test, label.test_valid, test_covariates.values)
    values = {
        "penalty": fit.penalty,
        "score": score[:B],
        "ci_low": low[:B],
        "ci_high": high[:B],
        "balanced_score": balanced,
        "control": control,
        "selectivity": score[:B] - control,
        "skill_beyond": beyond[0],
        "beyond_low": beyond[1],
        "beyond_high": beyond[2],
    }
    shared = _shared(label, solver, config)
    return [
        {
            **shared,
            "position": positions[b],
            "baseline": baseline,
            "beyond": ", ".join(test_covariates.names) if test_covariates is not None and needs_skill_beyond else None,
            **{name: None if np.isnan(column[b]) else float(column[b]) for name, column in values.items()},
        }
        for b in range(B)
    ]
