"""Correlation of compression with what is in the image: tables in, the table `correlations` out.

Statistics, each in rows of its own:

* `spearman`: Spearman's rho of a metric with a count or continuous attribute, ties by average ranks; beside it a test
  of monotonicity (`stats.shape`) with the turning point and the two branches: one rho over a hump says nothing.
* `conditional_spearman`: rank correlation within images of like covariates (`correlate.hold_fixed`: the number of
  objects), after flexible curves in them (`stats.conditional`), so that "diversity of categories" is not only "more
  objects"; over the images that have all of them.
* `epsilon_squared`: effect size of Kruskal-Wallis for a categorical attribute, whose codes have no order to rank; 0
  without an effect, whatever the number of categories.

p values: t with n - 2 degrees of freedom, never below 2 / n!, the least that the exact test of n ranks can give; the
conditional test's own; chi-square for Kruskal-Wallis. q: Benjamini-Hochberg over all rows of the same statistic: every
tap, layer, group, metric and attribute of the table is one family; shapes are another. Intervals: percentile bootstrap
over images, with ranks made anew in each resample (conditional: delta method); each holds for its own row. Where rows
share an image or group, one of each `cluster` is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import polars as pl
import scipy
from numpy.typing import NDArray

from orchestrator.cluster.placement import n_cores
from orchestrator.config import CorrelateConfig
from orchestrator.correlate.columns import KEYS, Columns, blocks, matrix, patterns, take, wide
from orchestrator.data.clusters import CLUSTER, independent_rows
from orchestrator.errors import DataError, did_you_mean
from orchestrator.stats import ranks
from orchestrator.stats.conditional import MIN_IMAGES as MIN_CONDITIONAL
from orchestrator.stats.conditional import conditional_association
from orchestrator.stats.multiplicity import benjamini_hochberg
from orchestrator.stats.resample import percentile_interval, resample_weights
from orchestrator.stats.shape import monotonicity

Part = TypeVar("Part")

SHAPE = ("shape_p", "turning_point", "rho_below", "rho_above")
MIN_IMAGES = 5
"""Fewer images with both values give a null: an interval would be noise."""
_CHUNK = 2**22
"""Resampled ranks held at once (32-bit): bounds memory at some tens of MB."""
_THREADS = 8
"""Threads at most: each holds some tens of MB."""
_COLUMNS = 64
"""Columns of metrics whose resampled ranks are held at once."""


def correlate(
    images: pl.DataFrame, layer_metrics: pl.DataFrame, kinds: Mapping[str, str], config: CorrelateConfig
) -> pl.DataFrame:
    """Relate every metric at every tap, layer and group to every attribute.

    Args:
        images: table `images`.
        layer_metrics: table `layer_metrics`; NaN or null where a metric is undefined.
        kinds: kind of each attribute: count, continuous or categorical.
        config: attributes, attributes held fixed, resamples, confidence, seed.

    Returns:
        Table `correlations` without nulls replaced: `rho` is null with a `reason` where there is nothing to relate.

    Raises:
        DataError: an attribute that the images do not have, or a categorical one to hold fixed.
    """
    chosen = tuple(name for name in kinds if name != CLUSTER) if config.attributes is None else config.attributes
    if not chosen:
        raise DataError("correlate.attributes: no attribute to correlate with; expected at least one")
    for name in chosen:
        if name not in kinds or name not in images.columns:
            raise DataError(f"correlate.attributes: images have no attribute {name!r}.{did_you_mean(name, kinds)}")
    images = independent_rows(images).sort("image_id")
    metrics = wide(layer_metrics, images["image_id"])
    fixed = _fixed(images, kinds, config.hold_fixed)
    ordered = [name for name in chosen if kinds[name] != "categorical"]
    attributes = Columns([(a,) for a in ordered], matrix(images, ordered))
    tables = [
        frame
        for rows, columns, kept in blocks(metrics, attributes)
        for frame in _ranked(take(metrics, rows, columns), take(attributes, rows, kept), fixed, rows, config)
    ]
    for name in chosen:
        if kinds[name] == "categorical":
            known = images[name].is_not_null().to_numpy()
            for rows, columns in patterns(metrics.values[known]):
                block = take(metrics, np.flatnonzero(known)[rows], columns)
                tables.append(_categorical(block, name, images[name].filter(known).gather(rows), config))
    return _with_q(pl.concat(tables)).sort(*KEYS, "metric", "attribute", "statistic")


def _fixed(images: pl.DataFrame, kinds: Mapping[str, str], names: Sequence[str]) -> Columns | None:
    """The attributes held fixed that the source has; None where it has none of them."""
    known = [name for name in names if name in kinds and name in images.columns]
    for name in known:
        if kinds[name] == "categorical":
            raise DataError(
                f"correlate.hold_fixed: {name!r} is categorical; expected a count or a continuous attribute"
            )
    return Columns([(name,) for name in known], matrix(images, known)) if known else None


def _ranked(
    x: Columns, y: Columns, fixed: Columns | None, rows: NDArray, config: CorrelateConfig
) -> list[pl.DataFrame]:
    """Rows `spearman` of each column of x with each of y; `conditional_spearman` where all of `fixed` is known too."""
    frames = [_spearman(x, y, config)]
    if fixed is None:
        return frames
    held = [name for (name,) in fixed.names]
    others = [k for k, (name,) in enumerate(y.names) if name not in held]
    covariates = fixed.values[rows]
    known = np.flatnonzero(np.isfinite(covariates).all(axis=1))
    if others:
        some_x, some_y = take(x, known, np.arange(len(x.names))), take(y, known, np.array(others))
        frames.append(_conditional(some_x, some_y, covariates[known], held, config))
    return frames


def _spearman(x: Columns, y: Columns, config: CorrelateConfig) -> pl.DataFrame:
    n = len(x.values)
    if n < MIN_IMAGES:
        return _frame(x, y, "spearman", n, reason=np.full((len(x.names), len(y.names)), f"only {n} images have both"))
    rho, spread = _statistics(x, y, config)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = 2 * scipy.stats.t.sf(np.abs(rho) * np.sqrt((n - 2) / (1 - rho**2)), n - 2)
    p = np.maximum(p, 2 * np.exp(-scipy.special.gammaln(n + 1)))
    shapes = [monotonicity(x.values, column) for column in y.values.T]
    shape = {
        name: np.stack([getattr(found, field) for found in shapes], axis=1)
        for name, field in (("shape_p", "p"), *((f, f) for f in ("turning_point", "rho_below", "rho_above")))
    }
    return _frame(x, y, "spearman", n, rho, p, spread, _constant(x, y), shape)


def _conditional(
    x: Columns, y: Columns, covariates: NDArray, held: Sequence[str], config: CorrelateConfig
) -> pl.DataFrame:
    n, name = len(x.values), "conditional_spearman"
    if n < MIN_CONDITIONAL:
        why = f"only {n} images have both and {' and '.join(held)}; holding fixed needs {MIN_CONDITIONAL}"
        return _frame(x, y, name, n, reason=np.full((len(x.names), len(y.names)), why))
    association = conditional_association(x.values, y.values, covariates, config.confidence)
    reason = _constant(x, y)
    reason[(reason == "") & np.isnan(association.rho)] = f"{' and '.join(held)} determines one of them"
    return _frame(x, y, name, n, association.rho, association.p, (association.low, association.high), reason)


def _statistics(x: Columns, y: Columns, config: CorrelateConfig) -> tuple[NDArray, tuple[NDArray, NDArray] | None]:
    """Spearman's rho (C, A) and its bootstrap interval ((C, A), (C, A)), None without resamples."""
    n, n_columns, n_resamples = len(x.values), len(x.names), config.n_bootstrap
    left, right = ranks.Ordered.of(x.values), ranks.Ordered.of(y.values)
    ones = np.ones((1, n), np.int64)
    parts = [left.part(slice(start, start + _COLUMNS)) for start in range(0, n_columns, _COLUMNS)]
    y_point = ranks.rank_scores(right, ones)
    rho = np.concatenate([ranks.spearman(ranks.rank_scores(part, ones), y_point)[0] for part in parts])
    if not n_resamples:
        return rho, None
    weights = resample_weights(n, n_resamples, config.seed)
    # few resamples of many columns at a time: those of y are ranked once and stay in the cache
    step = max(1, _CHUNK // (n * min(n_columns, _COLUMNS)))
    resampled = np.empty((n_resamples, n_columns, len(y.names)), np.float32)

    def fill(first: int) -> None:
        some = weights[first : first + step]
        y_scores = ranks.rank_scores(right, some, np.float32)
        for k, part in enumerate(parts):
            into = resampled[first : first + step, k * _COLUMNS : (k + 1) * _COLUMNS]
            into[...] = ranks.spearman(ranks.rank_scores(part, some, np.float32), y_scores)

    _in_threads(fill, range(0, n_resamples, step))
    return rho, percentile_interval(resampled, config.confidence)


def _in_threads(work: Callable[[int], Part], starts: Iterable[int]) -> list[Part]:
    """`work` of each start in order, on as many threads as there are cores: numpy lets go of the interpreter."""
    with ThreadPoolExecutor(min(n_cores(), _THREADS)) as pool:
        return list(pool.map(work, starts))


def _constant(x: Columns, y: Columns) -> NDArray:
    """(C, A) reasons: which side is constant, or empty."""
    still = [(np.ptp(side.values, axis=0) == 0) for side in (x, y)]
    reason = np.full((len(x.names), len(y.names)), "", dtype=object)
    reason[:, still[1]] = "attribute is constant"
    reason[still[0], :] = "metric is constant"
    return reason


def _categorical(x: Columns, attribute: str, values: pl.Series, config: CorrelateConfig) -> pl.DataFrame:
    """Kruskal-Wallis effect size of a categorical attribute on each column of x."""
    n = len(x.values)
    y = Columns([(attribute,)], np.empty((n, 1)))
    codes = values.cast(pl.String).rank("dense").to_numpy().astype(np.int64) - 1
    n_categories = int(codes.max(initial=-1)) + 1
    if n < MIN_IMAGES or n_categories < 2 or n_categories == n:
        why = f"only {n} images have both" if n < MIN_IMAGES else f"{n_categories} categories among {n} images"
        return _frame(x, y, "epsilon_squared", n, reason=np.full((len(x.names), 1), why))
    ordered = ranks.Ordered.of(x.values)
    ones = np.ones((1, n), np.int64)
    share = ranks.share_between(ranks.rank_scores(ordered, ones), ones, codes)[0]
    value = ranks.epsilon_squared(share, n, n_categories)
    spread = None
    if config.n_bootstrap:
        weights = resample_weights(n, config.n_bootstrap, config.seed)
        step = max(1, _CHUNK // (n * config.n_bootstrap))

        def share_of(first: int) -> NDArray:
            part = ordered.part(slice(first, first + step))
            return ranks.share_between(ranks.rank_scores(part, weights, np.float32), weights, codes)

        resampled = np.concatenate(_in_threads(share_of, range(0, len(x.names), step)), 1)
        for _ in range(2):
            resampled = ranks.epsilon_squared(resampled, n, n_categories)
        spread = tuple(side[:, None] for side in percentile_interval(resampled, config.confidence))
    reason = np.where(np.isnan(value), "metric is constant", "")[:, None]
    p = scipy.stats.chi2.sf(share * (n - 1), n_categories - 1)[:, None]
    return _frame(x, y, "epsilon_squared", n, value[:, None], p, spread, reason)


def _frame(
    x: Columns,
    y: Columns,
    statistic: str,
    n: int,
    rho: NDArray | None = None,
    p: NDArray | None = None,
    spread: tuple[NDArray, ...] | None = None,
    reason: NDArray | None = None,
    shape: Mapping[str, NDArray] | None = None,
) -> pl.DataFrame:
    """Rows of `correlations` for each pair of columns; NaN becomes null. `shape`: columns of the monotonicity test."""
    blank = np.full((len(x.names), len(y.names)), np.nan)
    low, high = spread or (None, None)
    numbers = {"rho": rho, "p": p, "ci_low": low, "ci_high": high}
    numbers |= dict.fromkeys(SHAPE) | dict(shape or {})
    tap, layer, group, metric = (list(part) for part in zip(*x.names, strict=True))
    repeats = len(y.names)
    columns: dict[str, object] = {
        name: np.repeat(np.array(part, dtype=object), repeats)
        for name, part in (("tap", tap), ("layer", layer), ("group", group), ("metric", metric))
    }
    columns["attribute"] = [a for (a,) in y.names] * len(x.names)
    columns |= {name: (blank if v is None else v).astype(np.float64).ravel() for name, v in numbers.items()}
    columns["reason"] = (np.full(blank.shape, "") if reason is None else reason).astype(object).ravel()
    strings = dict.fromkeys(("tap", "layer", "group", "metric", "attribute", "reason"), pl.String)
    frame = pl.DataFrame(columns, schema_overrides=strings).with_columns(
        pl.col(*numbers).fill_nan(None),
        pl.col("reason").replace("", None),
        layer=pl.col("layer").cast(pl.Int32),
        statistic=pl.lit(statistic),
        n=pl.lit(n, dtype=pl.Int32),
    )
    known = pl.col("reason").is_null()
    return frame.with_columns(pl.when(known).then(c).alias(c) for c in numbers)


def _with_q(table: pl.DataFrame) -> pl.DataFrame:
    """Add q over all rows of the same statistic that have a p, and `shape_q` over all that have a `shape_p`."""
    parts = [
        part.with_columns(
            pl.Series(q, benjamini_hochberg(part[p].cast(pl.Float64).fill_null(float("nan")).to_numpy())).fill_nan(None)
            for p, q in (("p", "q"), ("shape_p", "shape_q"))
        )
        for part in table.partition_by("statistic", maintain_order=True)
    ]
    return pl.concat(parts)
