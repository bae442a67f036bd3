"""Summary of a finished stage: the values of MLflow charts and of the closing table on the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from orchestrator.compression.depth import THIRDS, third_expression
from orchestrator.compression.registry import METRICS
from orchestrator.config import RunConfig, StageName
from orchestrator.correlate import consensus
from orchestrator.report.causal_views import narrow_routes
from orchestrator.report.probe_views import vision_tap
from orchestrator.store.study_record import View

HEADLINE = (
    "gini",
    "participation_ratio_share",
    "stable_rank_centred",
    "spectral_participation_centred",
    "mean_cosine",
)
"""Metrics on the terminal: two of norms, two of rank, one of similarity."""


@dataclass(frozen=True)
class Summary:
    """Flat parameters, a few grouped metrics, curves of (step, value), and tables with all values.

    The step is a layer, an optimiser step or a percentage.
    """

    params: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    tables: dict[str, pl.DataFrame] = field(default_factory=dict)


def summarise(name: StageName, view: View) -> Summary:
    """The summary of one finished stage."""
    makers = {
        "capture": _capture,
        "correlate": _correlate,
        "probe": _probe,
        "finetune": _finetune,
        "ablate": _ablate,
    }
    result = makers.get(name, _numbers_of)(view)
    clean = {k: v for k, v in result.metrics.items() if v is not None and math.isfinite(v)}
    params = {**run_params(name, view.run), **result.params}
    return Summary(params, clean, {k: _finite(v) for k, v in result.curves.items()}, result.tables)


def _numbers_of(view: View) -> Summary:
    """Summary of a kind of stage without its own: the numbers of `Stage.mark_done`."""
    numbers = view.stage.summary().items()
    return Summary(metrics={key: float(value) for key, value in numbers if isinstance(value, int | float)})


def run_params(name: StageName, run: RunConfig) -> dict[str, Any]:
    """Parameters of a stage's run that are known before it finishes."""
    data = run.data
    params: dict[str, Any] = {"model": run.model.label, "data": data.source, "data_seed": data.seed}
    if data.n_images is not None:
        params["n_images"] = data.n_images
    if name == "finetune":
        tune = run.finetune
        params |= {"complexity_ratio": tune.complexity_ratio, "seed": tune.seed, "method": tune.method}
        language = tune.language
        params |= {"lora_rank": language.rank, "learning_rate": language.learning_rate, "n_steps": tune.n_steps}
    return params


def _finite(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    return [(step, value) for step, value in points if value is not None and math.isfinite(value)]


def metric_columns(frame: pl.LazyFrame | pl.DataFrame) -> list[str]:
    """The metric columns of a `layer_metrics` table, built-in ones first."""
    columns = frame.collect_schema().names()
    fixed = {"point", "model", "source", "image_id", "tap", "layer", "group", "n_tokens"}
    return [m for m in METRICS if m in columns] + [c for c in columns if c not in METRICS and c not in fixed]


def layer_means(view: View) -> pl.DataFrame:
    """Mean over images of each metric, by tap, layer and group."""
    frame = view.stage.scan("layer_metrics")
    means = [pl.col(m).fill_nan(None).mean() for m in metric_columns(frame)]
    return frame.group_by("tap", "layer", "group").agg(*means).sort("tap", "group", "layer").collect()


def depth_means(view: View) -> pl.DataFrame:
    """Mean over images and layers of each metric by depth third of the decoder, for each group."""
    means = layer_means(view).filter(pl.col("tap") == main_tap(view))
    n_points = int(means["layer"].max() or 0) + 1  # type: ignore[arg-type]
    columns = [pl.col(m).mean() for m in metric_columns(means)]
    order = pl.col("third").replace_strict({t: i for i, t in enumerate(THIRDS)}, return_dtype=pl.Int8)
    return (
        means.with_columns(third=third_expression(n_points))
        .group_by("group", "third")
        .agg(*columns)
        .sort("group", order)
    )


def main_tap(view: View, group: str = "vision") -> str:
    """The main tap of a group (`consensus.main_tap`) in a finished capture."""
    tap = consensus.main_tap(view.stage.scan("layer_metrics").select("tap", "layer", "group").unique().collect(), group)
    assert tap is not None, f"capture {view.stage.digest} holds no {group} tokens"
    return tap


def _capture(view: View) -> Summary:
    means = layer_means(view)
    metrics: dict[str, float] = {}
    curves: dict[str, list[tuple[int, float]]] = {}
    for (tap, group), rows in means.group_by(["tap", "group"], maintain_order=True):
        # `_` sorts after `/`, so MLflow's page shows the decoder first
        prefix = f"compression/{group}" if tap == "decoder" else f"compression_{tap}/{group}"
        for metric in (m for m in HEADLINE if m in rows.columns and rows.height > 1):
            curves[f"{prefix}/{metric}"] = list(zip(rows["layer"].to_list(), rows[metric].to_list(), strict=True))
    for row in depth_means(view).iter_rows(named=True):
        for metric in HEADLINE:
            if metric in row:
                metrics[f"compression/{row['group']}/{metric}/{row['third']}"] = row[metric]
    images = view.stage.scan("images").select(pl.len()).collect().item()
    return Summary({"images_captured": images}, metrics, curves, {"layer_means": means})


def strongest_correlations(view: View, n: int = 3) -> pl.DataFrame:
    """The `n` strongest significant Spearman correlations of vision tokens, at most one per attribute.

    Without attributes derived from several factors of a design, whose correlations reflect the factors.
    """
    pairs = view.stage.scan("attribute_correlations").collect()
    derived = {row[k] for row in pairs.to_dicts() for k in ("first", "second") if row[f"{k}_role"] == "derived"}
    return (
        view.stage.scan("correlations")
        .filter(~pl.col("attribute").is_in(sorted(derived)))
        .filter((pl.col("group") == "vision") & (pl.col("statistic") == "spearman") & (pl.col("q") < 0.05))
        .sort(pl.col("rho").abs(), descending=True)
        .unique(["metric", "attribute"], keep="first", maintain_order=True)
        .unique("attribute", keep="first", maintain_order=True)
        .head(n)
        .collect()
    )


def _correlate(view: View) -> Summary:
    best = strongest_correlations(view, 10)
    chosen = best.select("attribute", "metric", "tap")
    frame = view.stage.scan("correlations").filter((pl.col("statistic") == "spearman") & (pl.col("group") == "vision"))
    curves = {
        f"rho/{attribute}/{metric}" + ("" if tap == "decoder" else f"/{tap}"): list(
            zip(rows["layer"].to_list(), rows["rho"].to_list(), strict=True)
        )
        for (tap, attribute, metric), rows in frame.join(chosen.lazy(), on=chosen.columns, how="semi")
        .sort("layer")
        .collect()
        .group_by(["tap", "attribute", "metric"], maintain_order=True)
    }
    metrics = {f"rho_strongest/{row['attribute']}": row["rho"] for row in best.iter_rows(named=True)}
    metrics["rho_strongest_of"] = frame.select(pl.len()).collect().item()
    return Summary({}, metrics, curves)


def _probe(view: View) -> Summary:
    frame = view.stage.scan("probes").filter(pl.col("score").is_not_null()).sort("layer").collect()
    curves: dict[str, list[tuple[int, float]]] = {}
    summary_positions = frame.filter(pl.col("position").is_in(["vision_mean", "text_mean", "last"]))
    decoder = summary_positions.filter((pl.col("position") != "last") & (pl.col("tap") == vision_tap(frame)))
    linear = decoder.filter(pl.col("solver").is_in(["ridge", "logistic"]))
    for (tap, attribute, position, solver), rows in (linear if linear.height else decoder).group_by(
        ["tap", "attribute", "position", "solver"], maintain_order=True
    ):
        name = f"probe/{attribute}/{position}/{solver}" + ("" if tap == "decoder" else f"/{tap}")
        curves[name] = list(zip(rows["layer"].to_list(), rows["score"].to_list(), strict=True))
    best = summary_positions.filter(pl.col("tap") != "encoder").group_by("attribute").agg(pl.col("score").max())
    pixels = frame.filter(pl.col("tap") == "pixels").group_by("attribute").agg(pl.col("score").max())
    tried = summary_positions.filter(pl.col("tap") != "encoder").group_by("attribute").len()
    metrics = {"probe_best_of": float(tried["len"].max() or 0)} if tried.height else {}  # type: ignore[arg-type]
    metrics |= {f"probe_best/{a}": s for a, s in best.iter_rows()} | {
        f"probe_pixels/{a}": s for a, s in pixels.iter_rows()
    }
    search = view.stage.summary().get("search", {})
    metrics |= {f"probe_search/{name}": search[name] for name in ("skill", "held_out") if name in search}
    settings = ("solver", "positions", "penalty", "standardise", "width", "depth", "learning_rate")
    return Summary({f"probe_search_{k}": search[k] for k in settings if k in search}, metrics, curves)


def _finetune(view: View) -> Summary:
    row = view.stage.scan("trials").collect().row(0, named=True)
    metrics = {k: float(v) for k, v in row.items() if isinstance(v, int | float) and _shown(k)}
    steps = view.stage.scan("training").select("step", "loss").sort("step").collect()
    loss = thinned([(step + 1, value) for step, value in steps.iter_rows()], view.run.finetune.n_steps)
    return Summary({}, metrics, {"loss": loss})


def thinned(losses: Sequence[tuple[int, float]], n_steps: int) -> list[tuple[int, float]]:
    """At most about 500 of a trial's (steps done, loss): fixed steps, and the last."""
    stride = -(-n_steps // 500)
    return [(step, loss) for step, loss in losses if step % stride == 0 or step == n_steps]


_OUTCOMES = {"accuracy": 2, "gain": 1, "score": 1, "accuracy_base": 1, "blind": 1, "count_error": 1, "drift": 2}
"""Kind of column -> maximum number of further parts in the name of a metric."""


def _shown(column: str) -> bool:
    """Whether a column of `trials` becomes an MLflow metric: named outcomes, and headline metrics of compression.

    The table with every column is logged as an artifact.
    """
    kind, *rest = column.split("/")
    if column in ("final_loss", "trial_seconds"):
        return True
    if column.endswith(("_low", "_high")):  # ends of intervals
        return False
    if kind == "delta":
        return len(rest) == 3 and rest[1] in HEADLINE
    return 0 < len(rest) <= _OUTCOMES.get(kind, 0)


def _ablate(view: View) -> Summary:
    metrics: dict[str, float] = {}
    curves: dict[str, list[tuple[int, float]]] = {}
    tables = view.stage.store.files("")
    if "deletion" in tables:
        frame = view.stage.scan("deletion").filter(pl.col("layer") == 0).collect()
        keys, right = ["method", "tier"], (pl.col("accuracy") * pl.col("n")).sum() / pl.col("n").sum()
        mean = frame.group_by([*keys, "deleted_share"]).agg(accuracy=right).sort("deleted_share")
        for (method, tier), rows in mean.group_by(keys, maintain_order=True):
            percent = [round(100 * s) for s in rows["deleted_share"].to_list()]
            curves[f"deletion/{method}/{tier}"] = list(zip(percent, rows["accuracy"].to_list(), strict=True))
    if "rivals" in tables:
        overall = (pl.col("family") == "all") & (pl.col("difficulty") == "all") & pl.col("accuracy").is_not_null()
        frame = view.stage.scan("rivals").filter(overall).sort("budget").collect()
        for (method, tier), rows in frame.group_by(["method", "tier"], maintain_order=True):
            percent = [round(100 * b) for b in rows["budget"].to_list()]
            name = str(method).replace(" ", "_")
            curves[f"rivals/{name}/{tier}"] = list(zip(percent, rows["accuracy"].to_list(), strict=True))
    if "knockout" in tables:
        width = pl.col("last_layer") - pl.col("first_layer")
        frame = view.stage.scan("knockout").filter(pl.col("last_layer") >= 0).sort("first_layer").collect()
        for (family, tier), rows in frame.filter(width == width.max()).group_by(["family", "tier"]):
            metrics[f"knockout_everywhere/{tier}/{family}"] = rows["accuracy"][0]
        frame = frame.filter(width == width.min())
        for (family, tier), rows in frame.group_by(["family", "tier"], maintain_order=True):
            curves[f"knockout/{tier}/{family}"] = list(
                zip(rows["first_layer"].to_list(), rows["accuracy"].to_list(), strict=True)
            )
    if "routes" in tables:
        overall = (pl.col("family") == "all") & pl.col("change").is_not_null()
        frame = narrow_routes(view.stage.scan("routes").filter(overall).sort("first_layer").collect())
        for (source, target, tier), rows in frame.group_by(["source", "target", "tier"], maintain_order=True):
            points = zip(rows["first_layer"].to_list(), rows["change"].to_list(), strict=True)
            curves[f"routes/{source}_to_{target}/{tier}"] = list(points)
    if "lens" in tables:
        frame = view.stage.scan("lens").filter(pl.col("family") == "all").sort("layer").collect()
        for (lens, place, tier), rows in frame.group_by(["lens", "place", "tier"], maintain_order=True):
            points = zip(rows["layer"].to_list(), rows["above"].to_list(), strict=True)
            curves[f"lens/{lens}/{place}/{tier}"] = list(points)
    if "patching" in tables:
        frame = view.stage.scan("patching").sort("layer").collect()
        for (attribute, place), rows in frame.group_by(["attribute", "place"], maintain_order=True):
            curves[f"patching/{attribute}" + ("" if place == "image" else f"/{place}")] = list(
                zip(rows["layer"].to_list(), rows["flip_share"].to_list(), strict=True)
            )
    if "policy" in tables:
        for row in view.stage.scan("policy").filter(pl.col("family") == "all").collect().iter_rows(named=True):
            name = f"policy/{row['policy']}/{row['tier']}"
            metrics |= {f"{name}/{key}": row[key] for key in ("accuracy", "difference", "kept_share", "gflop_share")}
    return Summary({}, metrics, curves)
