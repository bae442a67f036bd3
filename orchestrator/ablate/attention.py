"""Attention from the question's tokens and the last token to the image and to its objects, by layer.

Attention shows what a layer reads, not what the answer depends on; the check `routes` measures that. Shapes: n
questions, V visual tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from orchestrator.ablate.bench import Bench
from orchestrator.ablate.places import object_tokens
from orchestrator.data.boxes import boxes_of
from orchestrator.models.attention_maps import TARGETS, attention_maps, reading_layers
from orchestrator.stats.intervals import student_interval

Measured = dict[tuple[int, str], dict[str, np.ndarray]]
"""(layer, target) -> measure -> value of each question, float64 (n,), NaN where it is not defined."""
MEASURES = ("to_image", "on_objects", "entropy")


def attention_tables(
    bench: Bench, layers: Sequence[int] | None, n_maps: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of tables `attention` and `attention_maps`, without the checkpoint.

    Args:
        layers: measure these of the layers that read the image; None for all.
        n_maps: number of questions whose attention is stored for every token, evenly spaced over the questions.
    """
    reading = reading_layers(bench.adapter)
    chosen = reading if layers is None else [layer for layer in reading if layer in layers]
    n = len(bench.examples)
    shown = set(np.linspace(0, n - 1, min(n_maps, n)).round().astype(int).tolist()) if n_maps else set()
    measured: Measured = {(k, t): {m: np.full(n, np.nan) for m in MEASURES} for k in chosen for t in TARGETS}
    objects = np.full(n, np.nan)
    maps: list[dict[str, Any]] = []
    for chunk in bench.batches(range(n), bench.inputs):
        batch = bench.adapter.collate([bench.inputs[i] for i in chunk])
        grids, layer_maps = bench.adapter.vision_grid(batch), attention_maps(bench.adapter, batch, chosen)
        for row, i in enumerate(chunk):
            item, grid = bench.examples[i], grids[row]
            inside = object_tokens(bench.adapter, item, grid).numpy() if boxes_of(item) is not None else None
            if inside is not None:
                objects[i] = inside.mean()
            for (layer, target), values in measured.items():
                weights = layer_maps[layer].of(target)[row, : len(grid)].double().numpy()
                _measure(values, i, weights, inside)
                if i in shown:
                    maps += _map_rows(bench, i, layer, target, grid.numpy(), weights)
    return list(_rows(bench, measured, objects)), maps


def _measure(values: dict[str, np.ndarray], i: int, weights: np.ndarray, inside: np.ndarray | None) -> None:
    total = weights.sum()
    values["to_image"][i] = total
    if total > 0:
        share = weights / total
        if inside is not None:
            values["on_objects"][i] = share[inside].sum()
        positive = share[share > 0]
        values["entropy"][i] = -(positive * np.log(positive)).sum() / np.log(len(share)) if len(share) > 1 else np.nan


def _map_rows(
    bench: Bench, i: int, layer: int, target: str, grid: np.ndarray, weights: np.ndarray
) -> Iterator[dict[str, Any]]:
    question, total = bench.examples[i].question, weights.sum()
    for (row, column, tile), weight in zip(grid.tolist(), weights.tolist(), strict=True):
        if row >= 0:
            yield {
                "question_id": question.question_id,
                "number": i,
                "question": question.text,
                "answer": question.answer,
                "layer": layer,
                "target": target,
                "row": row,
                "column": column,
                "tile": tile,
                "weight": weight / total if total > 0 else None,
            }


def _rows(bench: Bench, measured: Measured, objects: np.ndarray) -> Iterator[dict[str, Any]]:
    clusters = np.array([item.question.cluster for item in bench.examples])
    for (layer, target), values in measured.items():
        for tier, family, numbers in bench.scopes():
            row: dict[str, Any] = {"layer": layer, "target": target, "tier": tier, "family": family}
            row |= _interval("to_image", values["to_image"][numbers], clusters[numbers])
            row |= _interval("on_objects", values["on_objects"][numbers], clusters[numbers])
            row |= _interval("over_share", (values["on_objects"] - objects)[numbers], clusters[numbers])
            entropy, share = values["entropy"][numbers], objects[numbers]
            row["object_share"] = float(np.nanmean(share)) if np.isfinite(share).any() else None
            row["entropy"] = float(np.nanmean(entropy)) if np.isfinite(entropy).any() else None
            yield {**row, "n": len(numbers)}


def _interval(name: str, values: np.ndarray, clusters: np.ndarray) -> dict[str, Any]:
    """Mean over images with Student's interval; the questions of one image are averaged first."""
    is_finite = np.isfinite(values)
    images = [values[is_finite & (clusters == cluster)].mean() for cluster in dict.fromkeys(clusters[is_finite])]
    if not images:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    interval = student_interval(images)
    return {name: float(np.mean(images)), f"{name}_low": interval.low, f"{name}_high": interval.high}
