"""Results as compact JSON for the page's drawing code (`templates/*.js`).

A table is a dict of columns. Text columns are dictionary-encoded. Numbers are little-endian base64: float32, or 16-bit
steps over a known range (rho, q, accuracies). NaN and null are not distinguished.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.colors import to_hex
from PIL import Image

from orchestrator.report import style
from orchestrator.report.answer import headline
from orchestrator.report.causal_views import (
    averaged_replacing,
    measured_rivals,
    narrow_routes,
    over_seeds,
    whole_routes,
    windows,
    without_knockout,
)
from orchestrator.report.figures.trials import column_direction, column_words, first_column
from orchestrator.report.intervals import curves_of
from orchestrator.report.model import AttentionMap, PointResults, StudyResults, TokenMap, distinct_points, merged_trials
from orchestrator.report.probe_views import POSITION_NAMES, best_linear, with_skill
from orchestrator.report.trial_views import compression_columns, effect_of_ratio, finished, outcomes

MOST_RHO_ROWS = 120_000
"""Maximum correlation rows of a page (about 16 bytes each); beyond it only plain, then only headline metrics."""
MOST_MAP_VALUES = 500_000
"""Maximum token-map values of a page (about 3 bytes each)."""
_MISSING = 65535


def payload(results: StudyResults) -> dict[str, Any]:
    """All data that the page draws."""
    points = distinct_points(results.points)
    keep = _kept_metrics(points)
    sweeps = {p.model: p.sweep for p in results.points if p.sweep}
    n_maps = sum(m.norms.size for p in points for m in p.token_maps)
    most_maps = 99 if n_maps <= MOST_MAP_VALUES else max(1, int(6 * MOST_MAP_VALUES / n_maps))
    return {
        "style": _style(points),
        "points": [_point(p, keep, most_maps) for p in points],
        "headline": headline(results),
        "trials": {
            m: _trials(t, sweeps.get(m, {})) for m, t in merged_trials(results.points).items() if finished(t).height
        },
    }


def encode(table: pl.DataFrame, ranges: dict[str, tuple[float, float]] | None = None) -> dict[str, Any]:
    """A table as compact columns; `ranges`: column -> (low, high) of its 16-bit steps."""
    columns = {c: _column(table[c], (ranges or {}).get(c)) for c in table.columns}
    return {"n": table.height, "columns": columns}


def _column(column: pl.Series, limits: tuple[float, float] | None) -> dict[str, Any]:
    if not column.dtype.is_numeric() and column.dtype != pl.Boolean:
        words = column.cast(pl.String).fill_null("").to_list()
        order = {w: i for i, w in enumerate(dict.fromkeys(words))}
        codes = np.array([order[w] for w in words], np.uint8 if len(order) < 256 else np.uint16)
        return {"words": list(order), "bits": codes.itemsize * 8, "data": _base64(codes)}
    values = column.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    if limits is None:
        return {"data": _base64(values.astype("<f4"))}
    return {"low": limits[0], "high": limits[1], "data": _base64(_steps(values, limits))}


def _steps(values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """uint16 steps over `limits`; 65535 is a missing value."""
    share = (np.clip(values, *limits) - limits[0]) / (limits[1] - limits[0])
    return np.where(np.isfinite(values), np.round(np.nan_to_num(share) * (_MISSING - 1)), _MISSING).astype("<u2")


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _kept_metrics(points: list[PointResults]) -> set[str] | None:
    """Metrics of the correlation tables that fit the page; None for all."""
    rows = sum(p.correlations.height for p in points if p.correlations is not None)
    if rows <= MOST_RHO_ROWS:
        return None
    names = {m for p in points if p.correlations is not None for m in p.correlations["metric"].unique()}
    main = set(style.main_metrics(names))
    return main if rows * len(main) / len(names) <= MOST_RHO_ROWS else set(style.headline_metrics(names))


def _point(point: PointResults, keep: set[str] | None, most_maps: int) -> dict[str, Any]:
    content: dict[str, Any] = {
        "label": point.label,
        "model": point.model,
        "source": point.source,
        "nLayers": point.n_layers,
        "nImages": point.images.height if point.images is not None else 0,
        "kinds": dict(point.attribute_kinds),
        "maps": [_map(m) for m in point.token_maps[:most_maps]],
        "places": {k: list(v) for k, v in point.places.items()},
        "grid": list(point.grid) if point.grid else None,
    }
    unit = {"ci_low": (-1.0, 1.0), "ci_high": (-1.0, 1.0)}
    if (curves := curves_of(point)) is not None:
        content["curves"] = encode(curves)
    if point.correlations is not None and point.correlations.height:
        shape = [
            c
            for c in ("shape_p", "shape_q", "turning_point", "rho_below", "rho_above")
            if c in point.correlations.columns
        ]
        rho = point.correlations.drop("p", "reason", *shape)
        rho = rho if keep is None else rho.filter(pl.col("metric").is_in(list(keep)))
        content["rho"] = encode(rho, {**unit, "rho": (-1.0, 1.0), "q": (0.0, 1.0)})
    if point.probes is not None and point.probes.height:
        columns = ("tap", "layer", "position", "position_kind", "attribute", "kind", "solver", "score", "ci_low",
                   "ci_high", "skill", "skill_low", "skill_control", "baseline", "control", "n_test")  # fmt: skip
        solved = pl.concat([best_linear(point.probes), point.probes.filter(pl.col("solver") == "mlp")]).unique(
            maintain_order=True
        )
        content["probes"] = encode(with_skill(solved.filter(pl.col("score").is_not_null())).select(columns))
    share = {"accuracy": (0.0, 1.0), "ci_low": (0.0, 1.0), "ci_high": (0.0, 1.0)}
    if point.deletion is not None and point.deletion.height:
        content["deletion"] = encode(over_seeds(point.deletion), share)
    if point.rivals is not None and point.rivals.height:
        content["rivals"] = encode(measured_rivals(point.rivals), share)
    if point.knockout is not None and point.knockout.height:
        content["knockout"] = encode(windows(point.knockout), share)
        content["plain"] = encode(without_knockout(point.knockout), share)
    content |= _reading(point)
    if point.patching is not None and point.patching.height:
        content["patching"] = encode(point.patching)
    return content


def _reading(point: PointResults) -> dict[str, Any]:
    """Routes, replaced states, lenses and attention."""
    content: dict[str, Any] = {"attended": [_attended(shown) for shown in point.attention_maps]}
    if point.routes is not None and point.routes.height:
        routes = pl.concat([narrow_routes(point.routes), whole_routes(point.routes)], how="diagonal")
        columns = ("source", "target", "tier", "family", "checkpoint", "first_layer", "last_layer", "centre", "change",
                   "change_low", "change_high", "flip_share", "ci_low", "ci_high")  # fmt: skip
        content["routes"] = encode(routes.select(columns))
    if point.replacing is not None and point.replacing.height:
        content["replacing"] = encode(averaged_replacing(point.replacing))
    for name in ("lens", "attention"):
        table = getattr(point, name)
        if table is not None and table.height:
            content[name] = encode(table)
    return content


def _attended(shown: AttentionMap) -> dict[str, Any]:
    return {"id": shown.words, "target": shown.target, **_grid(shown, {"share": shown.relative})}


def _grid(shown: AttentionMap | TokenMap, values_by_view: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """An image with values on its token grid, (layers, rows, columns) for each view."""
    views = {}
    for name, values in values_by_view.items():
        high = float(np.nanmax(values)) or 1.0
        views[name] = {"high": high, "data": _base64(_steps(values, (0.0, high)))}
    return {
        "view": shown.view,
        "image": _picture(shown.thumbnail),
        "width": shown.thumbnail.shape[1],
        "height": shown.thumbnail.shape[0],
        "layers": list(shown.layers),
        "shape": list(values.shape[1:]),
        "views": views,
    }


def _map(token_map: TokenMap) -> dict[str, Any]:
    share = token_map.energy_share
    n_tokens = np.isfinite(share).sum(axis=(1, 2), keepdims=True)
    relative, norms = share * n_tokens, token_map.norms / np.nanmean(token_map.norms, axis=(1, 2), keepdims=True)
    return {"id": token_map.image_id, **_grid(token_map, {"energy": relative, "norm": norms})}


def _picture(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _trials(trials: pl.DataFrame, sweep: Mapping[str, Any]) -> dict[str, Any]:
    completed = finished(trials)
    columns = compression_columns(completed)
    results = outcomes(completed)
    numeric = [c for c in completed.columns if completed[c].dtype.is_numeric()]
    effects = {}
    for column in [*results, *columns]:
        effects[column] = effect_of_ratio(completed, column, sweep).to_dicts()
    outcome = "accuracy/high" if "accuracy/high" in results else (results or [""])[0]
    start, chosen = first_column(completed, outcome, sweep)
    return {
        "rows": encode(completed.select("trial", *numeric)),
        "outcomes": results,
        "compressions": columns,
        "effects": effects,
        "words": {c: column_words(c) for c in numeric},
        "directions": {c: column_direction(c) for c in columns},
        "start": {"x": start, "y": outcome, "chosen": chosen},
        "primary": [c for c in (r["outcome"] for r in sweep.get("contrasts", []) if r["primary"]) if c in columns],
        "verdicts": {r["outcome"]: r["verdict"] for r in sweep.get("contrasts", []) if r["primary"] and r["verdict"]},
    }


def _style(points: Iterable[PointResults]) -> dict[str, Any]:
    metrics = sorted({m for p in points for m in p.metrics} | _named(points, "correlations", "metric"))
    ordered = style.main_metrics(metrics) + [m for m in metrics if m not in set(style.main_metrics(metrics))]
    keys = {k for p in points for k in p.attribute_kinds}
    for table, column in (
        ("deletion", "family"),
        ("deletion", "method"),
        ("rivals", "method"),
        ("rivals", "family"),
        ("patching", "attribute"),
        ("routes", "family"),
        ("lens", "family"),
    ):
        keys |= _named(points, table, column)
    return {
        "metrics": {m: _metric(m) for m in ordered},
        "headline": style.headline_metrics(ordered),
        "names": {k: style.name_of(k) for k in sorted(keys)} | POSITION_NAMES,
        "taps": style.TAP_NAMES,
        "places": style.PLACES,
        "viridis": _stops(style.SEQUENTIAL),
        "diverging": _stops(style.DIVERGING),
        "divergingDark": list(style.DIVERGING_DARK),
        "families": list(style.FAMILIES),
    }


def _named(points: Iterable[PointResults], table: str, column: str) -> set[str]:
    frames = [getattr(p, table) for p in points]
    return {v for f in frames if f is not None for v in f[column].unique().to_list()}


def _metric(name: str) -> dict[str, Any]:
    metric = style.metric_of(name)
    about = {"title": style.metric_title(name), "short": style.metric_short(name), "unit": style.metric_unit(name)}
    if metric is None:
        return {**about, "direction": 0, "family": "of other packages"}
    return {
        **about,
        "direction": metric.direction,
        "family": f"{metric.family} metrics",
        "formula": metric.formula,
        "range": metric.range,
        "misleads": metric.misleads,
        "high": metric.high,
        "low": metric.low,
    }


def _stops(name: str, n: int = 17) -> list[str]:
    return [to_hex(mpl.colormaps[name](x)) for x in np.linspace(0, 1, n)]
