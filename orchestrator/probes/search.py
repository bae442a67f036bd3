"""Evaluation of hyperparameters of the probes, and successive halving over samples; without Ray.

A search uses training images only, split again into fitting and validation images. Settings are scored by skill,
(score - baseline) / (1 - baseline), which puts accuracy and R2 on one scale: 0 is the majority class or the training
mean, 1 is perfect. The study's held-out images score only the best sample and the study's own settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from orchestrator.config import ProbeConfig, SearchAxis
from orchestrator.config.probe_search import configured
from orchestrator.config.search_space import extremes
from orchestrator.errors import ConfigError, did_you_mean
from orchestrator.probes.features import Features
from orchestrator.probes.grid import fit_grid
from orchestrator.probes.probe_stage import Work
from orchestrator.probes.split import Split
from orchestrator.probes.targets import Target

LEVELS = (0.25, 0.5, 1.0)
"""Shares of an MLP's steps at which samples are compared; each is a separate training run with its own decay."""
N_LAYERS = 3
SINGLE_TOKENS = 4
MIN_SKILL = -1.0


@dataclass(frozen=True)
class SearchData:
    """Features of a search, (images, positions, width) float16 per layer; stored once and shared by workers."""

    config: ProbeConfig
    targets: list[Target]
    split: Split
    tap: str
    positions: list[str]
    layers: dict[int, np.ndarray]


def load_search_data(work: Work) -> SearchData:
    """A few layers evenly spaced over the searched tap, with mean and single-token positions."""
    tap, kept = searched(work)
    layers = [layer for t, layer, _ in work.blocks if t == tap]
    spread = np.unique(np.linspace(0, len(layers) - 1, min(N_LAYERS, len(layers)) + 1).round().astype(int))[1:]
    chosen = [layers[i] for i in spread] or layers
    features = Features(work.capture)
    arrays = {layer: features.slice(tap, layer, kept) for layer in chosen}
    return SearchData(work.config, work.targets, work.split, tap, kept, arrays)


def searched(work: Work) -> tuple[str, list[str]]:
    """The tap of the search (the decoder if captured), and its positions."""
    taps = dict.fromkeys(tap for tap, _, _ in work.blocks if tap != "pixels")
    tap = "decoder" if "decoder" in taps else next(iter(taps))
    positions = next(list(names) for t, _, names in work.blocks if t == tap)
    return tap, [p for group in groups(positions).values() for p in group]


def check_space(work: Work, space: Mapping[str, SearchAxis]) -> None:
    """Reject a space with settings that no trial can use, before any fit.

    Raises:
        ConfigError: naming the setting and the value.
    """
    for name, axis in space.items():
        for value in extremes(axis):
            configured(work.config, {name: value})
            if name == "positions" and value not in (available := groups(searched(work)[1])):
                raise ConfigError(
                    f"search: probe.positions: nothing was captured at {value!r}.{did_you_mean(str(value), available)}"
                )


def groups(positions: list[str]) -> dict[str, list[str]]:
    """Position kind -> names, for the captured kinds; of single tokens, a few evenly spaced ones."""
    means: tuple[str, ...] = ("vision_mean", "text_mean", "last")
    names_of = {kind: [kind] for kind in means if kind in positions}
    for kind in ("vision", "text"):
        single = [p for p in positions if p.startswith(f"{kind}_") and p.rsplit("_", 1)[1].isdigit()]
        if single:
            spread = np.linspace(0, len(single) - 1, min(SINGLE_TOKENS, len(single))).round().astype(int)
            names_of[f"{kind}_single"] = [single[i] for i in np.unique(spread)]
    return names_of


def validation_split(split: Split) -> Split:
    """Inner fold 0 of the training images as held-out images; the others are divided into as many new folds."""
    inside = split.fold == 0
    train = split.train[~inside]
    return Split(train, split.train[inside], np.arange(len(train)) % split.n_folds)


def skill(table: pl.DataFrame) -> float:
    """Mean skill over a table of probes, each clipped below at `MIN_SKILL`; NaN if no probe could be fitted."""
    headroom = 1 - pl.col("baseline")
    scored = table.filter(pl.col("score").is_not_null() & (pl.col("baseline") < 1))
    values = scored.select(((pl.col("score") - pl.col("baseline")) / headroom).clip(MIN_SKILL)).to_series()
    return float(values.mean()) if len(values) else float("nan")  # type: ignore[arg-type]


def judge(data: SearchData, settings: Mapping[str, Any], *, held_out: bool, steps: int | None = None) -> float:
    """Skill of settings on validation images; with `held_out`, refitted on all training images, on held-out images."""
    config = configured(data.config, settings)
    if steps is not None:
        config = config.model_copy(update={"mlp_steps": steps})
    names = data.positions
    if "positions" in settings:
        names = groups(data.positions)[settings["positions"]]
    index = [data.positions.index(name) for name in names]
    split = data.split if held_out else validation_split(data.split)
    tables = [
        fit_grid(array[:, index], data.targets, config, split, tap=data.tap, layer=layer, positions=names)
        for layer, array in data.layers.items()
    ]
    return skill(pl.concat(tables))


@dataclass(frozen=True)
class Trial:
    """Sampled settings, the steps of their longest scored training run, and its skill on validation images."""

    settings: dict[str, Any]
    steps: int
    skill: float


@dataclass(frozen=True)
class Evaluation:
    """Settings to evaluate: number of training steps of a net (all when None), and images to score on."""

    settings: dict[str, Any]
    held_out: bool = False
    steps: int | None = None


def evaluate(data: SearchData, evaluation: Evaluation) -> float:
    """`judge` with the settings of one `Evaluation`."""
    return judge(data, evaluation.settings, held_out=evaluation.held_out, steps=evaluation.steps)


def halve(
    data: SearchData, samples: Sequence[dict[str, Any]], judge_all: Callable[[list[Evaluation]], list[float]]
) -> list[Trial]:
    """Successive halving in synchronous rounds: the result does not depend on the order or speed of evaluation.

    Nets are trained for increasing shares of their steps (`LEVELS`), each time from the start with its own
    learning-rate decay; the better half, rounded up, is kept; ties favour the earlier sample. Other probes are fitted
    once, completely.
    """
    total = data.config.mlp_steps
    trials: dict[int, Trial] = {}
    nets = [i for i, settings in enumerate(samples) if "mlp" in configured(data.config, settings).solvers]
    once = [i for i in range(len(samples)) if i not in set(nets)]
    for level in LEVELS:
        steps = max(1, round(level * total))
        evaluations = [(i, Evaluation(samples[i], steps=steps)) for i in nets]
        if level == LEVELS[0]:
            evaluations += [(i, Evaluation(samples[i])) for i in once]
        for (i, evaluation), skill in zip(
            evaluations, judge_all([evaluation for _, evaluation in evaluations]), strict=True
        ):
            trials[i] = Trial(samples[i], evaluation.steps or total, skill)
        if level != LEVELS[-1]:
            order = sorted(nets, key=lambda i: (-np.nan_to_num(trials[i].skill, nan=-np.inf), i))
            nets = sorted(order[: -(-len(order) // 2)])
    return [trials[i] for i in range(len(samples))]
