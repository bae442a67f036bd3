"""A study made of invented numbers, for testing figures and pages before and without any model. Not a result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from orchestrator.compression.registry import METRICS
from orchestrator.report.model import AttentionMap, PointResults, StudyResults, TokenMap
from orchestrator.store.tables.core import TABLES, check_table

SCENE_KINDS = {
    "n_objects": "count",
    "n_shapes": "count",
    "n_colours": "count",
    "dominant_colour": "categorical",
    "dominant_shape": "categorical",
    "coverage": "continuous",
    "size_mean": "continuous",
    "size_spread": "continuous",
    "spatial_spread": "continuous",
    "nearest_distance": "continuous",
    "clutter": "continuous",
}
COCO_KINDS = {
    "n_objects": "count",
    "n_categories": "count",
    "n_supercategories": "count",
    "dominant_supercategory": "categorical",
    "coverage": "continuous",
    "area_mean": "continuous",
    "area_spread": "continuous",
    "spatial_spread": "continuous",
}
LOW_FAMILIES = ("colour", "shape", "existence", "count")
HIGH_FAMILIES = ("count", "relation", "comparison")


FAKE_METRICS = ("gini", "norm_entropy", "stable_rank", "stable_rank_centred", "mean_cosine")
"""Few of them, so that tests stay quick; pass `METRIC_NAMES` for a full study."""


def fake_images(kinds: dict[str, str], n: int, source: str, rng: np.random.Generator) -> pl.DataFrame:
    columns: dict[str, object] = {
        "image_id": [f"{source}-{i:05d}" for i in range(n)],
        "source": [source] * n,
        "index": np.arange(n),
        "width": [336] * n,
        "height": [336] * n,
    }
    for name, kind in kinds.items():
        if kind == "count":
            columns[name] = rng.integers(1, 40, n)
        elif kind == "continuous":
            columns[name] = rng.uniform(0, 1, n)
        else:
            columns[name] = rng.choice(["red", "green", "blue"], n)
    return pl.DataFrame(columns)


def fake_layer_metrics(
    images: pl.DataFrame, n_layers: int, rng: np.random.Generator, names: Sequence[str] = FAKE_METRICS
) -> pl.DataFrame:
    """Spread, concentrate, spread again over depth, with an effect of the number of objects."""
    n = images.height
    complexity = images["n_objects"].to_numpy() / 40
    parts = []
    for tap, layers in (("decoder", range(n_layers + 1)), ("projector", range(1))):
        for layer in layers:
            depth = layer / n_layers
            for group in ("vision", "text") if tap == "decoder" else ("vision",):
                hump = np.exp(-(((depth - 0.55) / 0.25) ** 2)) * (1.0 if group == "vision" else 0.4)
                columns: dict[str, object] = {
                    "image_id": images["image_id"],
                    "tap": [tap] * n,
                    "layer": [layer] * n,
                    "group": [group] * n,
                    "n_tokens": [64 if group == "vision" else 5] * n,
                }
                for k, name in enumerate(names):
                    metric = METRICS[name]
                    scale = 20.0 if "rank" in name or name == "participation_ratio" else 0.6
                    compressed = 0.2 + 0.5 * hump - 0.15 * complexity + rng.normal(0, 0.06, n) + 0.01 * (k % 3)
                    value = compressed if metric.direction > 0 else 1.2 - compressed
                    columns[name] = (scale * value).astype(np.float32)
                parts.append(pl.DataFrame(columns))
    return pl.concat(parts)


def fake_correlations(
    kinds: dict[str, str], n_layers: int, n: int, rng: np.random.Generator, names: Sequence[str] = FAKE_METRICS
) -> pl.DataFrame:
    """A grid of every combination; effects grow with depth and fall along the list of attributes."""
    places = [("decoder", layer, group) for layer in range(n_layers + 1) for group in ("vision", "text")]
    tested = [
        (k, attribute, statistic)
        for k, (attribute, kind) in enumerate(kinds.items())
        for statistic in (("epsilon_squared",) if kind == "categorical" else ("spearman", "conditional_spearman"))
        if (attribute, statistic) != ("n_objects", "conditional_spearman")
    ]
    grid = (
        pl.DataFrame([*places, ("projector", 0, "vision")], schema=["tap", "layer", "group"], orient="row")
        .join(pl.DataFrame({"metric": names, "sign": [-METRICS[m].direction for m in names]}), how="cross")
        .join(pl.DataFrame(tested, schema=["k", "attribute", "statistic"], orient="row"), how="cross")
    )
    size = 0.5 * (-grid["k"] / 3).exp() * (0.4 + grid["layer"] / n_layers)
    rho = np.clip(grid["sign"].to_numpy() * size.to_numpy() + rng.normal(0, 0.1, grid.height), -0.98, 0.98)
    rho = np.where(grid["statistic"] == "epsilon_squared", np.abs(rho), rho)
    p = np.exp(-np.abs(rho) * 18)
    ends = {"ci_low": rho - 0.1, "ci_high": rho + 0.1}
    return (
        grid.drop("k", "sign")
        .with_columns(rho=rho, p=p, q=np.minimum(1, 4 * p), n=pl.lit(n), reason=pl.lit(None, pl.String), **ends)
        .with_columns(
            pl.lit(None, pl.Float64).alias(c) for c in ("shape_p", "shape_q", "turning_point", "rho_below", "rho_above")
        )
    )


def fake_probes(kinds: dict[str, str], n_layers: int, rng: np.random.Generator) -> pl.DataFrame:
    positions = ["vision_mean", *(f"vision_{i:02d}" for i in range(6)), "text_mean", "text_00", "last"]
    rows = []

    def add(tap: str, layer: int, position: str, attribute: str, kind: str, score: float) -> None:
        classes = kind == "categorical"
        baseline = 0.34 if classes else -0.01
        control = baseline + rng.normal(0, 0.02)
        beyond = None if classes or attribute == "n_objects" else 0.8 * score
        low, high = (None, None) if beyond is None else (beyond - 0.1, beyond + 0.1)
        rows.append({
            "tap": tap, "layer": layer, "position": position, "attribute": attribute,
            "kind": "classification" if classes else "regression", "solver": "logistic" if classes else "ridge",
            "engine": "batched", "penalty": 1.0, "score": score, "ci_low": score - 0.05, "ci_high": score + 0.05,
            "balanced_score": score if classes else None, "baseline": baseline, "control": control,
            "selectivity": score - control, "skill_beyond": beyond, "beyond_low": low, "beyond_high": high,
            "beyond": None if beyond is None else "n_objects", "n_train": 140, "n_test": 60,
            "n_classes": 3 if classes else None, "n_left_out": 0, "reason": None,
        })  # fmt: skip

    for attribute, kind in kinds.items():
        floor = 0.34 if kind == "categorical" else 0.0
        add("pixels", 0, "pixels", attribute, kind, floor + 0.3)
        for layer in range(n_layers + 1):
            for position in positions:
                depth = layer / n_layers
                known = 0.6 + 0.3 * depth if position.startswith("vision") else 0.9 * np.tanh(3 * depth)
                known -= 0.15 if position not in ("vision_mean", "text_mean") else 0.0
                add(
                    "decoder",
                    layer,
                    position,
                    attribute,
                    kind,
                    floor + (0.95 - floor) * max(0.0, known + rng.normal(0, 0.02)),
                )
    return pl.DataFrame(rows, infer_schema_length=None)


def fake_trials(rng: np.random.Generator) -> pl.DataFrame:
    rows = []
    for ratio in (0.0, 0.1, 0.25, 0.5, 1.0):
        for seed in range(3):
            gain = 0.35 * (1 - np.exp(-4 * ratio)) + rng.normal(0, 0.015)
            row = {
                "trial": f"{int(ratio * 100):08x}{seed:08x}", "model": "reference-joint", "complexity_ratio": ratio,
                "seed": seed, "status": "done", "n_steps": 120, "train_seconds": 60.0 + rng.normal(0, 2),
                "train_flops": 3.1e13, "final_loss": 0.6 - 0.2 * ratio, "lora_rank": 16,
                "accuracy/low": 0.9 - 0.06 * ratio + rng.normal(0, 0.01), "accuracy/high": 0.32 + gain,
                "accuracy_base/low": 0.91, "accuracy_base/high": 0.33, "blind/low": 0.27, "blind/high": 0.38,
            }  # fmt: skip
            for family in LOW_FAMILIES:
                row[f"accuracy/low/{family}"] = 0.9 + rng.normal(0, 0.02)
            for family in HIGH_FAMILIES:
                row[f"accuracy/high/{family}"] = 0.3 + gain + rng.normal(0, 0.02)
            for metric in ("gini", "stable_rank_centred", "effective_rank", "mean_cosine"):
                for group in ("vision", "text"):
                    for third in ("early", "middle", "late"):
                        shift = (0.1 if group == "vision" else 0.4) * gain + rng.normal(0, 0.01)
                        row[f"compression/{group}/{metric}/{third}"] = 0.5 + shift
                        row[f"delta/{group}/{metric}/{third}"] = shift
            for third in ("early", "middle", "late"):
                row[f"drift/vision/{third}"], row[f"drift/text/{third}"] = 0.05 + 0.1 * ratio, 0.2 + 0.3 * ratio
            row |= {
                f"{c}_{end}": v
                for c, v in list(row.items())
                if c.startswith(("accuracy/", "delta/"))
                for end in ("low", "high")
            }
            rows.append(row)
    return pl.DataFrame(rows)


def _figures(accuracy: float) -> tuple[float | None, ...]:
    """Score, share of yes, F1 and position bias of questions that are right or wrong."""
    return accuracy, None, None, None


def fake_causal(n_layers: int, rng: np.random.Generator) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    questions = [(f, "low") for f in LOW_FAMILIES] + [(f, "high") for f in HIGH_FAMILIES]
    frailty = {"colour": 6.0, "shape": 3.0, "existence": 3.0, "count": 0.8, "relation": 1.2, "comparison": 1.5}
    deletion, knockout, patching = [], [], []
    for family, tier in questions:
        top = 0.95 if tier == "low" else 0.6
        for method in ("random", "norm", "downsample"):
            for seed in (0, 1, 2) if method == "random" else (0,):
                for share in (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99):
                    a = 0.2 + (top - 0.2) * (1 - share ** frailty[family]) + rng.normal(0, 0.01)
                    deletion.append(
                        (
                            "base",
                            method,
                            0,
                            seed,
                            share,
                            64 * (1 - share),
                            family,
                            tier,
                            a,
                            a - 0.06,
                            a + 0.06,
                            *_figures(a),
                            100,
                            0.02,
                        )
                    )
        for first in range(n_layers - 1):
            a = top - 0.4 * np.exp(-((first - 2) ** 2)) + rng.normal(0, 0.01)
            knockout.append(("base", first, first + 1, family, tier, a, a - 0.06, a + 0.06, *_figures(a), 100))
        knockout.append(("base", 0, -1, family, tier, top, top - 0.05, top + 0.05, *_figures(top), 100))
        none = top / 2
        knockout.append(("base", 0, n_layers - 1, family, tier, none, none - 0.05, none + 0.05, *_figures(none), 100))
    for attribute in ("colour", "shape", "n_objects"):
        for layer in range(n_layers + 1):
            a = 0.02 + 0.9 / (1 + np.exp(2.0 * (layer - 3))) + rng.uniform(0, 0.01)
            patching.append(("base", layer, attribute, "image", a, max(0, a - 0.08), a + 0.08, 100))
    tables = []
    for name, rows in (("deletion", deletion), ("knockout", knockout), ("patching", patching)):
        tables.append(pl.DataFrame(rows, orient="row", schema=list(TABLES[name].columns)))
    return tables[0], tables[1], tables[2]


def fake_reading(n_layers: int, rng: np.random.Generator) -> dict[str, pl.DataFrame]:
    """Routes, replaced states, lenses and attention of two tiers and one family, and ranks of three methods."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ("routes", "replacing", "lens", "attention")}

    def add(table: str, **values: Any) -> None:
        rows[table].append({**dict.fromkeys(TABLES[table].columns), "checkpoint": "base", "n": 80, **values})

    for tier in ("low", "high"):
        for family in ("all", "colour"):
            of = {"tier": tier, "family": family}
            for source, target in (("image", "question"), ("question", "last")):
                for first, last in [*((k, k + 1) for k in range(n_layers - 1)), (0, n_layers - 1)]:
                    change = -0.3 * np.exp(-((first - 2) ** 2)) + rng.normal(0, 0.01)
                    add(
                        "routes",
                        source=source,
                        target=target,
                        first_layer=first,
                        last_layer=last,
                        probability=0.9 + change,
                        probability_plain=0.9,
                        change=change,
                        change_low=change - 0.05,
                        change_high=change + 0.05,
                        accuracy=0.7,
                        accuracy_plain=0.9,
                        flip_share=0.3,
                        ci_low=0.2,
                        ci_high=0.4,
                        n_flippable=70,
                        **of,
                    )
            for lens in ("logit", "tuned"):
                for place in ("last", "vision"):
                    for layer in range(n_layers + 1):
                        a = layer / n_layers * (0.9 if lens == "tuned" else 0.7) + rng.uniform(0, 0.02)
                        add(
                            "lens",
                            lens=lens,
                            place=place,
                            layer=layer,
                            probability=a,
                            above=a,
                            ci_low=a - 0.05,
                            ci_high=a + 0.05,
                            settled=a / 2,
                            **of,
                        )
            for layer in range(n_layers):
                for target in ("question", "last"):
                    ends = {
                        f"{m}{end}": v + s
                        for m, v in (
                            ("to_image", 0.6 + layer / 50),
                            ("on_objects", 0.4),
                            ("over_share", 0.1 - layer / 40),
                        )
                        for end, s in (("", 0.0), ("_low", -0.05), ("_high", 0.05))
                    }
                    add(
                        "attention",
                        layer=layer,
                        target=target,
                        object_share=0.3,
                        entropy=0.8 + rng.normal(0, 0.01),
                        **ends,
                        **of,
                    )
        for kind in ("zero", "mean"):
            for place in ("image", "object"):
                for layer in range(n_layers):
                    add(
                        "replacing",
                        kind=kind,
                        place=place,
                        layer=layer,
                        seed=-1,
                        family="colour",
                        tier=tier,
                        accuracy=0.3
                        + 0.1 * layer
                        + 0.02 * (kind == "mean")
                        + 0.01 * (place == "object")
                        + 0.01 * (tier == "low"),
                        ci_low=0.2,
                        ci_high=0.9,
                    )
    return {name: pl.DataFrame(found, infer_schema_length=None) for name, found in rows.items()}


def fake_ranks() -> pl.DataFrame:
    rows: list[dict[str, Any]] = []
    for rank, (method, accuracy) in enumerate((("divprune", 0.8), ("fastv", 0.7), ("random", 0.5)), 1):
        rows.append({**dict.fromkeys(TABLES["rival_ranks"].columns), "budget": 0.25, "tier": "low", "family": "all",
                     "method": method, "accuracy": accuracy, "rank": float(rank), "best": rank == 1, "tied": rank < 3,
                     "n_families": 2, "n": 80})  # fmt: skip
    return pl.DataFrame(rows, infer_schema_length=None)


def fake_attention_maps(n_layers: int, rng: np.random.Generator) -> tuple[AttentionMap, ...]:
    picture = np.full((60, 60, 3), 200, np.uint8)
    shares = rng.dirichlet(np.ones(16), n_layers).reshape(n_layers, 4, 4).astype(np.float32)
    return tuple(
        AttentionMap(f"what colour ? {t}", t, picture, tuple(range(n_layers)), shares) for t in ("question", "last")
    )


def fake_rivals(rng: np.random.Generator) -> pl.DataFrame:
    """Three ways to choose tokens at two budgets, and one budget that a method cannot meet."""
    rows = []
    for tier in ("low", "high"):
        for method, skill in (("all tokens", 0.9), ("random", 0.5), ("divprune", 0.8), ("fastv", 0.7)):
            for budget in (1.0,) if method == "all tokens" else (0.5, 0.125):
                a = skill * (0.6 + 0.4 * budget) + rng.normal(0, 0.01)
                row: dict[str, Any] = dict.fromkeys(TABLES["rivals"].columns) | {
                    "method": method, "budget": budget, "tier": tier, "family": "all", "difficulty": "all",
                    "accuracy": a, "ci_low": a - 0.05, "ci_high": a + 0.05, "difference": a - 0.9, "n": 100,
                    "reason": "",
                }  # fmt: skip
                if (method, budget) == ("fastv", 0.125):
                    row |= {"accuracy": None, "ci_low": None, "ci_high": None, "reason": "its average stays above 17 %"}
                rows.append(row)
                for difficulty, shift in (("hard", -0.2), ("easy", 0.1)):
                    moved = {k: None if row[k] is None else row[k] + shift for k in ("accuracy", "ci_low", "ci_high")}
                    rows.append({**row, **moved, "difficulty": difficulty})
    return check_table(pl.DataFrame(rows, infer_schema_length=None), "rivals")


def fake_token_maps(images: pl.DataFrame, n_layers: int, n_maps: int, rng: np.random.Generator) -> tuple[TokenMap, ...]:
    maps = []
    for image_id in images["image_id"].to_list()[:n_maps]:
        thumbnail = np.full((112, 112, 3), 255, np.uint8)
        norms = rng.uniform(0.8, 1.2, (n_layers + 1, 8, 8)).astype(np.float32)
        for _ in range(5):
            r, c = rng.integers(0, 7, 2)
            thumbnail[r * 14 : r * 14 + 20, c * 14 : c * 14 + 20] = rng.integers(0, 200, 3)
            norms[:, r : r + 2, c : c + 2] *= np.linspace(1, 4, n_layers + 1)[:, None, None]
        maps.append(TokenMap(image_id, thumbnail, tuple(range(n_layers + 1)), norms))
    return tuple(maps)


def fake_findings(kinds: dict[str, str]) -> pl.DataFrame:
    """Rows as `compression.findings.Finding` has them, one of each verdict."""
    rho = "Spearman's rho with less compression"
    depth = "Vision tokens spread, concentrate and spread again over depth"
    objects = "The more objects, the less compressed are vision tokens"
    rows = [
        ("depth", depth, "supported", "all", None, "smaller of the two shifts, SD", 1.1, 0.9, 1.3),
        ("objects", objects, "undecided", "all", "n_objects", rho, 0.15, -0.1, 0.3),
    ]
    for k, name in enumerate(kinds):
        statement = f"Compression of vision tokens in middle layers falls with {name}"
        effect = 0.3 - 0.08 * k
        holds = "contradicted" if k > 3 else "supported"
        rows.append(("attribute", statement, holds, "middle", name, rho, effect, effect - 0.1, effect + 0.1))
    names = ["claim", "statement", "holds", "where", "attribute", "effect_name", "effect", "ci_low", "ci_high"]
    return pl.DataFrame(rows, schema=names, orient="row").with_columns(
        group=pl.lit("vision"), n=60, agreement=0.5, family=pl.lit("norm"), given=pl.lit(""), smallest=0.2
    )


def fake_point(
    model: str = "reference-joint",
    source: str = "scenes",
    n_images: int = 30,
    n_layers: int = 6,
    seed: int = 0,
    names: Sequence[str] = FAKE_METRICS,
) -> PointResults:
    rng = np.random.default_rng(seed)
    kinds = SCENE_KINDS if source == "scenes" else COCO_KINDS
    images = fake_images(kinds, n_images, source, rng)
    deletion, knockout, patching = fake_causal(n_layers, rng)
    scenes = source == "scenes"
    return PointResults(
        label=f"{model}, {source}",
        model=model,
        source=source,
        n_layers=n_layers,
        attribute_kinds=kinds,
        digests={"capture": f"{seed:016x}"},
        images=images,
        layer_metrics=fake_layer_metrics(images, n_layers, rng, names),
        correlations=fake_correlations(kinds, n_layers, n_images, rng, names),
        probes=fake_probes(kinds, n_layers, rng),
        trials=fake_trials(rng) if scenes else None,
        deletion=deletion if scenes else None,
        rivals=fake_rivals(rng) if scenes else None,
        knockout=knockout if scenes else None,
        patching=patching if scenes else None,
        findings=fake_findings(kinds),
        **(fake_reading(n_layers, rng) if scenes else {}),
        attention_maps=fake_attention_maps(n_layers, rng) if scenes else (),
        further={
            "rival_ranks": fake_ranks(),
            "policy": pl.DataFrame({"tier": ["low", "high"], "kept_share": [0.5, 0.9]}),
        }
        if scenes
        else {},
        token_maps=fake_token_maps(images, n_layers, 6, rng),
        places={f"vision_{i:02d}": (2 * (i // 4), 2 * (i % 4) + 1) for i in range(6)},
        grid=(8, 8),
    )


def fake_study(n_points: int = 2) -> StudyResults:
    points = [fake_point(), fake_point(source="coco", seed=1), fake_point("reference-cross", n_layers=4, seed=2)][
        :n_points
    ]
    return StudyResults(
        name="invented",
        description="Invented numbers that exercise every figure; nothing here was measured.",
        created="2026-01-02T03:04:05+00:00",
        command="vtsweep run sweeps/invented.yaml",
        versions={"vtsweep": "0.1.0", "torch": "2.13.0"},
        hardware={"cpu": "2 cores", "memory": "8 GB", "gpu": "none"},
        points=tuple(points),
        config="name: invented\n",
        stages=pl.DataFrame(
            {"stage": ["capture", "correlate"], "point": [points[0].label] * 2, "seconds": [12.0, 3.5]}
        ),
        next_steps=(("vtsweep ui", "look at the runs in MLflow"),),
    )
