"""Judging one setting of the probes: what a hyperparameter search tries, without the search.

A search sees training images only: they are split once more into fitting and validation images. Settings are judged
by skill, (score - baseline) / (1 - baseline), which puts accuracy and R2 on one scale: 0 is the majority class or the
training mean, 1 is perfect. The study's held-out images judge only the winner and the study's own settings.
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
"""Shares of an MLP's steps after which samples are compared; each a whole training run with its own decay."""
N_LAYERS = 3
SINGLE_TOKENS = 4
MIN_SKILL = -1.0


@dataclass(frozen=True)
class SearchData:
    """Features a search works on, (images, positions, width) float16 of each layer; put once where workers share it."""

    config: ProbeConfig
    targets: list[Target]
    split: Split
    tap: str
    positions: list[str]
    layers: dict[int, np.ndarray]


def load_search_data(work: Work) -> SearchData:
    """A few layers spread over the searched tap's depth, means and some tokens."""
    tap, kept = searched(work)
    layers = [layer for t, layer, _ in work.blocks if t == tap]
    spread = np.unique(np.linspace(0, len(layers) - 1, min(N_LAYERS, len(layers)) + 1).round().astype(int))[1:]
    chosen = [layers[i] for i in spread] or layers
    features = Features(work.capture)
    arrays = {layer: features.slice(tap, layer, kept) for layer in chosen}
    return SearchData(work.config, work.targets, work.split, tap, kept, arrays)


def searched(work: Work) -> tuple[str, list[str]]:
    """The tap a search works on, the decoder where it was captured, and its positions."""
    taps = dict.fromkeys(tap for tap, _, _ in work.blocks if tap != "pixels")
    tap = "decoder" if "decoder" in taps else next(iter(taps))
    positions = next(list(names) for t, _, names in work.blocks if t == tap)
    return tap, [p for group in groups(positions).values() for p in group]


def check_space(work: Work, space: Mapping[str, SearchAxis]) -> None:
    """Refuse a space that reaches settings no trial could use, before anything is fitted.

    Raises:
        ConfigError: naming the setting and the value.
    """
    for name, axis in space.items():
        for value in extremes(axis):
            configured(work.config, {name: value})
            if name == "positions" and value not in (there := groups(searched(work)[1])):
                raise ConfigError(
                    f"search: probe.positions: nothing was captured at {value!r}.{did_you_mean(str(value), there)}"
                )


def groups(positions: list[str]) -> dict[str, list[str]]:
    """Position kind -> names, for the kinds that are there; of single tokens, a few spread over all."""
    means: tuple[str, ...] = ("vision_mean", "text_mean", "last")
    found = {kind: [kind] for kind in means if kind in positions}
    for kind in ("vision", "text"):
        single = [p for p in positions if p.startswith(f"{kind}_") and p != f"{kind}_mean"]
        if single:
            spread = np.linspace(0, len(single) - 1, min(SINGLE_TOKENS, len(single))).round().astype(int)
            found[f"{kind}_single"] = [single[i] for i in np.unique(spread)]
    return found


def validation_split(split: Split) -> Split:
    """Inner fold 0 of the training images as held-out images; the others are dealt to as many folds anew."""
    inside = split.fold == 0
    train = split.train[~inside]
    return Split(train, split.train[inside], np.arange(len(train)) % split.n_folds)


def skill(table: pl.DataFrame) -> float:
    """Mean skill over a table of probes, each no worse than `MIN_SKILL`; NaN when no probe could be fitted."""
    room = 1 - pl.col("baseline")
    known = table.filter(pl.col("score").is_not_null() & (pl.col("baseline") < 1))
    values = known.select(((pl.col("score") - pl.col("baseline")) / room).clip(MIN_SKILL)).to_series()
    return float(values.mean()) if len(values) else float("nan")  # type: ignore[arg-type]


def judge(data: SearchData, settings: Mapping[str, Any], *, held_out: bool, steps: int | None = None) -> float:
    """Skill of settings: on validation images, or (`held_out`) refitted on all training images, on held-out ones."""
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
    """Settings tried, the steps of the longest training run judged, and the skill it reached on validation images."""

    settings: dict[str, Any]
    steps: int
    skill: float


@dataclass(frozen=True)
class Asked:
    """One setting to be judged: after how many steps of a net (all when None), and on which images."""

    settings: dict[str, Any]
    held_out: bool = False
    steps: int | None = None


def judge_asked(data: SearchData, asked: Asked) -> float:
    """`judge` of one `Asked`."""
    return judge(data, asked.settings, held_out=asked.held_out, steps=asked.steps)


def halve(
    data: SearchData, samples: Sequence[dict[str, Any]], judge_all: Callable[[list[Asked]], list[float]]
) -> list[Trial]:
    """Judge samples by successive halving, in rounds: the same outcome whatever judges them, and however fast.

    Nets are trained for ever larger shares of their steps (`LEVELS`), each time anew with its own learning-rate decay,
    and the better half, rounded up, goes on; ties go to the earlier sample. Everything else is fitted once, whole.
    """
    total = data.config.mlp_steps
    trials: dict[int, Trial] = {}
    nets = [i for i, settings in enumerate(samples) if "mlp" in configured(data.config, settings).solvers]
    once = [i for i in range(len(samples)) if i not in set(nets)]
    for level in LEVELS:
        steps = max(1, round(level * total))
        asked = [(i, Asked(samples[i], steps=steps)) for i in nets]
        if level == LEVELS[0]:
            asked += [(i, Asked(samples[i])) for i in once]
        for (i, one), skill in zip(asked, judge_all([one for _, one in asked]), strict=True):
            trials[i] = Trial(samples[i], one.steps or total, skill)
        if level != LEVELS[-1]:
            order = sorted(nets, key=lambda i: (-np.nan_to_num(trials[i].skill, nan=-np.inf), i))
            nets = sorted(order[: -(-len(order) // 2)])
    return [trials[i] for i in range(len(samples))]
