"""A planted model: tables with known dependence on count, size and colours; the report says that and nothing else."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import polars as pl
import pytest

from orchestrator.compression.registry import METRICS
from orchestrator.config import CorrelateConfig, ProbeConfig, SceneDesign, ScenesConfig
from orchestrator.correlate.correlate_stage import attribute_correlations
from orchestrator.correlate.correlation import correlate
from orchestrator.correlate.findings import find
from orchestrator.data.associations import roles_of
from orchestrator.data.source import ScenesSource
from orchestrator.probes.beyond import covariates_of
from orchestrator.probes.grid import fit_grid
from orchestrator.probes.split import make_split
from orchestrator.probes.targets import make_targets
from orchestrator.report.hypotheses import judge_hypotheses
from orchestrator.report.model import PointResults, StudyResults
from orchestrator.report.words import summary
from tests.report.test_hypotheses import deletion, drift

N_LAYERS = 3
N_IMAGES = 400
PLANTED = {
    ("vision", "spectrum", "n_objects"): -1.0,
    ("vision", "norm", "size_mean"): 1.0,
    ("vision", "norm", "n_colours"): -1.0,
    ("text", "spectrum", "n_objects"): 1.0,
}
"""(group, family of metrics, attribute) -> sign of its effect on compression; nothing else has one."""
FAMILIES = {"norm": ("gini", "hoyer"), "spectrum": ("stable_rank_centred", "spectral_participation_centred")}


def scaled(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / values.std()


@pytest.fixture(scope="module")
def source() -> ScenesSource:
    return ScenesSource(ScenesConfig(design=SceneDesign(), n_images=N_IMAGES, seed=11))


@pytest.fixture(scope="module")
def images(source: ScenesSource) -> pl.DataFrame:
    rows = [
        {"image_id": source.ids[i], "source": "scenes", "index": i, "width": 336, "height": 336, **source.attributes(i)}
        for i in range(N_IMAGES)
    ]
    return pl.DataFrame(rows)


def planted_metrics(images: pl.DataFrame, seed: int, strength: float = 1.0) -> pl.DataFrame:
    """Table `layer_metrics`: each family follows its attributes at every layer, flat over depth, with noise."""
    rng = np.random.default_rng(seed)
    parts = []
    for group in ("vision", "text"):
        for layer in range(N_LAYERS + 1):
            columns = {}
            for family, names in FAMILIES.items():
                effect = np.zeros(len(images))
                for (own_group, own_family, attribute), sign in PLANTED.items():
                    if (own_group, own_family) == (group, family):
                        effect += strength * sign * scaled(images[attribute].to_numpy().astype(float))
                for name in names:
                    compressed = effect + rng.standard_normal(len(images))
                    columns[name] = (0.5 + 0.02 * METRICS[name].direction * compressed).astype(np.float32)
            parts.append(
                images.select("image_id").with_columns(
                    tap=pl.lit("decoder"), layer=pl.lit(layer, pl.Int32), group=pl.lit(group),
                    n_tokens=pl.lit(64, pl.Int32), **{k: pl.Series(v) for k, v in columns.items()},
                )
            )  # fmt: skip
    return pl.concat(parts)


def planted_point(source: ScenesSource, images: pl.DataFrame, seed: int, strength: float = 1.0) -> PointResults:
    metrics = planted_metrics(images, seed, strength)
    kinds, roles = dict(source.attribute_kinds), roles_of(source)
    derived = [name for name, role in roles.items() if role == "derived"]
    correlations = correlate(images, metrics, kinds, CorrelateConfig(n_bootstrap=50, seed=seed))
    found = find(images, metrics, correlations, source="scenes", derived=derived, seed=seed)
    return PointResults(
        "planted, scenes", "planted", "scenes", N_LAYERS, kinds, images=images, layer_metrics=metrics,
        correlations=correlations, findings=pl.DataFrame([asdict(f) for f in found]),
        probes=planted_probes(source, images, seed),
        further={"attribute_correlations": attribute_correlations(images, kinds, roles)},
        deletion=deletion((0.8, 0.2, 0.1), (0.9, 0.88, 0.1)).deletion, trials=drift(0.5, 0.2).trials,
    )  # fmt: skip


def planted_probes(source: ScenesSource, images: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Features: text knows the count and the size from layer 1 on; every vision token the count alone."""
    rng = np.random.default_rng([seed, 1])
    kinds = {k: v for k, v in source.attribute_kinds.items() if v != "categorical"}
    targets = make_targets(images, kinds)
    split = make_split(list(range(N_IMAGES)), 0.3, 5, seed)
    held = covariates_of(images, kinds, ("n_objects",))
    count, size = (scaled(images[name].to_numpy().astype(float)) for name in ("n_objects", "size_mean"))
    config = ProbeConfig(solvers=("ridge",), n_bootstrap=50, controls=("shuffled",))
    positions = ["text_mean", "vision_mean", *(f"vision_{i:02d}" for i in range(10))]
    parts = []
    for layer in range(N_LAYERS + 1):
        features = rng.standard_normal((N_IMAGES, len(positions), 12)).astype(np.float32)
        features[:, 1:, 0] = 5 * count[:, None] + rng.standard_normal((N_IMAGES, len(positions) - 1))
        if layer:
            features[:, 0, 0] += 10 * count
            features[:, 0, 1] += 10 * size
        parts.append(
            fit_grid(features, targets, config, split, tap="decoder", layer=layer, positions=positions, covariates=held)
        )
    return pl.concat(parts)


@pytest.mark.parametrize("seed", range(3))
def test_findings_are_what_was_planted_and_nothing_else(source: ScenesSource, images: pl.DataFrame, seed: int) -> None:
    metrics = planted_metrics(images, seed)
    kinds, roles = dict(source.attribute_kinds), roles_of(source)
    derived = [name for name, role in roles.items() if role == "derived"]
    correlations = correlate(images, metrics, kinds, CorrelateConfig(n_bootstrap=0, seed=seed))
    found = find(images, metrics, correlations, source="scenes", derived=derived, seed=seed)
    sure = {
        (f.group, f.family, f.attribute): 1.0 if "more compression" in f.effect_name else -1.0
        for f in found
        if f.claim in ("attribute", "objects") and f.holds == "supported" and f.family and "branch" not in f.effect_name
    }
    assert sure == PLANTED
    assert not [f.statement for f in found if f.holds == "supported" and "branch" in f.effect_name]
    # a factor that was not planted is never more than undecided
    others = [f for f in found if f.claim == "attribute" and (f.group, f.family, f.attribute) not in PLANTED]
    assert {f.holds for f in others} <= {"undecided", "equivalent to nothing"} | (
        {"supported"} if any("disagree" in f.statement for f in others) else set()
    )
    assert not {f.attribute for f in found} & set(derived)


def test_an_empty_model_yields_no_finding(source: ScenesSource, images: pl.DataFrame) -> None:
    metrics = planted_metrics(images, 9, strength=0.0)
    correlations = correlate(images, metrics, dict(source.attribute_kinds), CorrelateConfig(n_bootstrap=0))
    found = find(images, metrics, correlations, source="scenes", derived=["coverage", "clutter", "nearest_distance"])
    assert not [f.statement for f in found if f.holds in ("supported", "contradicted")]
    assert sum(f.holds == "equivalent to nothing" for f in found) > len(found) / 2


def test_the_report_says_what_was_planted(source: ScenesSource, images: pl.DataFrame) -> None:
    point = planted_point(source, images, seed=5)
    told = dict(judge_hypotheses(point).select("hypothesis", "verdict").iter_rows())
    assert told == {
        "depth_profile": "equivalent to nothing",  # flat over depth
        "objects_and_compression": "equivalent to nothing",  # of two families only one follows the count
        "diversity_and_size_spread": "not measured",
        "text_knows_early": "undecided",  # one of five attributes beyond the count: a mean skill of 0.2
        "any_token_counts": "supported",
        "half_kills_counting": "supported",
        "text_changes_more": "supported",
        "sufficient_ratio": "not measured",
    }
    assert point.probes is not None
    text = point.probes.filter((pl.col("position") == "text_mean") & (pl.col("layer") == 2))
    factors = ["size_mean", "size_spread", "n_colours", "n_shapes", "spatial_spread"]
    known = text.filter((pl.col("beyond_low") > 0.3) & pl.col("attribute").is_in(factors))["attribute"].to_list()
    assert known == ["size_mean"]
    vision = point.probes.filter((pl.col("position") == "vision_mean") & pl.col("attribute").is_in(factors))
    assert vision.filter(pl.col("beyond_low") > 0.2).is_empty()  # it knows the count, and nothing beyond it
    study = StudyResults("planted", "", "2026-01-01T00:00:00+00:00", "", {}, {}, (point,))
    words = " ".join(s.text + s.evidence for _, part in summary(study) for s in part)
    assert "drawn independently" in words
    assert "derived from several of them" in words
    assert "Among images alike in number of objects" in words
