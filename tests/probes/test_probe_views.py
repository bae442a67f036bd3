"""What the report makes of a probe table, for models whose vision tokens are not in the decoder as well."""

from __future__ import annotations

import polars as pl
import pytest

from orchestrator.report.build import point_figures
from orchestrator.report.model import PointResults
from orchestrator.report.probe_views import encoder_baseline, first_layers, vision_tap

KINDS = {"n_objects": "count", "dominant_colour": "categorical"}


def row(tap: str, layer: int, position: str, attribute: str, score: float) -> dict[str, object]:
    classes = KINDS[attribute] == "categorical"
    return {
        "tap": tap, "layer": layer, "position": position, "attribute": attribute,
        "kind": "classification" if classes else "regression", "solver": "logistic" if classes else "ridge",
        "engine": "batched", "penalty": 1.0, "score": score, "ci_low": score - 0.1, "ci_high": score + 0.1,
        "balanced_score": score if classes else None, "baseline": 0.2 if classes else 0.0, "control": 0.1,
        "selectivity": score - 0.1, "n_train": 70, "n_test": 30, "n_classes": 3 if classes else None, "n_left_out": 0,
        "reason": None,
    }  # fmt: skip


@pytest.fixture(scope="module")
def cross() -> PointResults:
    """Text in the decoder, vision in keys and values at two layers and in more blocks of the encoder."""
    table = [
        *(
            ("decoder", layer, name, 0.1 + 0.3 * layer)
            for layer in range(4)
            for name in ("text_mean", "text_00", "last")
        ),
        *(
            (tap, layer, name, 0.5)
            for tap, layers in (("cross_k", (1, 3)), ("cross_v", (1, 3)), ("encoder", (0, 1, 2)))
            for layer in layers
            for name in ("vision_mean", "vision_00", "vision_01")
        ),
        ("pixels", 0, "pixels", 0.3),
    ]
    probes = pl.DataFrame([row(*cells[:3], attribute, cells[3]) for cells in table for attribute in KINDS])
    return PointResults(
        label="cross on scenes", model="cross", source="scenes", n_layers=3, attribute_kinds=KINDS, probes=probes,
        places={"vision_00": (0, 0), "vision_01": (1, 1)}, grid=(2, 2),
    )  # fmt: skip


def test_keys_and_values_have_figures_of_their_own_and_the_places_are_those_of_the_values(cross: PointResults) -> None:
    drawn = dict(point_figures(cross))
    assert list(drawn) == [
        *("fig4_probes", "fig4_probe_curves", "fig4_probes_cross_v", "fig4_probe_curves_cross_v"),
        *("fig4_probes_cross_k", "fig4_probe_curves_cross_k", "fig4_probe_places"),
    ]
    for draw in drawn.values():
        assert draw().axes
    assert vision_tap(cross.probes) == "cross_v"


def test_the_encoder_baseline_is_its_last_tapped_block(cross: PointResults) -> None:
    last = (pl.col("tap") == "encoder") & (pl.col("layer") == 2)
    table = cross.probes.with_columns(score=pl.when(last).then(0.9).otherwise(pl.col("score")))
    assert dict(encoder_baseline(table).iter_rows()) == dict.fromkeys(KINDS, 0.9)
    assert encoder_baseline(table.filter(pl.col("tap") != "encoder")).is_empty()


def test_text_first_knows_where_the_interval_clears_baseline_and_control(cross: PointResults) -> None:
    first = first_layers(cross.probes).filter(position_kind="text_mean")
    assert dict(first.select("attribute", "first_layer").iter_rows()) == {"n_objects": 1, "dominant_colour": 1}
    unsure = cross.probes.with_columns(ci_low=pl.lit(0.15))
    found = first_layers(unsure).filter(position_kind="text_mean")
    assert dict(found.select("attribute", "first_layer").iter_rows()) == {"n_objects": 0, "dominant_colour": None}
