"""Figures of the published page, each drawn from one published table."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from jobs.published.tables import LAYER_METRICS, MODELS, of_model
from orchestrator.finetune.sweep_summary import effect_of_ratio, outcome_by_seed


def draw_ratio(trials: pl.DataFrame, file: Path) -> None:
    """Accuracy by ratio: every seed a dot, the mean a line with its interval, base and blind level as lines."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    from orchestrator.report.style import CONTROL_COLOUR, FAMILY_COLOURS

    ratios = sorted(trials["complexity_ratio"].unique().to_list())
    place = {ratio: i for i, ratio in enumerate(ratios)}
    shown = ("count", "count_by_attribute", "shape", "comparison")
    figure, axes = plt.subplots(2, len(shown), figsize=(12, 5.6), sharex=True, sharey=True)
    for line, model in zip(axes, MODELS, strict=True):
        model_trials = of_model(trials, model)
        for axis, family in zip(line, shown, strict=True):
            for tier, style, colour in (("high", "-", FAMILY_COLOURS[family]), ("low", ":", "#333333")):
                column = f"accuracy/{tier}/{family}"
                effect = effect_of_ratio(outcome_by_seed(model_trials, column)).table
                x = [place[r] for r in effect["complexity_ratio"]]
                axis.plot(x, effect["mean"], style, color=colour, lw=2, label=f"{tier} tier")
                if tier == "high":
                    low, high = (effect[c].fill_null(effect["mean"]) for c in ("ci_low", "ci_high"))
                    axis.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)
                    axis.scatter(
                        [place[r] for r in model_trials["complexity_ratio"]],
                        model_trials[column],
                        s=7,
                        color=colour,
                        alpha=0.5,
                    )
            axis.axhline(
                model_trials[f"accuracy_base/high/{family}"][0], color=CONTROL_COLOUR, lw=1, ls="--", label="high, base"
            )
            axis.axhline(
                model_trials[f"blind/high/{family}"][0], color=CONTROL_COLOUR, lw=1, ls=":", label="high, blind"
            )
            axis.set(ylim=(-0.02, 1.02), title=f"{family.replace('_', ' ')}" if model == MODELS[0] else "")
            axis.set_xticks(range(len(ratios)), [f"{r:g}" for r in ratios])
            axis.grid(alpha=0.25)
        line[0].set_ylabel(f"{model}\nshare of questions right")
    for axis in axes[1]:
        axis.set_xlabel("share of crowded scenes in training")
    axes[0][0].legend(fontsize=8, loc="center right")
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    plt.close(figure)


def draw_effect(
    axis: Any, own: pl.DataFrame, column: str, scale: float = 1.0, *, style: str = "-", dots: bool = True, **look: Any
) -> None:
    """Draw one outcome by ratio: mean over seeds times ``scale``, its 95 % interval as a band, seeds as dots."""
    effect = effect_of_ratio(outcome_by_seed(own, column)).table
    place = {ratio: i for i, ratio in enumerate(effect["complexity_ratio"])}
    low, high = (scale * effect[c].fill_null(effect["mean"]) for c in ("ci_low", "ci_high"))
    axis.plot(list(place.values()), scale * effect["mean"], style, lw=2, **look)
    axis.fill_between(list(place.values()), low, high, color=look["color"], alpha=0.2, lw=0)
    if dots:
        x = [place[r] for r in own["complexity_ratio"]]
        axis.scatter(x, scale * own[column], s=7, color=look["color"], alpha=0.5)
    axis.set_xticks(list(place.values()), [f"{r:g}" for r in place])
    axis.grid(alpha=0.25)


def draw_states(trials: pl.DataFrame, file: Path) -> None:
    """What happens to the representation: drift of late vision states, and the change of the centred stable rank."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    from orchestrator.report.style import SERIES_COLOURS

    panels = {
        "drift/vision/late": "relative drift of late vision states",
        "delta/vision/stable_rank_centred/middle": "change of centred stable rank,\nmiddle vision states",
        "accuracy/high": "share right, crowded scenes",
        "accuracy/low": "share right, simple scenes",
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(13, 3.4))
    for axis, (column, label) in zip(axes, panels.items(), strict=True):
        for model, colour in zip(MODELS, SERIES_COLOURS, strict=False):
            draw_effect(axis, of_model(trials, model), column, color=colour, label=model)
        axis.set(ylabel=label, xlabel="share of crowded scenes in training")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    plt.close(figure)


def draw_layers(layers: pl.DataFrame, file: Path) -> None:
    """Compression of visual tokens by decoder layer: mean over images, band of one standard deviation."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    from orchestrator.report.style import SERIES_COLOURS

    figure, axes = plt.subplots(1, len(LAYER_METRICS), figsize=(11, 3.3))
    for axis, metric in zip(axes, LAYER_METRICS, strict=True):
        for model, colour in zip(MODELS, SERIES_COLOURS, strict=False):
            model_layers = of_model(layers, model)
            axis.plot(model_layers["layer"], model_layers[metric], "o-", ms=4, color=colour, lw=2, label=model)
            spread = model_layers[f"{metric}_sd"]
            axis.fill_between(
                model_layers["layer"],
                model_layers[metric] - spread,
                model_layers[metric] + spread,
                color=colour,
                alpha=0.15,
                lw=0,
            )
        axis.set(xlabel="decoder layer (0 = input)", title=metric.replace("_", " "))
        axis.grid(alpha=0.25)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    plt.close(figure)


def draw_headline(trials: pl.DataFrame, file: Path) -> None:
    """Counting over the ratio beside what happens to the representation, for the first screen."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    from orchestrator.report.style import SERIES_COLOURS

    rank = "vision/stable_rank_centred/middle"
    ratios = sorted(trials["complexity_ratio"].unique().to_list())
    figure, (counts, change) = plt.subplots(1, 2, figsize=(9.6, 3.7))
    for model, colour in zip(MODELS, SERIES_COLOURS, strict=False):
        model_trials = of_model(trials, model)
        model_trials = model_trials.with_columns(
            relative=100 * pl.col(f"delta/{rank}") / (pl.col(f"compression/{rank}") - pl.col(f"delta/{rank}"))
        )
        for axis, column, style in (
            (counts, "accuracy/high/count", "-"),
            (counts, "accuracy/low/count", ":"),
            (change, "relative", "-"),
        ):
            tier = "" if axis is change else ", crowded scenes" if style == "-" else ", simple scenes"
            scale = 1 if axis is change else 100
            draw_effect(
                axis, model_trials, column, scale, style=style, dots=style == "-", color=colour, label=model + tier
            )
    change.axhspan(-5, 5, color="#6E6E6E", alpha=0.12, lw=0, label="below the smallest effect of interest")
    counts.set(ylim=(-2, 102), ylabel="%", title="Counting questions answered right")
    change.set(ylim=(-10, 10), ylabel="%", title="Change of the centred stable rank\nof visual tokens, middle layers")
    for axis in (counts, change):
        axis.set_xticks(range(len(ratios)), [f"{100 * r:g} %" for r in ratios])
        axis.set_xlabel("share of crowded scenes in the training mixture")
        axis.legend(fontsize=8, loc="lower right" if axis is counts else "upper left")
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    plt.close(figure)


def draw_by_report(name: str) -> Callable[[pl.DataFrame, Path], None]:
    """A figure of the report, one model above the other, drawn from the published table."""

    def draw(table: pl.DataFrame, file: Path) -> None:
        from PIL import Image

        from orchestrator.report import figures

        parts = []
        for model in MODELS:
            own = of_model(table, model)
            words = {"tap": "decoder" if model == MODELS[0] else "cross_v"} if name == "probe_heat_figure" else {}
            if own.height:
                picture = getattr(figures, name)(own, model, **words)
                buffer = io.BytesIO()
                picture.savefig(buffer, dpi=110, format="png")
                parts.append(Image.open(buffer).convert("RGB"))
        whole = Image.new("RGB", (max(p.width for p in parts), sum(p.height for p in parts)), "white")
        for k, part in enumerate(parts):
            whole.paste(part, (0, sum(p.height for p in parts[:k])))
        whole.quantize(64).save(file, optimize=True)

    return draw


FIGURES: dict[str, tuple[str, Callable[[pl.DataFrame, Path], None]]] = {
    "headline.png": ("ratio_trials.parquet", draw_headline),
    "ratio_accuracy.png": ("ratio_trials.parquet", draw_ratio),
    "ratio_states.png": ("ratio_trials.parquet", draw_states),
    "layers.png": ("layers.parquet", draw_layers),
    "probes.png": ("probes.parquet", draw_by_report("probe_heat_figure")),
    "deletion.png": ("deletion.parquet", draw_by_report("deletion_figure")),
    "knockout.png": ("knockout.parquet", draw_by_report("knockout_figure")),
    "rivals.png": ("rival_ranks.parquet", draw_by_report("rank_figure")),
    "routes.png": ("routes.parquet", draw_by_report("routes_figure")),
    "lens.png": ("lens.parquet", draw_by_report("lens_figure")),
}
"""Figure -> the table it is drawn from, and what draws it."""
