"""Correlation tables against scipy, one pair at a time."""

import math

import numpy as np
import polars as pl
import pytest
from scipy import stats

from orchestrator.config import CorrelateConfig
from orchestrator.correlate.correlation import correlate
from orchestrator.errors import DataError
from orchestrator.stats import ranks
from orchestrator.stats.resample import resample_weights
from orchestrator.store.tables.core import check_table

KINDS = {"n_objects": "count", "coverage": "continuous", "still": "continuous", "colour": "categorical"}


def study(n: int = 40, seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Images with a count, a continuous attribute that partly follows it, a constant and a colour; two metrics."""
    rng = np.random.default_rng(seed)
    objects = rng.integers(1, 9, n)
    images = pl.DataFrame(
        {
            "image_id": [f"i{k:03d}" for k in range(n)],
            "n_objects": objects,
            "coverage": objects * 0.1 + rng.normal(size=n) * 0.2,
            "still": np.ones(n),
            "colour": rng.choice(["red", "green", "blue"], n),
        }
    )
    layers = [
        pl.DataFrame(
            {
                "image_id": images["image_id"],
                "tap": ["decoder"] * n,
                "layer": [layer] * n,
                "group": ["vision"] * n,
                "n_tokens": [4] * n,
                "gini": np.float32(objects * (1 - 2 * layer) + rng.normal(size=n)),
                "hoyer": np.full(n, 0.5, np.float32),
            }
        )
        for layer in (0, 1)
    ]
    return images, pl.concat(layers)


def row(table: pl.DataFrame, **where: object) -> dict:
    return table.filter(pl.all_horizontal(pl.col(k) == v for k, v in where.items())).row(0, named=True)


def test_rho_p_and_n_equal_scipy_and_the_table_fits_the_schema() -> None:
    images, metrics = study()
    table = check_table(correlate(images, metrics, KINDS, CorrelateConfig(n_bootstrap=20)), "correlations")
    for layer in (0, 1):
        values = metrics.filter(pl.col("layer") == layer)["gini"].to_numpy()
        for attribute in ("n_objects", "coverage"):
            got = row(table, layer=layer, metric="gini", attribute=attribute, statistic="spearman")
            want = stats.spearmanr(values, images[attribute].to_numpy())
            assert got["rho"] == pytest.approx(want.statistic, abs=1e-9)
            assert got["p"] == pytest.approx(want.pvalue, rel=1e-6)
            assert got["n"] == 40
            assert got["ci_low"] < got["rho"] < got["ci_high"]


def test_bootstrap_ranks_equal_ranking_each_resample() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 6, (30, 3)).astype(float), rng.normal(size=(30, 2))
    weights = resample_weights(30, 5, seed=3)
    scores = [ranks.rank_scores(ranks.Ordered.of(v), weights) for v in (x, y)]
    rho = ranks.spearman(*scores)
    for s, counts in enumerate(weights):
        drawn = np.repeat(np.arange(30), counts)
        for c in range(3):
            for a in range(2):
                assert rho[s, c, a] == pytest.approx(stats.spearmanr(x[drawn, c], y[drawn, a]).statistic, abs=1e-9)


def test_conditional_rows_say_nothing_of_what_follows_from_the_count_alone() -> None:
    images, metrics = study(200)
    objects = images["n_objects"].to_numpy()
    rng = np.random.default_rng(5)
    hump = -((objects - 4.5) ** 2)
    images = images.with_columns(coverage=hump + rng.normal(size=200), own=pl.Series(rng.normal(size=200)))
    gini = hump + images["own"].to_numpy() + rng.normal(size=200)
    metrics = metrics.with_columns(gini=pl.Series(np.concatenate([gini, gini])))
    kinds = {**KINDS, "own": "continuous"}
    table = correlate(images, metrics, kinds, CorrelateConfig(n_bootstrap=0))
    where = {"layer": 0, "metric": "gini"}
    assert row(table, **where, attribute="coverage", statistic="spearman")["p"] < 1e-6
    assert row(table, **where, attribute="coverage", statistic="conditional_spearman")["p"] > 0.05
    got = row(table, **where, attribute="own", statistic="conditional_spearman")
    assert got["p"] < 1e-6
    assert got["ci_low"] < got["rho"] < got["ci_high"]
    assert table.filter((pl.col("attribute") == "n_objects") & (pl.col("statistic") != "spearman")).is_empty()
    shape = row(table, **where, attribute="n_objects", statistic="spearman")
    assert shape["shape_q"] < 0.05
    assert 3 <= shape["turning_point"] <= 6
    assert shape["rho_below"] > 0 > shape["rho_above"]


def test_categories_get_kruskal_wallis_and_no_ranks_of_codes() -> None:
    images, metrics = study()
    red = 3 * (images["colour"] == "red").cast(pl.Float32)
    metrics = metrics.with_columns(gini=pl.col("gini") + pl.concat([red, red]))
    table = correlate(images, metrics, KINDS, CorrelateConfig(n_bootstrap=10))
    values = metrics.filter(pl.col("layer") == 0)["gini"].to_numpy().astype(float)
    colours = images["colour"].to_numpy()
    want = stats.kruskal(*(values[colours == c] for c in np.unique(colours)))
    got = row(table, layer=0, metric="gini", attribute="colour", statistic="epsilon_squared")
    # Kelley's epsilon squared from sums of squares of the ranks: less one mean square within for each freedom between
    ordered = stats.rankdata(values)
    within = sum(((ordered[colours == c] - ordered[colours == c].mean()) ** 2).sum() for c in np.unique(colours))
    total = ((ordered - ordered.mean()) ** 2).sum()
    assert got["rho"] == pytest.approx((total - within - 2 * within / 37) / total, abs=1e-9)
    assert got["p"] == pytest.approx(want.pvalue, rel=1e-6)
    assert table.filter((pl.col("attribute") == "colour") & (pl.col("statistic") != "epsilon_squared")).is_empty()


@pytest.mark.parametrize(("effect", "n"), [(0.0, 60), (1.0, 100), (3.0, 100)])
def test_intervals_of_the_effect_size_cover_the_population(effect: float, n: int) -> None:
    def statistic(n: int, seed: int, n_bootstrap: int) -> dict:
        rng = np.random.default_rng(seed)
        codes = rng.integers(10, size=n)
        ids = [f"i{k:06d}" for k in range(n)]
        images = pl.DataFrame({"image_id": ids, "colour": [f"c{k}" for k in codes]})
        x = rng.normal(size=n) + effect * codes / 9
        keys = {"tap": "decoder", "layer": 0, "group": "vision", "n_tokens": 4}
        metrics = pl.DataFrame({"image_id": ids, "gini": x}).with_columns(pl.lit(v).alias(k) for k, v in keys.items())
        config = CorrelateConfig(n_bootstrap=n_bootstrap)
        return correlate(images, metrics, {"colour": "categorical"}, config).row(0, named=True)

    true = statistic(100_000, 0, 0)["rho"]
    found = [statistic(n, seed, 200) for seed in range(1, 101)]
    assert np.mean([row["rho"] for row in found]) == pytest.approx(true, abs=0.05)
    assert sum(row["ci_low"] <= true + 1e-3 and true <= row["ci_high"] for row in found) >= 89
    assert all(row["ci_low"] <= row["rho"] <= row["ci_high"] for row in found)


def test_an_attribute_with_missing_values_has_its_partial_correlation_too() -> None:
    images, metrics = study(60)
    alone = images.with_columns(coverage=pl.when(pl.col("n_objects") > 1).then("coverage"))
    table = correlate(alone, metrics, KINDS, CorrelateConfig(n_bootstrap=20))
    got = row(table, layer=0, metric="gini", attribute="coverage", statistic="conditional_spearman")
    known = alone["coverage"].is_not_null().to_numpy()
    fewer = alone.filter(pl.col("coverage").is_not_null())
    want = correlate(
        fewer, metrics.filter(pl.col("image_id").is_in(fewer["image_id"].to_list())), KINDS, CorrelateConfig()
    )
    want = row(want, layer=0, metric="gini", attribute="coverage", statistic="conditional_spearman")
    assert (got["n"], got["rho"]) == (known.sum(), pytest.approx(want["rho"], abs=1e-12))
    assert table.select("tap", "layer", "group", "metric", "attribute", "statistic").is_duplicated().sum() == 0


def test_holes_of_the_attribute_held_fixed_cost_the_partial_correlation_alone() -> None:
    images, metrics = study(60)
    holes = images.with_columns(n_objects=pl.when(pl.int_range(pl.len()) % 3 > 0).then("n_objects"))
    table = correlate(holes, metrics, KINDS, CorrelateConfig(n_bootstrap=20))
    full = correlate(images, metrics, KINDS, CorrelateConfig(n_bootstrap=20))
    where = {"layer": 0, "metric": "gini", "attribute": "coverage"}
    assert row(table, **where, statistic="spearman")["rho"] == row(full, **where, statistic="spearman")["rho"]
    assert row(table, **where, statistic="spearman")["n"] == 60
    assert row(table, **where, statistic="conditional_spearman")["n"] == 40


def test_a_category_cannot_be_held_fixed() -> None:
    images, metrics = study()
    with pytest.raises(DataError, match="hold_fixed: 'colour' is categorical"):
        correlate(images, metrics, KINDS, CorrelateConfig.model_validate({"hold_fixed": "colour"}))
    with pytest.raises(DataError, match="no attribute to correlate"):
        correlate(images, metrics, KINDS, CorrelateConfig(attributes=()))


@pytest.mark.parametrize("n", [5, 7])
def test_few_images_in_perfect_order_have_the_exact_p(n: int) -> None:
    images, metrics = study(n)
    images = images.with_columns(n_objects=pl.int_range(n))
    metrics = metrics.with_columns(gini=pl.int_range(pl.len()).cast(pl.Float32))
    table = correlate(images, metrics, KINDS, CorrelateConfig(n_bootstrap=0))
    got = row(table, layer=0, metric="gini", attribute="n_objects", statistic="spearman")
    assert got["rho"] == pytest.approx(1)
    assert got["p"] == pytest.approx(2 / math.factorial(n))


def test_what_the_held_attribute_determines_has_no_conditional_value() -> None:
    images, metrics = study(60)
    images = images.with_columns(twice=pl.col("n_objects") * 2)
    table = correlate(images, metrics, {**KINDS, "twice": "count"}, CorrelateConfig(n_bootstrap=0))
    got = row(table, layer=0, metric="gini", attribute="twice", statistic="conditional_spearman")
    assert got["rho"] is None
    assert got["reason"] == "n_objects determines one of them"


def test_constant_columns_are_null_with_a_reason_and_count_in_no_q() -> None:
    images, metrics = study()
    table = correlate(images, metrics, KINDS, CorrelateConfig(n_bootstrap=5))
    still = table.filter((pl.col("attribute") == "still") | (pl.col("metric") == "hoyer"))
    assert still["rho"].is_null().all()
    assert still["q"].is_null().all()
    assert still["reason"].str.contains("constant").all()
    known = table.filter(pl.col("statistic") == "spearman").drop_nulls("p")
    assert known["q"].to_numpy() == pytest.approx(stats.false_discovery_control(known["p"].to_numpy()))


def test_missing_values_leave_out_only_their_own_images() -> None:
    images, metrics = study()
    gone = metrics.with_columns(
        gini=pl.when((pl.col("layer") == 1) & pl.col("image_id").is_in(["i003", "i017"]))
        .then(float("nan")).otherwise(pl.col("gini")).cast(pl.Float32)
    )  # fmt: skip
    table = correlate(images, gone, KINDS, CorrelateConfig(n_bootstrap=0))
    assert row(table, layer=0, metric="gini", attribute="n_objects", statistic="spearman")["n"] == 40
    got = row(table, layer=1, metric="gini", attribute="n_objects", statistic="spearman")
    kept = ~images["image_id"].is_in(["i003", "i017"]).to_numpy()
    values = metrics.filter(pl.col("layer") == 1)["gini"].to_numpy()
    assert got["n"] == 38
    assert got["rho"] == pytest.approx(stats.spearmanr(values[kept], images["n_objects"].to_numpy()[kept]).statistic)


def test_few_images_give_nulls_not_numbers() -> None:
    images, metrics = study(3)
    table = correlate(images, metrics, KINDS, CorrelateConfig(n_bootstrap=5))
    assert table["rho"].is_null().all()
    assert table["reason"].str.contains("3 images").all()


def test_equal_input_in_another_order_gives_the_equal_table() -> None:
    images, metrics = study()
    config = CorrelateConfig(n_bootstrap=30)
    shuffled = correlate(
        images.sample(fraction=1, shuffle=True, seed=1), metrics.sample(fraction=1, shuffle=True, seed=2), KINDS, config
    )
    assert shuffled.equals(correlate(images, metrics, KINDS, config))


def test_unknown_attribute_is_named_with_the_nearest() -> None:
    images, metrics = study(6)
    with pytest.raises(DataError, match="n_objects"):
        correlate(images, metrics, KINDS, CorrelateConfig(attributes=("n_object",)))
