"""Fit all targets on a block of positions, by the batched solvers or by scikit-learn, with one interface.

Shapes: B positions, n training images, m held-out images, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from orchestrator.config import ProbeConfig
from orchestrator.probes import logistic, reference
from orchestrator.probes.factor import Factor, factorise, standardise
from orchestrator.probes.labels import Labels
from orchestrator.probes.mlp import MlpSettings, fit_mlp
from orchestrator.probes.newton import absent_classes
from orchestrator.probes.ridge import fit_ridge
from orchestrator.probes.user import load_user_probe


@dataclass
class Fit:
    """One target on B positions: chosen penalty (B,), predictions (m, B) as codes or numbers, and those of the
    control."""

    penalty: np.ndarray
    predicted: np.ndarray
    control: np.ndarray | None


@dataclass
class Block:
    """Features of B positions: `train` (B, n, d) and `test` (B, m, d) float32 on the solver's device, `fold` (n,)."""

    train: Tensor
    test: Tensor
    fold: np.ndarray
    config: ProbeConfig

    @property
    def has_control(self) -> bool:
        return "shuffled" in self.config.controls

    @cached_property
    def factor(self) -> Factor:
        return factorise(self.train, self.test, self.config.standardise)

    @cached_property
    def standardised(self) -> tuple[Tensor, Tensor]:
        return standardise(self.train, self.test, self.config.standardise)[:2]

    def fold_on_device(self) -> Tensor:
        return torch.from_numpy(self.fold).to(self.train.device)


def mlp_settings(config: ProbeConfig) -> MlpSettings:
    """Architecture and training of the MLP, from the probe config."""
    return MlpSettings(
        config.mlp_width,
        config.mlp_depth,
        config.mlp_steps,
        config.mlp_learning_rate,
        config.mlp_batch_size,
        config.seed,
    )


def _stack(labels: list[Labels], control: bool) -> np.ndarray:
    """(n, T) training labels, followed by T shuffled ones when `control`."""
    columns = [label.train for label in labels] + [label.shuffled for label in labels] * control
    return np.stack(columns, 1)


def _groups(labels: Iterable[Labels], key: Callable[[Labels], object]) -> list[list[Labels]]:
    groups: dict[object, list[Labels]] = {}
    for label in labels:
        groups.setdefault(key(label), []).append(label)
    return list(groups.values())


# ---------------------------------------------------------------- batched


def batched_ridge(block: Block, labels: list[Labels]) -> dict[str, Fit]:
    """Targets without missing values share one factorisation; so do targets with the same missing values."""
    fits = {}
    for group in _groups(labels, lambda label: label.valid.tobytes()):
        valid = group[0].valid
        rows = torch.from_numpy(np.flatnonzero(valid)).to(block.train.device)
        factor = block.factor if valid.all() else factorise(block.train[:, rows], block.test, block.config.standardise)
        Y = torch.from_numpy(_stack(group, block.has_control)[valid].T.copy()).to(block.train)
        fit = fit_ridge(factor, Y, Y.new_tensor(block.config.penalties) * Y.shape[1])
        penalty = np.array(block.config.penalties)[fit.penalty.cpu().numpy()]
        predicted = fit.prediction.double().cpu().numpy()
        for t, label in enumerate(group):
            control = predicted[:, len(group) + t].T if block.has_control else None
            fits[label.target.name] = Fit(penalty[:, t], predicted[:, t].T, control)
    return fits


def batched_logistic(block: Block, labels: list[Labels]) -> dict[str, Fit]:
    """Targets (on a CPU those of equal class count), with folds and controls, form one batch of problems on all
    positions."""
    fits = {}
    device, factor = block.train.device, block.factor
    together = logistic.TOGETHER[device.type]
    for group in _groups(labels, lambda label: together or label.n_classes):
        n_classes = torch.tensor([label.n_classes for label in group] * (1 + block.has_control), device=device)
        codes = torch.from_numpy(_stack(group, block.has_control).T.copy()).to(device)
        used = np.stack([label.valid for label in group] * (1 + block.has_control))
        valid = torch.from_numpy(used).to(block.train)
        penalties = block.config.penalties
        fit = logistic.fit_logistic(factor.Q, factor.s, codes, valid, block.fold_on_device(), penalties, n_classes)
        weights = fit.rotated.flatten(1, 2)  # B (C T) k1
        logits = (factor.predict(weights[:, :, :-1]) + weights[:, :, -1:]).unflatten(1, fit.rotated.shape[1:3])
        logits = logits.masked_fill(absent_classes(logits.shape[1], n_classes)[:, :, None], -torch.inf)
        penalty = np.array(penalties)[fit.penalty.cpu().numpy()]
        predicted = logits.argmax(1).permute(1, 2, 0).cpu().numpy()  # T m B
        for t, label in enumerate(group):
            control = predicted[len(group) + t] if block.has_control else None
            fits[label.target.name] = Fit(penalty[:, t], predicted[t], control)
    return fits


def batched_mlp(block: Block, labels: list[Labels]) -> dict[str, Fit]:
    """Classification targets form one batch of networks, regression targets another."""
    fits = {}
    X, X_test = block.standardised
    for group in _groups(labels, lambda label: label.is_classification):
        Y = torch.from_numpy(_stack(group, block.has_control).T.copy()).to(X.device)
        valid = torch.from_numpy(np.stack([label.valid for label in group] * (1 + block.has_control))).to(X)
        n_classes = None
        if group[0].is_classification:
            n_classes = torch.tensor([label.n_classes for label in group] * (1 + block.has_control), device=X.device)
        else:
            Y = Y.to(X.dtype)
        penalties = block.config.mlp_penalties
        settings = mlp_settings(block.config)
        fit = fit_mlp(X, X_test, Y, valid, block.fold_on_device(), penalties, n_classes, settings)
        penalty = np.array(penalties)[fit.penalty.cpu().numpy()]
        output = fit.output[..., 0].double() if n_classes is None else fit.output.argmax(3)
        predicted = output.permute(1, 2, 0).cpu().numpy()  # T m B
        for t, label in enumerate(group):
            control = predicted[len(group) + t] if block.has_control else None
            fits[label.target.name] = Fit(penalty[:, t], predicted[t], control)
    return fits


# ---------------------------------------------------------------- scikit-learn


def sklearn_ridge(block: Block, labels: list[Labels]) -> dict[str, Fit]:
    """One `RidgeCV` per position for all targets with the same missing values."""
    fits = {}
    for group in _groups(labels, lambda label: label.valid.tobytes()):
        valid, Y = group[0].valid, _stack(group, block.has_control)
        results = []
        for train, test in zip(block.train.cpu().double(), block.test.cpu().double(), strict=True):
            rows = torch.from_numpy(np.flatnonzero(valid))
            Z, Z_test, _, _ = standardise(train[None, rows], test[None], block.config.standardise)
            results.append(reference.ridge(Z[0].numpy(), Z_test[0].numpy(), Y[valid], block.config.penalties)[:2])
        for t, label in enumerate(group):
            penalty = np.array([block.config.penalties[chosen[t]] for chosen, _ in results])
            control = np.stack([p[:, len(group) + t] for _, p in results], 1) if block.has_control else None
            fits[label.target.name] = Fit(penalty, np.stack([p[:, t] for _, p in results], 1), control)
    return fits


def sklearn_logistic(block: Block, labels: list[Labels]) -> dict[str, Fit]:
    """One warm-started path of `LogisticRegression` per position, target and fold."""

    def fit(
        Z: np.ndarray, Z_test: np.ndarray, y: np.ndarray, fold: np.ndarray, label: Labels
    ) -> tuple[int, np.ndarray]:
        best, proba = reference.logistic(Z, Z_test, y, fold, block.config.penalties, label.n_classes)
        return best, proba.argmax(1)

    return _one_by_one(block, labels, block.config.penalties, fit)


def sklearn_mlp(block: Block, labels: list[Labels]) -> dict[str, Fit]:
    """One `MLPClassifier` or `MLPRegressor` per position, target and penalty."""
    settings, penalties = mlp_settings(block.config), block.config.mlp_penalties

    def fit(
        Z: np.ndarray, Z_test: np.ndarray, y: np.ndarray, fold: np.ndarray, label: Labels
    ) -> tuple[int, np.ndarray]:
        n_classes = label.n_classes if label.is_classification else None
        best, output = reference.mlp(Z, Z_test, y, fold, penalties, n_classes, settings)
        return best, output.argmax(1) if label.is_classification else output[:, 0]

    return _one_by_one(block, labels, penalties, fit)


def _one_by_one(block: Block, labels: list[Labels], penalties: tuple[float, ...], fit: Callable) -> dict[str, Fit]:
    X, X_test = (part.cpu().numpy() for part in block.standardised)
    fits = {}
    for label in labels:
        valid = label.valid
        runs = [
            [fit(Z[valid], Z_test, y[valid], block.fold[valid], label) for Z, Z_test in zip(X, X_test, strict=True)]
            for y in ([label.train, label.shuffled] if block.has_control else [label.train])
        ]
        penalty = np.array([penalties[best] for best, _ in runs[0]])
        predicted = [np.stack([p for _, p in run], 1) for run in runs]
        fits[label.target.name] = Fit(penalty, predicted[0], predicted[1] if block.has_control else None)
    return fits


def user_solver(name: str) -> Callable[[Block, list[Labels]], dict[str, Fit]]:
    """A probe of another package as a solver: one estimator per position, target, fold and penalty."""
    probe = load_user_probe(name)

    def solve(block: Block, labels: list[Labels]) -> dict[str, Fit]:
        penalties = block.config.penalties

        def fit(
            Z: np.ndarray, Z_test: np.ndarray, y: np.ndarray, fold: np.ndarray, label: Labels
        ) -> tuple[int, np.ndarray]:
            return reference.estimator(probe.make, label.target.task, Z, Z_test, y, fold, penalties)

        return _one_by_one(block, labels, penalties, fit)

    return solve


def find_solver(engine: str, name: str) -> Callable[[Block, list[Labels]], dict[str, Fit]]:
    """The function that fits probes of kind `name`; `engine` chooses between the built-in ones."""
    return SOLVERS.get((engine, name)) or user_solver(name)


def tasks_of(name: str) -> tuple[str, ...]:
    """Tasks of probes of kind `name`: `classification`, `regression` or both."""
    return TASKS.get(name) or load_user_probe(name).tasks


SOLVERS: dict[tuple[str, str], Callable[[Block, list[Labels]], dict[str, Fit]]] = {
    ("batched", "ridge"): batched_ridge,
    ("batched", "logistic"): batched_logistic,
    ("batched", "mlp"): batched_mlp,
    ("sklearn", "ridge"): sklearn_ridge,
    ("sklearn", "logistic"): sklearn_logistic,
    ("sklearn", "mlp"): sklearn_mlp,
}
TASKS = {"ridge": ("regression",), "logistic": ("classification",), "mlp": ("classification", "regression")}
