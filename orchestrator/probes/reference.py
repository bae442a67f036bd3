"""The same probes by scikit-learn, with its fastest methods: the reference for `batched`, and a selectable engine.

`RidgeCV` shares one SVD among all targets and penalties (exact leave-one-out); logistic regression fits the
penalties in descending order with warm starts, as `LogisticRegressionCV` does; MLPs take the same number of Adam steps.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import log_loss
from sklearn.neural_network import MLPClassifier, MLPRegressor

from orchestrator.probes.mlp import MlpSettings


def ridge(
    Z: Float[np.ndarray, "n d"],
    Z_test: Float[np.ndarray, "m d"],
    Y: Float[np.ndarray, "n T"],
    penalties: tuple[float, ...],
) -> tuple[Int[np.ndarray, " T"], Float[np.ndarray, "m T"], Float[np.ndarray, "T d"]]:
    """Index of the chosen penalty (relative to n), predictions and coefficients of T targets."""
    alphas = np.array(penalties) * len(Z)
    model = RidgeCV(alphas, alpha_per_target=True).fit(Z, Y)
    chosen = np.abs(np.log(np.atleast_1d(model.alpha_)[:, None] / alphas)).argmin(1)
    return chosen, model.predict(Z_test).reshape(len(Z_test), -1), np.atleast_2d(model.coef_)


def logistic(
    Z: Float[np.ndarray, "n d"],
    Z_test: Float[np.ndarray, "m d"],
    codes: Int[np.ndarray, " n"],
    fold: Int[np.ndarray, " n"],
    penalties: tuple[float, ...],
    n_classes: int,
    tolerance: float = 1e-4,
) -> tuple[int, Float[np.ndarray, "m C"]]:
    """Index of the penalty chosen by K-fold cross-entropy, and held-out probabilities."""
    order = sorted(range(len(penalties)), key=lambda a: -penalties[a])
    loss = np.zeros(len(penalties))
    for k in np.unique(fold) if len(penalties) > 1 else ():
        train, held_out = fold != k, fold == k
        model = LogisticRegression(warm_start=True, max_iter=1000, tol=tolerance)
        for a in order:
            model.C = 1.0 / (penalties[a] * len(Z))
            proba = _probabilities(model.fit(Z[train], codes[train]), Z[held_out], n_classes)
            loss[a] += log_loss(codes[held_out], proba, labels=np.arange(n_classes), normalize=False)
    best = int(loss.argmin())
    model = LogisticRegression(C=1.0 / (penalties[best] * len(Z)), max_iter=1000, tol=tolerance).fit(Z, codes)
    return best, _probabilities(model, Z_test, n_classes)


def _probabilities(model: LogisticRegression | MLPClassifier, Z: np.ndarray, n_classes: int) -> np.ndarray:
    proba = np.full((len(Z), n_classes), 1e-12)
    proba[:, model.classes_] = model.predict_proba(Z)
    return proba / proba.sum(1, keepdims=True)


def mlp(
    Z: Float[np.ndarray, "n d"],
    Z_test: Float[np.ndarray, "m d"],
    y: np.ndarray,
    fold: Int[np.ndarray, " n"],
    penalties: tuple[float, ...],
    n_classes: int | None,
    settings: MlpSettings,
) -> tuple[int, Float[np.ndarray, "m O"]]:
    """Index of the penalty chosen on inner fold 0, and held-out probabilities (or one column of numbers)."""
    best = 0
    if len(penalties) > 1:
        train, held_out = fold != 0, fold == 0
        losses = []
        for lam in penalties:
            output = _fit_net(Z[train], y[train], lam, n_classes, settings, Z[held_out])
            truth = y[held_out]
            losses.append(
                np.square(output[:, 0] - truth).mean()
                if n_classes is None
                else log_loss(truth, output, labels=np.arange(n_classes))
            )
        best = int(np.argmin(losses))
    return best, _fit_net(Z, y, penalties[best], n_classes, settings, Z_test)


def estimator(
    make: Callable[[str, float], Any],
    task: str,
    Z: Float[np.ndarray, "n d"],
    Z_test: Float[np.ndarray, "m d"],
    y: np.ndarray,
    fold: Int[np.ndarray, " n"],
    penalties: tuple[float, ...],
) -> tuple[int, np.ndarray]:
    """Index of the penalty with the fewest errors (or least squared error) over K folds, and held-out predictions."""
    error = np.zeros(len(penalties))
    for k in np.unique(fold) if len(penalties) > 1 else ():
        train, held_out = fold != k, fold == k
        for a, penalty in enumerate(penalties):
            predicted = make(task, penalty).fit(Z[train], y[train]).predict(Z[held_out])
            wrong = predicted != y[held_out] if task == "classification" else np.square(predicted - y[held_out])
            error[a] += wrong.sum()
    best = int(error.argmin())
    return best, make(task, penalties[best]).fit(Z, y).predict(Z_test)


def _fit_net(
    Z: np.ndarray, y: np.ndarray, lam: float, n_classes: int | None, settings: MlpSettings, at: np.ndarray
) -> np.ndarray:
    batch = min(settings.batch_size, len(Z))
    steps_per_epoch = -(-len(Z) // batch)
    kind = MLPRegressor if n_classes is None else MLPClassifier
    model = kind(
        hidden_layer_sizes=(settings.width,) * settings.depth,
        alpha=lam * batch,  # scikit-learn divides its L2 term by the minibatch's size
        batch_size=batch,
        learning_rate_init=settings.learning_rate,
        max_iter=max(1, round(settings.steps / steps_per_epoch)),
        n_iter_no_change=settings.steps,
        random_state=settings.seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of steps is fixed by the setting
        model.fit(Z, y)
    return model.predict(at)[:, None] if n_classes is None else _probabilities(model, at, n_classes)
