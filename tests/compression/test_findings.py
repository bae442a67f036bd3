"""Findings on planted data: they must say yes, no and undecided where each is true."""

import numpy as np
import polars as pl
import pytest

from orchestrator.config import CorrelateConfig
from orchestrator.correlate.consensus import MEMBERS, compression_scores, main_tap
from orchestrator.correlate.correlation import correlate
from orchestrator.correlate.finding import Finding
from orchestrator.correlate.findings import find
from orchestrator.correlate.relations import _agreement
from orchestrator.stats import ranks

KINDS = {"n_objects": "count", "n_categories": "count", "area_spread": "continuous", "coverage": "continuous"}
METRICS = {"gini": 1, "norm_entropy": -1, "stable_rank": -1, "mean_cosine": 1}
DEPTH_SPREAD = (0.0, 1.0, 0.0)


def planted(
    n: int = 80,
    weights: dict[str, float] | None = None,
    depth: tuple[float, float, float] = DEPTH_SPREAD,
    noise: float = 1.0,
    seed: int = 0,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Images of independent attributes; compression = depth profile + weighted attributes (by z-score) + noise."""
    rng = np.random.default_rng(seed)
    attributes = {name: rng.normal(size=n) for name in KINDS}
    images = pl.DataFrame({"image_id": [f"i{k:03d}" for k in range(n)], "width": [64] * n, **attributes})
    driven = sum(w * attributes[name] for name, w in (weights or {}).items()) + np.zeros(n)
    layers = [
        pl.DataFrame(
            {
                "image_id": images["image_id"],
                "tap": ["decoder"] * n,
                "layer": [layer] * n,
                "group": ["vision"] * n,
                "n_tokens": [9] * n,
                **{m: sign * (depth[layer // 2] + driven + noise * rng.normal(size=n)) for m, sign in METRICS.items()},
            }
        )
        for layer in range(6)
    ]
    return images, pl.concat(layers)


def findings(images: pl.DataFrame, metrics: pl.DataFrame, source: str = "coco") -> list[Finding]:
    table = correlate(images, metrics, KINDS, CorrelateConfig(n_bootstrap=0))
    return find(images, metrics, table, source=source)


def claim(found: list[Finding], name: str) -> Finding:
    return next(f for f in found if f.claim == name)


@pytest.mark.parametrize(
    ("depth", "n", "noise", "expected"),
    [
        ((0.0, 1.5, 0.0), 60, 1.0, "supported"),
        ((0.0, 0.0, 0.0), 200, 0.05, "equivalent to nothing"),
        ((1.5, 0.0, 1.5), 60, 1.0, "contradicted"),
        ((0.0, 1.0, 2.0), 60, 1.0, "contradicted"),
        ((0.0, 0.25, 0.0), 12, 1.0, "undecided"),
    ],
)
def test_depth_claim_follows_the_planted_profile(
    depth: tuple[float, float, float], n: int, noise: float, expected: str
) -> None:
    assert claim(findings(*planted(n, depth=depth, noise=noise)), "depth").holds == expected


@pytest.mark.parametrize(
    ("weight", "n", "expected"), [(-1.0, 80, "supported"), (1.0, 80, "contradicted"), (-0.05, 20, "undecided")]
)
def test_more_objects_less_compression_can_be_yes_no_and_undecided(weight: float, n: int, expected: str) -> None:
    finding = claim(findings(*planted(n, {"n_objects": weight}, seed=2)), "objects")
    assert finding.holds == expected
    assert finding.effect is not None
    assert expected == "undecided" or (finding.effect > 0) == (weight < 0)
    assert finding.ci_low is not None
    assert finding.ci_high is not None
    assert finding.ci_low <= finding.effect <= finding.ci_high


def test_no_relation_is_equivalent_to_nothing_once_images_suffice() -> None:
    found = [f for f in findings(*planted(600, {}, noise=1.0)) if f.claim == "objects"]
    assert {f.holds for f in found} == {"equivalent to nothing"}
    assert {f.family for f in found} == {"norm", "spectrum", "similarity"}


def test_a_hump_contradicts_the_claim_and_is_told_by_its_branches() -> None:
    images, metrics = planted(300)
    objects = pl.DataFrame({"image_id": images["image_id"], "hump": -(images["n_objects"] ** 2)})
    joined = metrics.join(objects, on="image_id", maintain_order="left")
    metrics = joined.with_columns(pl.col(m) + s * 2 * pl.col("hump") for m, s in METRICS.items()).drop("hump")
    for f in (f for f in findings(images, metrics) if f.claim == "objects"):
        assert f.holds == "contradicted"
        assert "rises with n_objects up to" in f.statement


def test_families_of_opposite_sign_are_reported_as_disagreeing() -> None:
    images, metrics = planted(300)
    objects = pl.DataFrame({"image_id": images["image_id"], "z": images["n_objects"]})
    joined = metrics.join(objects, on="image_id", maintain_order="left")
    signs = {"gini": 1, "norm_entropy": -1, "stable_rank": 1, "mean_cosine": 1}  # norm and cosine up, rank down
    metrics = joined.with_columns(pl.col(m) + s * pl.col("z") for m, s in signs.items()).drop("z")
    found = {f.family: f for f in findings(images, metrics) if f.claim == "objects"}
    assert (found["norm"].holds, found["spectrum"].holds) == ("contradicted", "supported")
    assert all("disagree" in f.statement for f in found.values())


def test_an_attribute_that_follows_the_count_is_no_finding_of_its_own() -> None:
    hits = 0
    for seed in range(4):
        images, metrics = planted(150, {"n_objects": -1.0}, seed=seed)
        follower = images["n_objects"] + 0.3 * pl.Series(np.random.default_rng([seed, 7]).normal(size=150))
        images = images.with_columns(coverage=follower)
        found = [f for f in findings(images, metrics, source="scenes") if f.attribute == "coverage"]
        assert found
        assert all(f.given == "n_objects" and "held fixed" in f.statement for f in found)
        hits += sum(f.holds == "supported" for f in found)
    assert hits == 0


@pytest.mark.parametrize(
    ("weights", "n", "expected"),
    [
        ({"n_categories": -1.0, "area_spread": -1.0}, 120, "supported"),
        ({"coverage": -1.5, "area_spread": -0.5}, 120, "contradicted"),
        ({"n_categories": -0.3, "area_spread": -0.3, "coverage": -0.3}, 30, "undecided"),
    ],
)
def test_coco_drivers_can_be_yes_no_and_undecided(weights: dict[str, float], n: int, expected: str) -> None:
    found = findings(*planted(n, weights))
    assert claim(found, "coco_drivers").holds == expected
    assert not [f for f in findings(*planted(n, weights), source="scenes") if f.claim == "coco_drivers"]


def test_a_true_claim_about_the_weakest_of_many_effects_is_not_contradicted() -> None:
    """The smallest of twelve noisy effects lies below their true value, which resamples repeat."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        seen = 0.1 + 0.1 * rng.normal(size=12)
        low, high = ranks.weakest_interval(seen + 0.1 * rng.normal(size=(1000, 12)), 0.95)
        assert low <= seen.min() <= high
        held += low <= 0.1 <= high
    assert held >= 190


def test_category_diversity_by_another_count_is_no_rival() -> None:
    images, metrics = planted(120, {"n_categories": -1.0, "area_spread": -1.0})
    images = images.with_columns(n_supercategories=pl.col("n_categories"))
    kinds = {**KINDS, "n_supercategories": "count"}
    table = correlate(images, metrics, kinds, CorrelateConfig(n_bootstrap=0))
    assert claim(find(images, metrics, table, source="coco"), "coco_drivers").holds == "supported"


@pytest.mark.parametrize(
    ("effect", "n", "expected"), [(1.0, 120, "supported"), (0.3, 30, "undecided"), (0.0, 1500, "equivalent to nothing")]
)
def test_categories_are_judged_by_the_same_rule(effect: float, n: int, expected: str) -> None:
    colours = np.random.default_rng(9).choice(["red", "green", "blue"], n)
    images, metrics = planted(n, {})
    images = images.with_columns(colour=pl.Series(colours))
    shift = pl.DataFrame({"image_id": images["image_id"], "shift": effect * 2 * (colours == "red")})
    metrics = metrics.join(shift, on="image_id", maintain_order="left")
    metrics = metrics.with_columns(pl.col(m) + sign * pl.col("shift") for m, sign in METRICS.items()).drop("shift")
    table = correlate(images, metrics, {**KINDS, "colour": "categorical"}, CorrelateConfig(n_bootstrap=0))
    finding = next(f for f in find(images, metrics, table, source="scenes") if f.attribute == "colour")
    assert finding.holds == expected
    assert finding.effect is not None
    assert finding.ci_low is not None
    assert finding.ci_high is not None
    assert finding.ci_low <= finding.effect <= finding.ci_high


def test_attributes_without_a_relation_are_rarely_supported() -> None:
    supported = total = 0
    for seed in range(5):
        found = findings(*planted(60, {}, noise=1.0, seed=seed), source="scenes")
        picked = [f for f in found if f.claim == "attribute"]
        total += len(picked)
        supported += sum(f.holds in ("supported", "contradicted") for f in picked)
    assert supported <= 0.02 * total


def test_cross_attention_models_are_judged_by_their_values() -> None:
    """Keys have gone through a norm, so that their own norms are equal; the encoder is not the decoder."""
    taps = {"cross_k": (3, 8), "cross_v": (3, 8), "encoder": range(9), "projector": (0,)}
    rows = pl.DataFrame([{"tap": tap, "layer": at, "group": "vision"} for tap, layers in taps.items() for at in layers])
    assert main_tap(rows) == "cross_v"
    assert (
        main_tap(rows.filter(pl.col("tap") != "cross_v").vstack(rows.head(1).with_columns(tap=pl.lit("decoder"))))
        == "decoder"
    )
    assert main_tap(rows, "text") is None


@pytest.mark.parametrize("metric", ["participation_ratio", "gini_trimmed", "top5_alignment_next", "another_package_s"])
def test_without_a_metric_of_the_consensus_nothing_is_found(metric: str) -> None:
    images, metrics = planted(30)
    images = images.with_columns(colour=pl.Series(["red", "blue"] * 15))
    metrics = metrics.rename({"gini": metric}).drop(set(METRICS) - {"gini"})
    table = correlate(images, metrics, {**KINDS, "colour": "categorical"}, CorrelateConfig(n_bootstrap=0))
    assert {f.holds for f in find(images, metrics, table, source="coco")} == {"undecided"}


def test_drivers_are_compared_on_images_that_have_every_attribute() -> None:
    images, metrics = planted(120, {"n_categories": -1.0, "area_spread": -1.0})
    holes = images.with_columns(
        area_spread=pl.when(pl.int_range(pl.len()) % 4 == 0).then(None).otherwise("area_spread")
    )
    finding = claim(findings(holes, metrics), "coco_drivers")
    assert (finding.holds, finding.n) == ("supported", 90)


def test_attributes_are_ranked_by_how_sure_they_are() -> None:
    found = [f for f in findings(*planted(150, {"coverage": -1.0, "n_objects": 0.5})) if f.claim == "attribute"]
    assert {f.attribute for f in found[:3]} == {"coverage"}
    assert "falls with coverage, n_objects held fixed" in found[0].statement
    assert found[0].holds == "supported"
    assert found[0].agreement == pytest.approx(1.0, abs=0.1)


def test_few_images_decide_nothing() -> None:
    assert {f.holds for f in findings(*planted(8, {"n_objects": -3.0}))} <= {"undecided"}


def test_scores_order_images_by_planted_compression() -> None:
    images, metrics = planted(50, {"n_objects": 1.0}, noise=0.01)
    scores = compression_scores(metrics, images["image_id"], "decoder", "vision")
    assert set(scores) == {"norm", "spectrum", "similarity"}
    assert set(scores["norm"]) == {"early", "middle", "late", "all"}
    order = np.argsort(images["n_objects"].to_numpy())
    assert np.corrcoef(np.argsort(order), scores["norm"]["all"])[0, 1] > 0.98


def test_agreement_is_of_the_metrics_that_have_a_q() -> None:
    rows = pl.DataFrame(
        {"metric": ["gini"] * 3, "rho": [0.4, 0.5, 0.6], "q": [0.01, 0.9, None]}, schema_overrides={"q": pl.Float64}
    )
    sign = MEMBERS["gini"].direction
    for opposite in (False, True):  # a row without q is left out whatever its sign
        known = rows.with_columns(rho=pl.when(pl.col("q").is_null() & opposite).then(-pl.col("rho")).otherwise("rho"))
        assert _agreement(known, sign) == 0.5
        assert _agreement(known) == 0.5
        assert _agreement(known[2:], sign) is None
        assert _agreement(known[2:]) is None
        assert _agreement(known[:0], sign) is None
