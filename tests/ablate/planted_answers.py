"""Tables of answers whose curves are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl

SHARES = (0.0, 0.25, 0.5, 0.75, 0.9)


def planted(
    right: Callable[[str, float, int], float], n: int = 60, methods: tuple[str, ...] = ("random", "norm"), seed: int = 0
) -> pl.DataFrame:
    """`deletion_answers` of one low-tier family: `right(method, deleted share, question)` is the chance to be right.

    Even questions choose, odd ones judge. A question keeps its luck over settings, so that curves fall.
    """
    luck = np.random.default_rng(seed).random(n)
    rows = [
        {
            "checkpoint": "base",
            "method": method,
            "layer": 0,
            "seed": -1,
            "deleted_share": share,
            "question_id": f"q{i:04d}",
            "image_id": f"i{i:04d}",
            "cluster": f"i{i:04d}",
            "family": "colour",
            "tier": "low",
            "half": ("choose", "judge")[i % 2],
            "n_vision": 64,
            "kept_tokens": round(64 * (1 - share)),
            "layer_share": 1 - share,
            "gflop": 0.1 + 1.0 - share,
            "correct": bool(luck[i] < right(method, share, i)),
        }
        for method in methods
        for share in SHARES
        for i in range(n)
    ]
    return pl.DataFrame(rows)
