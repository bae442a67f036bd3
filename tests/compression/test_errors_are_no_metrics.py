"""Standard errors of estimates, of every variant, are neither related nor compared nor shown as metrics."""

from __future__ import annotations

import polars as pl

from orchestrator.compression.registry import ERRORS, METRIC_NAMES
from orchestrator.correlate.columns import wide
from orchestrator.finetune.sweep_summary import contrasts
from orchestrator.report.style import main_metrics


def test_errors_are_those_of_every_variant_of_every_estimate() -> None:
    assert len(ERRORS) == 8
    assert {name for name in METRIC_NAMES if name.endswith("_se")} == ERRORS


def test_errors_are_not_related() -> None:
    ids = pl.Series("image_id", ["a", "b"])
    keys = {"tap": ["decoder"] * 2, "layer": [0, 0], "group": ["vision"] * 2, "n_tokens": [4, 4]}
    metrics = pl.DataFrame({"image_id": ids, **keys, "gini": [0.1, 0.2], **{e: [0.1, 0.3] for e in sorted(ERRORS)}})
    assert [names[-1] for names in wide(metrics, ids).names] == ["gini"]


def test_errors_are_no_main_metrics() -> None:
    assert ERRORS.isdisjoint(main_metrics(METRIC_NAMES))


def test_errors_are_no_outcomes_of_training() -> None:
    trials = pl.DataFrame(
        {
            "status": ["done"] * 4,
            "complexity_ratio": [0.0, 0.0, 1.0, 1.0],
            "seed": [0, 1, 0, 1],
            "delta/vision/gini/early": [0.1, 0.2, 0.3, 0.5],
            **{f"delta/vision/{name}/early": [0.1, 0.2, 0.3, 0.6] for name in sorted(ERRORS)},
            **{f"asked/high/delta/vision/{name}/early": [0.1, 0.2, 0.3, 0.6] for name in sorted(ERRORS)},
        }
    )
    assert contrasts(trials, [])["outcome"].to_list() == ["delta/vision/gini/early"]
