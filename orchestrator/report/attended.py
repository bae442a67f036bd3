"""Attention maps of an ablation's questions, overlaid on their images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from orchestrator.ablate.questions import make_questions
from orchestrator.compression.tokenmap import lay_on_grid
from orchestrator.config import RunConfig
from orchestrator.errors import VtsweepError
from orchestrator.report.model import AttentionMap

THUMBNAIL_PX = 200
"""Longest side of an image on the page, px."""


def thumbnail_of(image: np.ndarray) -> np.ndarray:
    """Return an image downscaled for the page, uint8 (height, width, 3)."""
    import cv2

    scale = THUMBNAIL_PX / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def attention_maps(run: RunConfig, table: pl.DataFrame) -> Iterator[AttentionMap]:
    """Maps of the first tile of each kept question and target; empty if the images are no longer available.

    Args:
        run: settings of the ablation, from which its questions are recreated.
        table: table `attention_maps`.
    """
    kept = table.filter(pl.col("checkpoint") == "base")
    if kept.is_empty():
        return
    try:
        examples = {item.question.question_id: item for item in make_questions(run)}
    except VtsweepError:
        return
    for (question, target), rows in kept.group_by(["question_id", "target"], maintain_order=True):
        item = examples.get(str(question))
        try:
            image = item.image() if item is not None else None
        except VtsweepError:
            continue
        if item is None or not isinstance(image, np.ndarray):  # none, or several pictures side by side
            continue
        layers = tuple(sorted(rows["layer"].unique().to_list()))
        grid = rows.filter(pl.col("layer") == layers[0]).select("row", "column", "tile").to_numpy()
        weights = np.stack([rows.filter(pl.col("layer") == layer)["weight"].to_numpy() for layer in layers])
        tiles = lay_on_grid(weights.astype(np.float32), grid)
        first = min(tiles)
        view = "whole image" if len(tiles) == 1 else f"tile {first + 1} of {len(tiles)}"
        words = f"{item.question.text} {item.question.answer}"
        yield AttentionMap(words, str(target), thumbnail_of(image), layers, tiles[first], view)
