"""The grid: planted signals, controls, leaks, and inputs that cannot be probed."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, r2_score

from orchestrator.config import ProbeConfig
from orchestrator.errors import ConfigError, DataError
from orchestrator.probes.grid import fit_grid
from orchestrator.probes.score import accuracy, balanced_accuracy, r2
from orchestrator.probes.split import Split, check_leak, content_keys, make_split
from orchestrator.probes.targets import make_target, make_targets
from orchestrator.stats.resample import resample_weights

N = 240
POSITIONS = ["vision_mean", "vision_00", "text_mean", "last"]


def noise(seed: int, d: int = 10) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(N, len(POSITIONS), d)).astype(np.float16)


def grid(features: np.ndarray, targets: list, layer: int = 0, **settings: object) -> pl.DataFrame:
    config = ProbeConfig(n_bootstrap=100, n_folds=3, penalties=(1e-2, 1.0, 100.0), **settings)  # type: ignore[arg-type]
    split = make_split(range(len(features)), config.test_fraction, config.n_folds, 0)
    return fit_grid(features, targets, config, split, tap="decoder", layer=layer, positions=POSITIONS)


@pytest.fixture(scope="module")
def planted() -> pl.DataFrame:
    """Noise at 3 layers x 4 positions, but for one place that carries a number and one that carries a class."""
    random = np.random.default_rng(0)
    number, label = random.normal(size=N), random.integers(0, 3, N)
    targets = [make_target("size", "continuous", number), make_target("colour", "categorical", label.astype(str))]
    layers = [noise(10 + layer) for layer in range(3)]
    layers[1][:, 2, 4] += (3 * number).astype(np.float16)
    layers[2][:, 1, :3] += (3 * np.eye(3)[label]).astype(np.float16)
    return pl.concat([grid(features, targets, layer) for layer, features in enumerate(layers)])


@pytest.mark.parametrize(("attribute", "place"), [("size", (1, "text_mean")), ("colour", (2, "vision_00"))])
def test_the_grid_finds_exactly_the_planted_place(planted: pl.DataFrame, attribute: str, place: tuple) -> None:
    rows = planted.filter(attribute=attribute)
    known = rows.filter(pl.col("ci_low") > pl.max_horizontal("baseline", "control") + 0.15)
    assert known.select("layer", "position").rows() == [place]
    assert known["score"][0] > 0.7


def test_the_shuffled_control_finds_nothing_even_where_the_signal_is(planted: pl.DataFrame) -> None:
    assert (planted["control"] - planted["baseline"]).max() < 0.15  # type: ignore[operator]
    best = planted.filter(pl.col("score") > 0.7)
    assert (best["selectivity"] - (best["score"] - best["control"])).abs().max() == 0
    assert best["selectivity"].min() > 0.4  # type: ignore[operator]


def test_results_do_not_depend_on_which_positions_share_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    targets = [
        make_target("a", "count", random.integers(1, 9, N)),
        make_target("b", "categorical", random.integers(0, 2, N)),
    ]
    whole = grid(noise(0), targets)
    monkeypatch.setitem(fit_grid.__globals__["BLOCK_BYTES"], "cpu", 1)
    apart = grid(noise(0), targets)
    key = ["position", "attribute"]
    scores = whole.sort(key)["score"].to_numpy(), apart.sort(key)["score"].to_numpy()
    np.testing.assert_allclose(*scores, atol=1e-5)


# ---------------------------------------------------------------- splits and leaks


def test_copies_of_an_image_are_found_by_content_and_used_once() -> None:
    images = np.random.default_rng(0).integers(0, 255, (40, 4, 4, 3)).astype(np.uint8)
    images[33], images[7] = images[2], images[2]
    keys = content_keys(images)
    split = make_split(keys, 0.3, 3, 0)
    used = [*split.train, *split.test]
    assert split.n_duplicates == 2
    assert {7, 33}.isdisjoint(used)
    assert len(set(used)) == 38
    check_leak(split, keys)


def test_a_split_with_copies_on_both_sides_is_refused() -> None:
    split = Split(np.array([0, 1, 2]), np.array([3, 4]), np.array([0, 1, 0]))
    with pytest.raises(DataError, match=r"1 held-out images are copies .*1 = 4.*leak"):
        check_leak(split, ["a", "b", "c", "d", "b"])


@given(st.lists(st.integers(0, 30), min_size=30, max_size=80), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_no_content_is_ever_on_both_sides(groups: list[int], seed: int) -> None:
    try:
        split = make_split(groups, 0.3, 2, seed)
    except DataError:
        assert len(set(groups)) < 8
        return
    check_leak(split, groups)
    assert {groups[i] for i in (*split.train, *split.test)} == set(groups)
    assert set(split.fold) == {0, 1}


def test_too_few_images_are_refused_with_the_numbers() -> None:
    with pytest.raises(DataError, match="4 different images give 3 for training and 1 held out"):
        make_split([0, 1, 2, 3, 3], 0.3, 5, 0)


# ---------------------------------------------------------------- inputs that cannot be probed


def test_what_cannot_be_probed_has_a_reason_and_no_score() -> None:
    random = np.random.default_rng(0)
    features = noise(0)
    features[5, 1, 3] = np.inf
    targets = [
        make_target("one_class", "categorical", ["red"] * N),
        make_target("all_rare", "categorical", [f"class{i}" for i in range(N)]),
        make_target("constant", "count", np.full(N, 4)),
        make_target("missing", "continuous", [None] * N),
        make_target("hardly_any", "continuous", [float(i) if i < 3 else None for i in range(N)]),
        make_target("hardly_held_out", "categorical", [["a", "b"][i % 2] if i < 20 else None for i in range(N)]),
        make_target("good", "continuous", random.normal(size=N)),
    ]
    table = grid(features, targets)
    bad = table.filter((pl.col("attribute") != "good") & (pl.col("position") == "last"))
    assert bad["score"].null_count() == bad.height == 6
    reasons = dict(zip(bad["attribute"], bad["reason"], strict=True))
    assert reasons["one_class"] == "one class: 'red' alone has >= 8 images"
    assert reasons["all_rare"] == f"no class has >= 8 images: {N} classes, {N} images"
    assert reasons["constant"] == "constant: every image has the value 4"
    assert reasons["missing"] == "no image has a value"
    assert "training images have a value; expected at least 6" in reasons["hardly_any"]
    assert "held-out images have a value; expected at least 10" in reasons["hardly_held_out"]
    good = table.filter(attribute="good")
    assert good.filter(position="vision_00")["reason"].item() == (
        "features are not finite in 1 of 240 images (NaN, or beyond float16)"
    )
    assert good.filter(pl.col("position") != "vision_00")["score"].null_count() == 0
    assert table.height == len(POSITIONS) * len(targets)


def test_rare_classes_are_left_out_and_counted() -> None:
    labels = ["common"] * 100 + ["usual"] * 130 + ["rare"] * 7 + [None] * 3
    table = grid(noise(0), [make_target("colour", "categorical", labels)])
    assert table["n_left_out"].unique().to_list() == [7]
    assert table["n_classes"].unique().to_list() == [2]
    assert (table["n_train"] + table["n_test"]).unique().to_list() == [230]


def test_missing_values_leave_out_their_images_alone() -> None:
    random = np.random.default_rng(0)
    features, y = noise(0), random.normal(size=N)
    features[:, 0, 0] = y
    gaps = np.where(random.random(N) < 0.2, np.nan, y)
    table = grid(features, [make_target("gaps", "continuous", gaps), make_target("full", "continuous", y)])
    rows = table.filter(position="vision_mean")
    assert rows["score"].min() > 0.95  # type: ignore[operator]
    n_used = dict(zip(rows["attribute"], rows["n_train"] + rows["n_test"], strict=True))
    assert n_used == {"gaps": int(np.isfinite(gaps).sum()), "full": N}


def test_unknown_names_and_kinds_are_refused_with_the_nearest_one() -> None:
    images = pl.DataFrame({"n_objects": [1, 2], "colour": ["red", "blue"]})
    kinds = {"n_objects": "count", "colour": "categorical"}
    with pytest.raises(ConfigError, match=r"unknown attribute 'n_object'. Did you mean 'n_objects'"):
        make_targets(images, kinds, ["n_object"])
    with pytest.raises(DataError, match="no column for attribute 'colour'"):
        make_targets(images.drop("colour"), kinds)
    with pytest.raises(DataError, match="unknown kind 'counts'"):
        make_target("n_objects", "counts", [1, 2])
    with pytest.raises(DataError, match="attribute colour: expected numbers"):
        make_target("colour", "count", ["red", "blue"])


def test_shapes_that_do_not_match_are_refused() -> None:
    with pytest.raises(DataError, match=r"features \(240, 4, 10\) with 4 position names and labels of \[239, 240\]"):
        grid(noise(0), [make_target("a", "continuous", np.arange(N - 1))])


# ---------------------------------------------------------------- scores


def test_scores_equal_those_of_sklearn() -> None:
    random = np.random.default_rng(0)
    truth, predicted = random.integers(0, 3, 50), random.integers(0, 3, (50, 2))
    valid = random.random(50) > 0.2
    assert balanced_accuracy(predicted, truth, valid)[1] == pytest.approx(
        balanced_accuracy_score(truth[valid], predicted[valid, 1])
    )
    y, guess = random.normal(size=50), random.normal(size=(50, 2))
    assert r2(guess, y, valid, np.empty((0, 50)))[0][0] == pytest.approx(r2_score(y[valid], guess[valid, 0]))


def test_bootstrap_intervals_equal_explicit_resampling() -> None:
    random = np.random.default_rng(0)
    y, guess, valid = random.normal(size=30), random.normal(size=(30, 1)), np.ones(30, bool)
    counts = resample_weights(30, 50, 0)
    scores = [r2_score(np.repeat(y, c), np.repeat(guess[:, 0], c)) for c in counts.astype(int)]
    _, low, high = r2(guess, y, valid, counts)
    assert [low[0], high[0]] == pytest.approx(np.quantile(scores, [0.025, 0.975]))
    right = random.random((30, 1)) < 0.6
    _, low, high = accuracy(right, valid, counts)
    assert [low[0], high[0]] == pytest.approx(np.quantile(counts @ right[:, 0] / 30, [0.025, 0.975]))
