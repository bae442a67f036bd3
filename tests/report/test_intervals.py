import numpy as np
import polars as pl
import pytest

from orchestrator.report.intervals import depth_table, layer_curves
from orchestrator.stats.resample import bootstrap_means
from tests.report.fake_study import fake_point


def test_interval_holds_the_mean_and_narrows_with_more_images():
    rng = np.random.default_rng(0)
    few, many = rng.normal(size=(20, 3)), rng.normal(size=(2000, 3))
    mean, low, high = bootstrap_means(few)
    assert (low < mean).all()
    assert (mean < high).all()
    _, low_many, high_many = bootstrap_means(many)
    assert ((high_many - low_many) < 0.3 * (high - low)).all()


def test_interval_of_a_normal_mean_is_about_two_standard_errors():
    values = np.random.default_rng(1).normal(size=(400, 1))
    _, low, high = bootstrap_means(values, n_resamples=4000)
    assert (high - low)[0] == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.06)


def test_missing_values_are_left_out_not_counted_as_zero():
    values = np.array([[1.0, np.nan], [1.0, 3.0], [1.0, np.nan], [1.0, 3.0]])
    mean, low, high = bootstrap_means(values)
    assert mean.tolist() == [1.0, 3.0]
    assert low.tolist() == high.tolist() == [1.0, 3.0]


def test_a_column_without_values_stays_without_values():
    mean, low, high = bootstrap_means(np.full((5, 1), np.nan))
    assert np.isnan([mean, low, high]).all()


def test_curves_agree_with_polars_means():
    table = fake_point(n_images=12).layer_metrics
    assert table is not None
    curves = layer_curves(table)
    expected = table.group_by("tap", "layer", "group").agg(pl.col("gini").cast(pl.Float64).mean())
    joined = curves.filter(pl.col("metric") == "gini").join(expected, on=["tap", "layer", "group"])
    assert joined.height == expected.height
    np.testing.assert_allclose(joined["mean"], joined["gini"], rtol=1e-12)


def test_depth_table_reads_vision_where_the_decoder_holds_only_text():
    point = fake_point(n_images=10)
    assert point.layer_metrics is not None
    vision = (pl.col("group") == "vision") & (pl.col("tap") == "decoder")
    moved = point.layer_metrics.filter(pl.col("tap") == "decoder").with_columns(
        tap=pl.when(vision).then(pl.lit("cross_k")).otherwise(pl.col("tap"))
    )
    object.__setattr__(point, "layer_metrics", moved)
    table = depth_table(point, ["gini"])
    assert table is not None
    assert set(table["group"]) == {"vision", "text"}
    assert table["mean"].is_finite().all()
