"""Reproduce the published study: ``python -m jobs.results`` redraws `docs/results` from its tables, in seconds.

``python -m jobs.results run STORAGE`` runs all sweeps (hours), ``collect STORAGE`` extracts small tables for the page
from the finished studies. The page is a template filled from these tables: none of its numbers is written by hand.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, StrictUndefined

from orchestrator.errors import VtsweepError
from orchestrator.finetune.sweep_summary import contrasts, effect_of_ratio, outcome_by_seed
from orchestrator.stats.intervals import student_interval
from orchestrator.stats.pareto import pareto_front
from orchestrator.store.filesystem import Storage
from orchestrator.store.study_record import Study

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "results"
SWEEPS = ("published_ratio", "published_novelty", "published_claims")
MODELS = ("reference-joint", "reference-cross")
FAMILIES = ("colour", "shape", "existence", "count", "count_by_attribute", "comparison", "relation", "point")
PRIMARY = ("drift/vision/late", "delta/vision/stable_rank_centred/middle", "accuracy/high")
"""Outcomes named before the sweep ran: the defaults of `finetune.primary`."""
KEPT = (
    *("accuracy/", "accuracy_base/", "accuracy_generated/", "valid_share/", "blind/", "count_error", "point_distance"),
    *("drift/vision", "drift/text", "delta/vision/stable_rank_centred", "delta/vision/gini", "delta/text/stable_rank"),
    *("compression/vision/stable_rank_centred", "compression/vision/gini", "compression/text/stable_rank"),
    *("asked/high/delta/vision/stable_rank_centred", "asked/low/delta/vision/stable_rank_centred"),
)
"""Columns of table `trials` that are published, by their beginning."""
SETTINGS = ("model", "complexity_ratio", "novelty_ratio", "seed", "status", "n_steps", "n_examples", "train_flops")


def whole_seeds(trials: pl.DataFrame) -> pl.DataFrame:
    """Trials of the seeds that are finished at every setting, so that every cell has the same seeds."""
    cells = trials.group_by("seed").len()
    complete = cells.filter(pl.col("len") == cells["len"].max())["seed"]
    return trials.filter(pl.col("seed").is_in(complete.implode()))


def newest(storage: str, name: str) -> str:
    """Folder of a study's newest version: a study run again with other settings is kept as ``NAME.v2`` and so on."""
    studies = Storage(f"{storage}/studies")
    versions = [name, *(f"{name}.v{k}" for k in range(2, 100))]
    return f"{storage}/studies/" + next((v for v in reversed(versions) if studies.exists(f"{v}/study.json")), name)


def collect(storage: str) -> None:
    """Extract the page's tables from the finished studies in a storage folder; tables of other studies are
    unchanged."""
    for name in ("published-ratio", "published-novelty"):
        try:
            trials = Study.load(newest(storage, name)).table("trials").collect()
        except VtsweepError as error:
            print(f"{name}: {error}")
            continue
        kept = [
            c for c in trials.columns if c in SETTINGS or (c.startswith(KEPT) and not c.endswith(("_low", "_high")))
        ]
        table = whole_seeds(trials).select(kept).sort("model", "complexity_ratio", "novelty_ratio", "seed")
        table.write_parquet(FOLDER / f"{name.removeprefix('published-')}_trials.parquet", compression="zstd")
        print(f"{name}: {table.height} of {trials.height} trials, those of seeds finished everywhere")


LAYER_METRICS = ("gini", "mean_cosine", "stable_rank_centred")
"""Metrics shown by layer: one of each kind."""
FACTORS = ("n_objects", "size_mean", "size_spread", "n_colours", "n_shapes", "spatial_spread")
"""Factors that the default design varies independently."""


def collect_claims(storage: str) -> None:
    """Extract verdicts on the paper's claims, compression by layer and its relations from the finished studies."""
    verdicts = []
    for name in ("published-claims", "published-ratio"):
        try:
            text = Storage(f"{newest(storage, name)}/report").read("tables/hypotheses.csv")
        except (VtsweepError, FileNotFoundError) as error:
            print(f"{name}: {error}")
            continue
        rows = pl.read_csv(text, infer_schema_length=None).filter(pl.col("verdict") != "not measured")
        verdicts.append(rows.with_columns(study=pl.lit(name), model=pl.col("point").str.split(" ").list.first()))
    if verdicts:
        pl.concat(verdicts, how="diagonal_relaxed").write_parquet(FOLDER / "claims.parquet", compression="zstd")
    try:
        study = Study.load(newest(storage, "published-claims"))
        vision = (pl.col("group") == "vision") & pl.col("tap").is_in(("decoder", "cross_v"))
        by_layer = study.table("layer_metrics").filter(vision).group_by("model", "layer")
        means = [pl.col(c).mean() for c in LAYER_METRICS]
        spreads = [pl.col(c).std().alias(f"{c}_sd") for c in LAYER_METRICS]
        layers = by_layer.agg(pl.len().alias("n"), *means, *spreads).sort("model", "layer").collect()
        selected = pl.col("metric").is_in(LAYER_METRICS) & (pl.col("statistic") != "epsilon_squared")
        relations = study.table("correlations").filter(vision & selected).collect()
    except VtsweepError as error:
        print(f"published-claims: {error}")
        return
    layers.write_parquet(FOLDER / "layers.parquet", compression="zstd")
    relations.write_parquet(FOLDER / "relations.parquet", compression="zstd")


def claims_numbers(folder: Path) -> list[dict[str, Any]]:
    """Verdicts by claim, in the order of the rules."""
    table = pl.read_parquet(folder / "claims.parquet")
    names = table["hypothesis"].unique(maintain_order=True).to_list()
    return [
        {
            "name": n,
            **table.filter(pl.col("hypothesis") == n).row(0, named=True),
            "rows": table.filter(pl.col("hypothesis") == n).to_dicts(),
        }
        for n in names
    ]


def relation_numbers(folder: Path) -> list[dict[str, Any]]:
    """Rank correlations of each headline metric with the designed factors at half of the depth.

    Plain correlation for the number of objects; for the other factors, conditional on the number of objects.
    """
    table = pl.read_parquet(folder / "relations.parquet")
    count, plain = pl.col("attribute") == "n_objects", pl.col("statistic") == "spearman"
    told = table.filter(pl.col("attribute").is_in(FACTORS) & (count == plain))
    rows = []
    for model in MODELS:
        own = of_model(told, model)
        layers = sorted(own["layer"].unique().to_list())
        for metric in LAYER_METRICS:
            at = own.filter((pl.col("layer") == layers[len(layers) // 2]) & (pl.col("metric") == metric))
            rows += at.sort(pl.col("attribute") != "n_objects", "attribute").to_dicts()
    return rows


def of_model(trials: pl.DataFrame, model: str) -> pl.DataFrame:
    """The trials of one model."""
    return trials.filter(pl.col("model") == model)


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


FIGURES: dict[str, tuple[str, Callable[[pl.DataFrame, Path], None]]] = {
    "headline.png": ("ratio_trials.parquet", draw_headline),
    "ratio_accuracy.png": ("ratio_trials.parquet", draw_ratio),
    "ratio_states.png": ("ratio_trials.parquet", draw_states),
    "layers.png": ("layers.parquet", draw_layers),
}
"""Figure -> its table and the function that draws it."""


def numbers(folder: Path = FOLDER) -> dict[str, Any]:
    """All variables of the page's template."""
    return {
        "models": MODELS,
        "study": json.loads((folder / "study.json").read_text()),
        "claims": claims_numbers(folder),
        "relations": relation_numbers(folder),
        "n_images": pl.read_parquet(folder / "layers.parquet")["n"].max(),
        "ratio": ratio_numbers(pl.read_parquet(folder / "ratio_trials.parquet")),
        "novelty": novelty_numbers(pl.read_parquet(novelty))
        if (novelty := folder / "novelty_trials.parquet").exists()
        else None,
    }


SHORT = """\
With {{ first|share }} of the training scenes crowded instead of none, `reference-joint` counts right in \
{{ j[1].mean|percent }} of crowded scenes instead of {{ j[0].mean|percent }}, and `reference-cross` in \
{{ c[1].mean|percent }} instead of {{ c[0].mean|percent }}; with all of them crowded, in \
{{ j[-1].mean|percent }} and {{ c[-1].mean|percent }}. At one half nothing of counting in simple scenes is lost \
({{ jl[-2].mean|percent }} and {{ cl[-2].mean|percent }}); at all it falls to {{ jl[-1].mean|percent }} and \
{{ cl[-1].mean|percent }}. The visual tokens hardly notice: their centred stable rank in the middle layers \
changes by {{ jr.effect|signed }} ({{ jr.ci_low|signed }} to {{ jr.ci_high|signed }}; {{ jr.verdict }}) and \
{{ cr.effect|signed }} ({{ cr.ci_low|signed }} to {{ cr.ci_high|signed }}; {{ cr.verdict }}).
"""
"""The finding in three sentences: opens the page and the project's README."""
MARKS = ("<!-- published study: written by python -m jobs.results -->\n", "<!-- end -->")


def environment() -> Environment:
    """Filters of the templates: shares as per cent, signed differences."""
    found = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    found.filters["percent"] = lambda value: f"{100 * value:.1f} %"
    found.filters["share"] = lambda value: f"{100 * value:g} %"
    found.filters["signed"] = lambda value, digits=3: "-" if value is None else f"{value:+.{digits}f}"
    return found


def short(folder: Path = FOLDER) -> str:
    """The finding in three sentences."""
    ratio = ratio_numbers(pl.read_parquet(folder / "ratio_trials.parquet"))
    values: dict[str, Any] = {"first": ratio["ratios"][1]}
    for letter, model in zip("jc", MODELS, strict=True):
        count = next(f for f in ratio[model]["families"] if f["family"] == "count")
        values |= {letter: count["high"]["rows"], f"{letter}l": count["low"]["rows"]}
        values[f"{letter}r"] = next(p for p in ratio[model]["primary"] if "stable_rank" in p["outcome"])
    return environment().from_string(SHORT).render(**values)


def readme(text: str, folder: Path = FOLDER) -> str:
    """The project's README with the finding between its marks."""
    before, rest = text.split(MARKS[0])
    return before + MARKS[0] + short(folder) + MARKS[1] + rest.split(MARKS[1], 1)[1]


def page(folder: Path = FOLDER) -> str:
    """The page, filled from the tables."""
    template = (folder / "README.md.j2").read_text(encoding="utf-8")
    return environment().from_string(template).render(short=short(folder), **numbers(folder))


def write() -> None:
    """Draw every figure and write the page."""
    for name, (table, draw) in FIGURES.items():
        draw(pl.read_parquet(FOLDER / table), FOLDER / name)
    (FOLDER / "README.md").write_text(page(), encoding="utf-8")
    top = ROOT / "README.md"
    top.write_text(readme(top.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {FOLDER / 'README.md'} and {len(FIGURES)} figures")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", nargs="?", choices=["run", "collect"], help="omit to draw the page from its tables")
    parser.add_argument("storage", nargs="?", default="results", help="storage folder of the studies")
    arguments = parser.parse_args()
    if arguments.action == "run":
        from orchestrator.cli.app import main as vtsweep

        for sweep in SWEEPS:
            vtsweep(["run", str(ROOT / "sweeps" / f"{sweep}.yaml"), f"storage={arguments.storage}"])
    if arguments.action in ("run", "collect"):
        collect(arguments.storage)
        collect_claims(arguments.storage)
    write()


if __name__ == "__main__":
    main()
