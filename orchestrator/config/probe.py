"""Settings of the probes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.config.section import Count, Int, PositiveFloat, PositiveInt, Section


class ProbeConfig(Section):
    """Probes on the captured features, and their evaluation."""

    solvers: tuple[str, ...] = ("ridge", "logistic")
    """`ridge` for numbers, `logistic` for categories, `mlp` for both, or probes of installed packages by name."""
    engine: Literal["batched", "sklearn"] = "batched"
    """`sklearn` is the reference implementation; `batched` is faster with equal results."""
    attributes: tuple[str, ...] | None = None
    """Attributes to predict; all of the source when absent."""
    taps: tuple[str, ...] | None = None
    """Taps whose features are probed; all captured ones when absent."""
    layers: tuple[Int, ...] | None = None
    """Tap points; all captured ones when absent."""
    positions: tuple[str, ...] | None = None
    """Kept positions (`vision_mean`, `vision_00`, `vision_object`, `vision_background`, `text_mean`, `text_00`, `last`,
    `before`); all when absent."""
    penalties: tuple[PositiveFloat, ...] = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)
    """L2 penalties of `ridge` and `logistic`, relative to n; chosen on training images only."""
    standardise: bool = True
    """Divide each feature by its standard deviation over training images (the mean is always subtracted)."""
    n_folds: Annotated[int, Field(strict=True, ge=2, le=20)] = 5
    """Inner folds for the choice of the penalty (`ridge` uses exact leave-one-out, at no cost)."""
    test_fraction: Annotated[float, Field(strict=True, gt=0.0, lt=1.0)] = 0.3
    """Share of images held out for the score."""
    n_bootstrap: Count = 200
    """Bootstrap resamples of held-out images for the interval."""
    beyond: tuple[str, ...] = ("n_objects",)
    """Numeric attributes held fixed in `skill_beyond`; those that the source lacks are skipped."""
    controls: tuple[Literal["shuffled", "pixels"], ...] = ("shuffled", "pixels")
    """Shuffled-label control and a probe on downsampled pixels."""
    mlp_width: PositiveInt = 64
    """Width of each of the MLP's hidden layers."""
    mlp_depth: Annotated[int, Field(strict=True, ge=1, le=4)] = 2
    """Hidden layers of the MLP (the paper: two)."""
    mlp_steps: PositiveInt = 150
    """Optimiser steps of the MLP."""
    mlp_learning_rate: PositiveFloat = 6e-3
    """Adam learning rate of the MLP."""
    mlp_batch_size: PositiveInt = 200
    """Images per optimiser step of the MLP."""
    mlp_penalties: tuple[PositiveFloat, ...] = (1e-2, 1e-1)
    """L2 penalties of the MLP, chosen on one inner fold; a single one is used without a choice."""
    min_class_count: PositiveInt = 8
    """Classes with fewer images are excluded; the number of excluded images is reported."""
    seed: Count = 0
    """Seed of splits, shuffles and initial weights."""
    search_trials: Count = 0
    """Samples of the hyperparameter search; 0 for none. The space is the study's `search` section."""
