"""Figures of docs/metrics.md: for each metric, a set of tokens with a low value and one with a high value."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orchestrator.compression.metrics import compute
from orchestrator.compression.registry import METRICS

N_TOKENS, WIDTH = 24, 24
_BLUE, _ORANGE = "#0072B2", "#D55E00"
"""Colour-blind safe (Okabe and Ito 2008): blue for less, orange for more compressed."""


def token_sets(family: str) -> dict[str, Float[np.ndarray, "N D"]]:
    """Spread tokens, and tokens that are compressed according to a family of metrics."""
    rng = np.random.default_rng(3)
    spread = rng.normal(size=(N_TOKENS, WIDTH))
    spread /= np.linalg.norm(spread, axis=1, keepdims=True)
    if family == "norm":
        norms = np.where(np.isin(np.arange(N_TOKENS), (4, 11, 17)), 5.0, 0.6)
        return {"spread": spread * rng.uniform(0.9, 1.1, (N_TOKENS, 1)), "concentrated": spread * norms[:, None]}
    shared = rng.normal(size=WIDTH)
    shared /= np.linalg.norm(shared)
    return {"spread": spread, "collapsed": 0.25 * spread + shared}


def value(name: str, tokens: Float[np.ndarray, "N D"]) -> float:
    """The metric of one set of tokens."""
    hidden = torch.from_numpy(tokens).float()[None]
    return float(compute(hidden, torch.ones(1, len(tokens), dtype=torch.bool), [name])[name])


def draw(name: str, path: Path) -> None:
    """Draw the quantity that metric `name` depends on, for a low and a high value; each value is in its title."""
    metric = METRICS[name]
    sets = sorted(token_sets(metric.family).values(), key=lambda tokens: value(name, tokens))
    with matplotlib.rc_context({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(5.6, 2.1), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=metric.family != "similarity")
        for axes, tokens, word in ((left, sets[0], "low"), (right, sets[1], "high")):
            compressed = (word == "high") == (metric.direction > 0)
            _panel(axes, metric.family, tokens, _ORANGE if compressed else _BLUE)
            comparison = "more" if compressed else "less"
            axes.set_title(f"{word}: {value(name, tokens):.3g} ({comparison} compressed)", fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, metadata={"Software": None})


def _panel(axes: Axes, family: str, tokens: Float[np.ndarray, "N D"], colour: str) -> None:
    if family == "norm":
        axes.bar(np.arange(1, len(tokens) + 1), np.linalg.norm(tokens, axis=1), color=colour)
        axes.set(xlabel="token", ylabel="norm")
    elif family == "spectrum":
        sigma = np.linalg.svd(tokens, compute_uv=False)
        axes.bar(np.arange(1, len(sigma) + 1), sigma, color=colour)
        axes.set(xlabel="direction", ylabel="singular value")
    else:
        units = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
        cosines = (units @ units.T)[np.triu_indices(len(units), 1)]
        axes.hist(cosines, bins=np.linspace(-1, 1, 41).tolist(), color=colour)
        axes.set(xlabel="cosine of two tokens", ylabel="pairs", xlim=(-1, 1))
