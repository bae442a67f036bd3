"""Numbers that the published page may name, each computed from its tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from jobs.published.tables import (
    CARD,
    COCO,
    FACTORS,
    FAMILIES,
    FOLDER,
    LAYER_METRICS,
    MODELS,
    PRIMARY,
    ROOT,
    SWEEPS,
    of_model,
)
from orchestrator.config.sweep import load_sweep
from orchestrator.finetune.sweep_summary import contrasts, effect_of_ratio, outcome_by_seed
from orchestrator.report.probe_views import by_kind
from orchestrator.stats.intervals import student_interval
from orchestrator.stats.pareto import pareto_front

READINGS = {
    "depth_profile": "The paper reads the profile off models of about thirty layers; with six, a third is two.",
    "objects_and_compression": "Families of metrics are judged apart, and a relation that turns counts against the"
    " claim. One metric alone, or counts from one side of the turn, would have decided it.",
    "diversity_and_size_spread": "The photographs at hand are few: this many cannot tell attributes apart whose rank"
    " correlations with compression lie close together.",
    "text_knows_early": "Skill counts only beyond the number of objects, as most attributes of a scene grow with it.",
    "any_token_counts": "That a token tells the number does not mean that the model reads it there: see the deletion of"
    " tokens above.",
    "half_kills_counting": "Asked in simple scenes, where counting has something to lose.",
    "text_changes_more": "Compression of visual tokens hardly moves (above), while text states do: what is read"
    " changes, not in how the image is laid out.",
    "sufficient_ratio": "What is gained is counting. Families that crowding takes nothing from gain nothing.",
}
"""What a reader of the paper should know beside a verdict; no numbers."""
SWEEP_OF = {
    **dict.fromkeys(("text_changes_more", "sufficient_ratio"), "published_ratio"),
    "diversity_and_size_spread": "coco",
}
"""Sweep that judges a claim on another model; `published_claims` where nothing is said."""


def claims_numbers(folder: Path) -> list[dict[str, Any]]:
    """Verdicts by claim, in the order of the rules, with the sweep and the GPU-hours of larger models."""
    table = pl.read_parquet(folder / "claims.parquet")
    names = table["hypothesis"].unique(maintain_order=True).to_list()
    plans = pl.read_parquet(folder / "plans.parquet")

    def hours(sweep: str) -> tuple[float, float] | None:
        of_sweep = plans.filter(pl.col("sweep") == sweep)["gpu_hours"].to_list()
        return (min(of_sweep), max(of_sweep)) if of_sweep else None

    return [
        {
            "name": n,
            "reading": READINGS[n],
            "sweep": SWEEP_OF.get(n, "published_claims"),
            "gpu_hours": hours(SWEEP_OF.get(n, "published_claims")),
            **table.filter(pl.col("hypothesis") == n).row(0, named=True),
            "rows": table.filter(pl.col("hypothesis") == n).to_dicts(),
        }
        for n in names
    ]


def relation_numbers(folder: Path) -> list[dict[str, Any]]:
    """Rank correlations of each headline metric with the designed factors at half of the depth."""
    return at_half_depth(pl.read_parquet(folder / "relations.parquet"), FACTORS)


def at_half_depth(table: pl.DataFrame, factors: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rank correlations of each headline metric with some attributes at half of the depth.

    With the number of objects the plain one, with the other factors the one that holds that number fixed.
    """
    count, plain = pl.col("attribute") == "n_objects", pl.col("statistic") == "spearman"
    told = table.filter(pl.col("attribute").is_in(factors) & (count == plain))
    rows = []
    for model in MODELS:
        own = of_model(told, model)
        layers = sorted(own["layer"].unique().to_list())
        for metric in LAYER_METRICS:
            at = own.filter((pl.col("layer") == layers[len(layers) // 2]) & (pl.col("metric") == metric))
            rows += at.sort(pl.col("attribute") != "n_objects", "attribute").to_dicts()
    return rows


def ratio_numbers(trials: pl.DataFrame) -> dict[str, Any]:
    """Values of the page about the complexity ratio, by model."""
    numbers: dict[str, Any] = {"n_trials": trials.height, "n_seeds": trials["seed"].n_unique()}
    numbers["ratios"] = sorted(trials["complexity_ratio"].unique().to_list())
    for model in MODELS:
        model_trials = of_model(trials, model)
        families = []
        for family in FAMILIES:
            row: dict[str, Any] = {"family": family.replace("_", " ")}
            for tier in ("high", "low"):
                column = f"accuracy/{tier}/{family}"
                effect = effect_of_ratio(outcome_by_seed(model_trials, column))
                row[tier] = {
                    "base": model_trials[f"accuracy_base/{tier}/{family}"][0],
                    "blind": model_trials[f"blind/{tier}/{family}"][0],
                    "rows": effect.table.to_dicts(),
                    "rises": effect.rises,
                    "sufficient": effect.sufficient,
                }
            families.append(row)
        effects = {t: effect_of_ratio(outcome_by_seed(model_trials, f"accuracy/{t}")) for t in ("high", "low")}
        points = model_trials.group_by("complexity_ratio").agg(pl.col("accuracy/high", "accuracy/low").mean())
        points = points.sort("complexity_ratio")
        front = pareto_front(points.select("accuracy/high", "accuracy/low").to_numpy(), (1, 1))
        numbers[model] = {
            "families": families,
            "primary": contrasts(model_trials, PRIMARY).filter("primary").to_dicts(),
            "n_explored": contrasts(model_trials, PRIMARY)["n_explored"][0],
            "high": {"rows": effects["high"].table.to_dicts(), "sufficient": effects["high"].sufficient},
            "low": {"rows": effects["low"].table.to_dicts(), "sufficient": effects["low"].sufficient},
            "front": points.filter(pl.Series(front))["complexity_ratio"].to_list(),
            "base": {t: model_trials[f"accuracy_base/{t}"][0] for t in ("high", "low")},
        }
    return numbers


def novelty_numbers(trials: pl.DataFrame) -> dict[str, Any]:
    """The 2 x 2: main effects of crowding and of novelty, and their interaction, paired by seed."""
    numbers: dict[str, Any] = {"n_trials": trials.height, "n_seeds": trials["seed"].n_unique()}
    for model in MODELS:
        rows = []
        for column in (*PRIMARY, "accuracy/low"):
            wide = of_model(trials, model).pivot(
                "complexity_ratio", index=("seed", "novelty_ratio"), values=column, aggregate_function="mean"
            )
            change = wide.with_columns((pl.col("1.0") - pl.col("0.0")).alias("change"))
            by_seed = change.pivot("novelty_ratio", index="seed", values=["change", "0.0", "1.0"]).sort("seed")
            crowding = (by_seed["change_0.0"] + by_seed["change_0.5"]) / 2
            novelty = (by_seed["0.0_0.5"] - by_seed["0.0_0.0"] + by_seed["1.0_0.5"] - by_seed["1.0_0.0"]) / 2
            both = by_seed["change_0.5"] - by_seed["change_0.0"]
            effects = {"crowding": crowding, "novelty": novelty, "interaction": both}
            rows.append({"outcome": column, **{k: student_interval(v.to_list()) for k, v in effects.items()}})
        numbers[model] = rows
    return numbers


PROBED = ("n_objects", "n_colours", "n_shapes", "dominant_colour", "size_mean", "spatial_spread")
"""Attributes in the page's table of probes; the figure has all."""


def probe_numbers(folder: Path) -> list[dict[str, Any]]:
    """What the mean vision token, single ones and the last text token tell of each attribute at half of the depth."""
    probes = pl.read_parquet(folder / "probes.parquet")
    rows = []
    for model in MODELS:
        table = by_kind(of_model(probes, model))
        tap = "decoder" if model == MODELS[0] else "cross_v"
        for attribute in PROBED:
            row: dict[str, Any] = {"model": model, "attribute": attribute}
            for kind, at in (("vision_mean", tap), ("vision_single", tap), ("last", "decoder")):
                own = table.filter(
                    (pl.col("position_kind") == kind) & (pl.col("tap") == at) & (pl.col("attribute") == attribute)
                )
                layers = sorted(own["layer"].unique().to_list())
                mid = own.filter(pl.col("layer") == layers[len(layers) // 2]) if layers else own
                row[kind] = {
                    c: mid[c].mean() for c in ("score", "baseline", "skill_beyond", "beyond_low", "beyond_high")
                }
            rows.append(row)
    return rows


def rival_numbers(folder: Path, budget: float = 0.25) -> list[dict[str, Any]]:
    """Accuracy at one budget by method, over all questions of a tier, with what it loses and the verdict."""
    table = pl.read_parquet(folder / "rivals.parquet").filter(
        (pl.col("family") == "all") & (pl.col("difficulty") == "all") & pl.col("accuracy").is_not_null()
    )
    at = table.filter((pl.col("budget") == budget) | (pl.col("method") == "all tokens"))
    return at.sort("model", "tier", "accuracy", descending=[True, True, True]).to_dicts()


def winner_numbers(folder: Path, budget: float = 0.25) -> list[dict[str, Any]]:
    """By family at one budget: the best method, and how many are not told apart from it."""
    ranks = pl.read_parquet(folder / "rival_ranks.parquet").filter(pl.col("budget") == budget)
    rows = []
    for (model, tier, family), own in ranks.group_by("model", "tier", "family", maintain_order=True):
        best = own.filter("best")
        if best.height:
            tied = own.filter(pl.col("tied") & ~pl.col("best")).sort("accuracy", descending=True)["method"].to_list()
            found = {"best": best["method"][0], "accuracy": best["accuracy"][0], "n_methods": own.height, "tied": tied}
            rows.append({"model": model, "tier": tier, "family": family, **found})
    return sorted(rows, key=lambda row: (MODELS.index(row["model"]), row["tier"] != "low"))


def route_numbers(folder: Path) -> list[dict[str, Any]]:
    """By route: the window of layers whose blocking takes most of the right answer's probability (of how many)."""
    routes = pl.read_parquet(folder / "routes.parquet").filter(pl.col("family") == "all")
    keys = ["model", "route", "tier"]
    rows = []
    for _, own in routes.group_by(keys, maintain_order=True):
        width = own["last_layer"] - own["first_layer"]
        whole, parts = own.filter(width == width.max()).row(0, named=True), own.filter(width < width.max())
        strongest = parts.sort("change").row(0, named=True) if parts.height else None
        rows.append({**whole, "strongest": strongest, "n_windows": parts.height})
    return rows


def lens_numbers(folder: Path) -> list[dict[str, Any]]:
    """By model, lens and tier: first layer whose last token has the right answer above its rivals half the time."""
    lens = pl.read_parquet(folder / "lens.parquet").filter((pl.col("family") == "all") & (pl.col("place") == "last"))
    rows = []
    for (model, kind, tier), own in lens.sort("layer").group_by("model", "lens", "tier", maintain_order=True):
        above = own.filter(pl.col("above") >= 0.5)
        first = above["layer"][0] if above.height else None
        rows.append(
            {
                "model": model,
                "lens": kind,
                "tier": tier,
                "first": first,
                "n_layers": own["layer"].max(),
                "last": own["above"][-1],
            }
        )
    return rows


def policy_numbers(folder: Path) -> list[dict[str, Any]]:
    """Policies on all questions of a tier: what they keep, what they lose, whether that is within the margin."""
    return pl.read_parquet(folder / "policy.parquet").filter(pl.col("family") == "all").to_dicts()


def plan_numbers(folder: Path) -> dict[str, Any]:
    """What the sweeps cost on models of the paper's size, with the card they are stated for."""
    rows = pl.read_parquet(folder / "plans.parquet").to_dicts()
    return {"rows": rows, "card": CARD[0].upper(), "n": CARD[1]}


COCO_FACTORS = ("n_objects", "n_categories", "area_mean", "area_spread", "spatial_spread")


def hours_from_nothing(runs: list[dict[str, Any]]) -> float:
    """Hours of all sweeps as their files have them, on two cores: those of each one's newest run there, by points."""
    hours = 0.0
    for sweep in (*SWEEPS, COCO[0]):
        there = [run for run in runs if run["sweep"] == sweep and run["hardware"].startswith("2 cores")]
        if there:
            words = COCO[1:] if sweep == COCO[0] else ()
            points = len(load_sweep(ROOT / "sweeps" / f"{sweep}.yaml", words).points)
            hours += there[-1]["hours"] * points / int(there[-1]["n"].split()[0])
    return hours


def numbers(folder: Path = FOLDER) -> dict[str, Any]:
    """Everything that the page's template may name; what was not run is none."""

    def where(table: str, count: Callable[[Path], Any]) -> Any:
        return count(folder) if (folder / f"{table}.parquet").exists() else None

    def trials(name: str) -> pl.DataFrame:
        return pl.read_parquet(folder / f"{name}_trials.parquet")

    return {
        "models": MODELS,
        "study": (runs := json.loads((folder / "study.json").read_text())),
        "hours": sum(run["hours"] for run in runs),
        "hours_from_nothing": hours_from_nothing(runs),
        "claims": claims_numbers(folder),
        "relations": relation_numbers(folder),
        "n_images": pl.read_parquet(folder / "layers.parquet")["n"].max(),
        "ratio": ratio_numbers(trials("ratio")),
        "novelty": where("novelty_trials", lambda _: novelty_numbers(trials("novelty"))),
        "probes": where("probes", probe_numbers),
        "rivals": where("rivals", rival_numbers),
        "winners": where("rival_ranks", winner_numbers),
        "routes": where("routes", route_numbers),
        "lens": where("lens", lens_numbers),
        "policies": where("policy", policy_numbers),
        "plans": where("plans", plan_numbers),
        "coco": where(
            "coco_relations", lambda f: at_half_depth(pl.read_parquet(f / "coco_relations.parquet"), COCO_FACTORS)
        ),
    }
