"""Design of scenes: crossed factor levels without impossible cells, balanced sequentially.

The cell of scene i is chosen so that, over all scenes so far, every level of a factor and every pair of levels of two
factors are balanced (kernel herding, Welling 2009: each choice minimises the mean of the contrasts and of their
products). Factors are therefore uncorrelated by design as far as impossible cells allow; the achieved correlations are
measured (`data.associations`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

from orchestrator.config import SceneDesign, ScenesConfig
from orchestrator.data.packing import EVEN, MAX_PACKED, packed_share
from orchestrator.data.scenes import GAP_PX, MIN_SIZE_PX, colours_of, shapes_of
from orchestrator.errors import ConfigError

FACTORS = tuple(SceneDesign.model_fields)
"""Factors in the order of a cell's levels; each is also the name of the measured attribute."""
DERIVED = ("coverage", "clutter", "nearest_distance", "dominant_colour", "dominant_shape")
"""Derived attributes of designed scenes: functions of several factors and of chance."""
MAX_CELLS = 1_000_000
_BLOCK = 500
"""Block size: number of scenes that are balanced together."""
_CANDIDATES = 256
_LINEAR_WEIGHT = 2.0
"""Weight of main effects and of products of two linear contrasts (the correlations) in the balance."""

Cell = dict[str, object]
"""Factor -> its level in one scene."""


@dataclass(frozen=True)
class Impossible:
    """An impossible combination of levels, and the reason."""

    levels: dict[str, object]
    reason: str
    n_cells: int
    """Number of cells of the whole design with these levels."""


@dataclass(frozen=True)
class DesignSummary:
    """The varied factors, and the impossible cells."""

    factors: dict[str, tuple[object, ...]]
    n_cells: int
    n_possible: int
    impossible: tuple[Impossible, ...]


def spread_px(level: float, config: ScenesConfig) -> float:
    """A level of `spatial_spread` in px."""
    return level * math.hypot(config.width, config.height) / 2


def object_sizes(mean: float, spread: float, n: int, config: ScenesConfig) -> Float[np.ndarray, " n"]:
    """Diameters, px, ascending, with exactly this mean and standard deviation (both shares of the shorter side)."""
    place = np.arange(n) - (n - 1) / 2
    return (mean + spread * place / place.std()) * min(config.width, config.height)


def occluded_pairs(n: int) -> int:
    """Pairs of an occluded and an occluding object in a scene with occlusion: half of the objects are occluded."""
    return n // 2


def _too_many_colours(_: ScenesConfig, n: int, colours: int) -> str | None:
    return f"{n} objects have fewer than {colours} colours" if colours > n else None


def _too_many_shapes(_: ScenesConfig, n: int, shapes: int) -> str | None:
    return f"{n} objects have fewer than {shapes} shapes" if shapes > n else None


def _too_small(config: ScenesConfig, n: int, mean: float, spread: float) -> str | None:
    least = object_sizes(mean, spread, n, config)[0]
    return f"the smallest object would have {least:.1f} of {MIN_SIZE_PX:g} px" if least < MIN_SIZE_PX else None


def _too_dense(config: ScenesConfig, n: int, mean: float, spread: float, layout: float, occlusion: float) -> str | None:
    sizes = object_sizes(mean, spread, n, config)
    if sizes[0] < MIN_SIZE_PX:
        return None  # has its own rule
    radii = sizes / 2
    if occlusion:  # the smaller half covers the larger; a pair needs at most a disc around both
        pairs = occluded_pairs(n)
        radii = np.concatenate([radii[:pairs] + radii[n - pairs :], radii[pairs : n - pairs]])
    room = spread_px(layout, config)
    share = packed_share(radii, room, config.width, config.height, GAP_PX)
    if share > MAX_PACKED:
        return f"objects would fill {100 * share:.0f} % of their room; at most {100 * MAX_PACKED:.0f} % can be placed"
    farthest = EVEN * math.hypot(config.width - 2 * radii.max(), config.height - 2 * radii.max()) / math.sqrt(2)
    if room > 1.1 * farthest:
        return f"objects of this size can be {farthest / spread_px(1.0, config):.2f} apart on this canvas"
    return None


_RULES: tuple[tuple[tuple[str, ...], Callable[..., str | None]], ...] = (
    (("n_objects", "n_colours"), _too_many_colours),
    (("n_objects", "n_shapes"), _too_many_shapes),
    (("n_objects", "size_mean", "size_spread"), _too_small),
    (("n_objects", "size_mean", "size_spread", "spatial_spread", "occlusion"), _too_dense),
)


def check_design(config: ScenesConfig) -> DesignSummary:
    """The design's factors, cells and impossible cells.

    Raises ConfigError for more colours or shapes than exist, a level that no scene can have, or too
    many cells.
    """
    levels = _levels(config)
    for key, available in (("n_colours", colours_of(config)), ("n_shapes", shapes_of(config))):
        if max(levels[key]) > len(available):  # type: ignore[type-var, operator]
            raise ConfigError(f"data.design.{key}: found {max(levels[key])}, but scenes have {len(available)} of them")  # type: ignore[type-var]
    n_cells = math.prod(map(len, levels.values()))
    if n_cells > MAX_CELLS:
        raise ConfigError(f"data.design: {n_cells} cells; expected at most {MAX_CELLS}: leave factors or levels out")
    possible = _possible(config)
    for axis, (name, values) in enumerate(levels.items()):
        other_axes = tuple(k for k in range(len(levels)) if k != axis)
        for value, any_cell in zip(values, np.atleast_1d(possible.any(axis=other_axes)), strict=True):
            if not any_cell:
                reasons = sorted({reason for rule, reason in _refusals(config) if rule.get(name) == value})
                raise ConfigError(
                    f"data.design.{name}: no scene can have {value!r} with any level of the other factors:"
                    f" {'; '.join(reasons[:3])}"
                )
    impossible = tuple(
        Impossible(rule, reason, n_cells // math.prod(len(levels[name]) for name in rule))
        for rule, reason in _refusals(config)
    )
    varied = {name: values for name, values in levels.items() if len(values) > 1}
    return DesignSummary(varied, n_cells, int(possible.sum()), impossible)


def cell_of(config: ScenesConfig, index: int) -> Cell:
    """Level of every factor in scene `index`; it does not depend on the number of images."""
    block, row = divmod(index, _BLOCK)
    levels = _levels(config)
    chosen = _cells(config.model_copy(update={"n_images": 1, "max_rejected_fraction": 0.0}), block)[row]
    return {name: values[k] for (name, values), k in zip(levels.items(), chosen.tolist(), strict=True)}


def _levels(config: ScenesConfig) -> dict[str, tuple[object, ...]]:
    assert config.design is not None
    return {name: getattr(config.design, name) for name in FACTORS}


@lru_cache(maxsize=8)
def _refusals(config: ScenesConfig) -> tuple[tuple[dict[str, object], str], ...]:
    """(impossible combination of levels, reason) of every rule."""
    return tuple(_refused(config))


def _refused(config: ScenesConfig) -> Iterator[tuple[dict[str, object], str]]:
    levels = _levels(config)
    for names, rule in _RULES:
        for values in itertools.product(*(levels[name] for name in names)):
            if (reason := rule(config, *values)) is not None:
                yield dict(zip(names, values, strict=True)), reason


@lru_cache(maxsize=8)
def _possible(config: ScenesConfig) -> np.ndarray:
    """Boolean array with one axis per factor and one entry per level: whether the combination is possible."""
    levels = _levels(config)
    possible = np.ones([len(values) for values in levels.values()], dtype=bool)
    for rule, _ in _refusals(config):
        place = tuple(values.index(rule[name]) if name in rule else slice(None) for name, values in levels.items())
        possible[place] = False
    return possible


@lru_cache(maxsize=8)
def _cells(config: ScenesConfig, block: int) -> Int[np.ndarray, "rows factors"]:
    """Level indices of the scenes of one block."""
    rng = np.random.default_rng([config.seed, 0xDE51, block])
    possible = _possible(config)
    codes = _contrasts(possible.shape)
    open_cells = np.flatnonzero(possible)
    shape = possible.shape
    rows = np.empty((_BLOCK, len(shape)), dtype=np.int64)
    total: np.ndarray | float = 0.0
    for row in range(_BLOCK):
        tried = np.stack(np.unravel_index(rng.choice(open_cells, _CANDIDATES), shape), axis=1)
        features = _features(codes, tried)
        best = int((((total + features) ** 2).sum(1)).argmin())
        rows[row] = tried[best]
        total = total + features[best]
    return rows


def _contrasts(shape: tuple[int, ...]) -> list[Float[np.ndarray, "L C"]]:
    """Orthonormal polynomial contrasts over each factor's levels, the linear one first."""
    codes = []
    for n in shape:
        powers = np.vander(np.arange(n) - (n - 1) / 2, n, increasing=True)
        codes.append(np.linalg.qr(powers)[0][:, 1:] * math.sqrt(n))
    return codes


def _features(codes: list[np.ndarray], cells: Int[np.ndarray, "K factors"]) -> Float[np.ndarray, "K P"]:
    """Contrasts of each cell and their products over pairs of factors, weighted."""
    main_effects = [code[cells[:, k]] for k, code in enumerate(codes) if code.shape[1]]
    parts = [_LINEAR_WEIGHT * part for part in main_effects]
    for left, right in itertools.combinations(main_effects, 2):
        product = left[:, :, None] * right[:, None, :]
        product[:, 0, 0] *= _LINEAR_WEIGHT
        parts.append(product.reshape(len(cells), -1))
    return np.concatenate(parts, axis=1) if parts else np.zeros((len(cells), 1))
