"""What the report makes of a probe table, for models whose vision tokens are not in the decoder as well."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from orchestrator.cli.closing import probe_rows
from orchestrator.config import RunConfig, ScenesConfig
from orchestrator.report.build import point_figures
from orchestrator.report.collect import _point
from orchestrator.report.model import PointResults, StudyResults
from orchestrator.report.probe_views import encoder_baseline, first_layers, vision_tap
from orchestrator.report.summaries import summarise
from orchestrator.report.words import summary
from orchestrator.store.filesystem import Storage
from orchestrator.store.stage_folder import Stage
from orchestrator.store.study_record import View

KINDS = {"n_objects": "count", "dominant_colour": "categorical"}


def row(tap: str, layer: int, position: str, attribute: str, score: float) -> dict[str, object]:
    classes = KINDS[attribute] == "categorical"
    return {
        "tap": tap, "layer": layer, "position": position, "attribute": attribute,
        "kind": "classification" if classes else "regression", "solver": "logistic" if classes else "ridge",
        "engine": "batched", "penalty": 1.0, "score": score, "ci_low": score - 0.1, "ci_high": score + 0.1,
        "balanced_score": score if classes else None, "baseline": 0.2 if classes else 0.0, "control": 0.1,
        "selectivity": score - 0.1, "skill_beyond": None, "beyond_low": None, "beyond_high": None, "beyond": None,
        "n_train": 70, "n_test": 30, "n_classes": 3 if classes else None, "n_left_out": 0,
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


def test_redundancy_is_told_where_single_tokens_know_most(cross: PointResults) -> None:
    count = (pl.col("tap") == "cross_v") & (pl.col("layer") == 3) & (pl.col("attribute") == "n_objects")
    single = pl.col("position").str.contains(r"vision_\d")
    table = cross.probes.with_columns(
        score=pl.when(count & (pl.col("position") == "vision_01"))
        .then(0.8)
        .when(count & ~single)
        .then(0.85)
        .otherwise("score")
    )
    study = StudyResults("s", "", "", "", {}, {}, (replace(cross, probes=table),), "")
    (told,) = [s for _, statements in summary(study) for s in statements if s.text.startswith("Single vision")]
    assert told.text.startswith(
        "Single vision tokens at layer 3 predict the number of objects with R² from 0.50 to 0.80, "
    )
    assert told.text.endswith("their mean with 0.85.")
    assert "2 places, 50 % of which reach 90 % of that" in told.evidence
    assert told.evidence.endswith("single tokens at layer 1: 0.50 to 0.50")


@pytest.fixture
def views(cross: PointResults, tmp_path: Path) -> list[View]:
    """Two stages of probes on one capture, the second with more rows, of which some are the first's, and a search."""
    run, made = RunConfig(data=ScenesConfig()), []
    for number, table in enumerate((cross.probes.filter(pl.col("tap") == "decoder"), cross.probes)):
        stage = Stage(Storage(str(tmp_path)), "probe", {"number": number})
        stage.open({})
        stage.write_shard(0, {"probes": table})
        stage.mark_done({"search": {"solver": "mlp", "width": 8, "skill": 0.4, "held_out": 0.3, "trial": 2}})
        made.append(View("cross", run, stage, {}))
    return made


def test_probes_that_two_points_share_count_once(cross: PointResults, views: list[View]) -> None:
    point = _point(views[0].run, {"capture": [], "probe": views}, {}, "cross")
    assert point.probes is not None
    assert point.probes.height == cross.probes.height


def test_tracked_numbers_are_those_of_the_model_and_the_searchs_own(views: list[View]) -> None:
    table = views[1].stage.scan("probes").collect()
    views[1].stage.write_shard(
        0, {"probes": table.with_columns(score=pl.when(tap="pixels").then(1.2).otherwise("score"))}
    )
    logged = summarise("probe", views[1])
    assert logged.metrics["probe_best/n_objects"] == pytest.approx(1.0)  # text_mean of the last layer
    assert logged.metrics["probe_pixels/n_objects"] == 1.2
    assert logged.metrics["probe_search/held_out"] == 0.3
    assert logged.params["probe_search_width"] == 8


def test_the_closing_table_tells_the_best_scores_and_where_text_first_knows(views: list[View]) -> None:
    rows = {row["attribute"]: row for row in probe_rows(views[1])}
    assert rows["n_objects"]["vision"] == 0.5  # the values', not the encoder's
    assert rows["n_objects"]["text from layer"] == 1
    assert rows["n_objects"]["pixels"] == 0.3
    empty = views[1].stage.scan("probes").collect().with_columns(score=pl.lit(None, pl.Float64))
    views[1].stage.write_shard(0, {"probes": empty})
    assert probe_rows(views[1]) == []
