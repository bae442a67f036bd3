"""Copy what the published page needs out of finished studies into small tables."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import polars as pl

from orchestrator.errors import VtsweepError
from orchestrator.finetune.sweep_summary import contrasts, effect_of_ratio, outcome_by_seed
from orchestrator.report.hypotheses import HYPOTHESES, judge_hypotheses
from orchestrator.report.model import PointResults
from orchestrator.store.filesystem import Storage
from orchestrator.store.study_record import Study
from orchestrator.store.tables.core import TABLES

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "results"
SWEEPS = ("published_ratio", "published_novelty", "published_claims", "rivals", "routes", "ablation")
"""Sweeps that the page rests on."""
COCO = ("coco", "model.name=reference-joint,reference-cross")
"""The sweep over photographs; runs where a COCO folder is named."""
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


SMALL_TRIALS = (
    *("finetune.seed=0,1", "finetune.n_examples=64", "finetune.n_steps=4", "finetune.warmup_share=0.25"),
    *("finetune.n_eval_per_family=12", "finetune.n_capture_images=16"),
)
SMALL: dict[str, tuple[str, ...]] = {
    "published_ratio": SMALL_TRIALS,
    "published_novelty": SMALL_TRIALS,
    "published_claims": ("data.n_images=200", "ablate.n_per_family=12", "ablate.seeds=[0]"),
    "rivals": ("ablate.n_per_family=12", "ablate.seeds=[0]"),
    "routes": ("ablate.n_per_family=12",),
    "ablation": ("ablate.n_per_family=12", "ablate.seeds=[0]"),
    "coco": (),
}
"""Sizes of a rehearsal: the same sweeps and tables in minutes, from which nothing can be concluded."""


def newest(storage: str, name: str) -> str:
    """Folder of a study's newest version: a study run again with other settings is kept as ``NAME.v2`` and so on."""
    studies = Storage(f"{storage}/studies")
    versions = [name, *(f"{name}.v{k}" for k in range(2, 100))]
    return f"{storage}/studies/" + next((v for v in reversed(versions) if studies.exists(f"{v}/study.json")), name)


KEY = ("model", "complexity_ratio", "novelty_ratio", "seed")
"""What makes a trial of the published sweeps."""


def merged(table: pl.DataFrame, file: Path) -> pl.DataFrame:
    """Trials of this storage and those published before whose settings it lacks: seeds may run on several machines."""
    if file.exists():
        old = pl.read_parquet(file)
        rest = old.join(table, on=[c for c in KEY if c in old.columns and c in table.columns], how="anti")
        table = pl.concat([table, rest], how="diagonal_relaxed")
    return table.sort(c for c in KEY if c in table.columns)


def collect(storage: str, folder: Path = FOLDER) -> None:
    """Copy what the page needs of the ratio sweeps; what was not run is left as it is."""
    for name in ("published-ratio", "published-novelty"):
        try:
            trials = Study.load(newest(storage, name)).table("trials").collect()
        except VtsweepError as error:
            print(f"{name}: {error}")
            continue
        kept = [
            c for c in trials.columns if c in SETTINGS or (c.startswith(KEPT) and not c.endswith(("_low", "_high")))
        ]
        file = folder / f"{name.removeprefix('published-')}_trials.parquet"
        table = merged(whole_seeds(trials).select(kept), file)
        table.write_parquet(file, compression="zstd")
        print(f"{name}: {trials.height} trials here, {table.height} published")


def with_run(runs: Sequence[Mapping[str, Any]], run: Mapping[str, Any], *, whole: bool) -> list[Mapping[str, Any]]:
    """`runs` and one more: a sweep run whole replaces all that is told of it, any other what its commit gave."""
    replaced = ("sweep",) if whole else ("sweep", "commit")
    return [r for r in runs if any(r[key] != run[key] for key in replaced)] + [run]


def hours_of(study: Study) -> float:
    """Hours of work of a finished study.

    A killed run leaves no time in the record, but its finished trials do: their times, one trial a core, are the least
    that the sweep took.
    """
    seconds = dict(study.record["seconds"])
    if "finetune" in seconds:
        trials = study.table("trials").select("trial_seconds").collect()["trial_seconds"].sum()
        seconds["finetune"] = max(seconds["finetune"], trials / study.record["hardware"]["cores"])
    return float(sum(seconds.values())) / 3600


def collect_runs(storage: str, folder: Path = FOLDER) -> None:
    """Where, when and from which commit each finished sweep ran, by its study record, beside the runs told before."""
    file = folder / "study.json"
    runs = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    for sweep in (*SWEEPS, COCO[0]):
        try:
            study = Study.load(newest(storage, sweep.replace("_", "-")))
        except VtsweepError:
            continue
        record = study.record
        if "report" not in record["seconds"]:
            continue  # it is still running, or was stopped
        hardware, words = record["hardware"], record["command"].split()
        told = [w for w in words if "=" in w and not w.startswith(("storage=", "track.", "how.", "data.root="))]
        told = [word for word in told if word not in COCO]
        run = {
            "sweep": sweep,
            "n": f"{len(record['points'])} points" + (f", `{' '.join(told)}`" if told else ""),
            "hardware": f"{hardware['cores']} cores of an {hardware['processor']}".replace("(R)", ""),
            "date": datetime.fromisoformat(record["created"]).strftime("%-d %B %Y"),
            "commit": record["commit"][:7],
            "hours": round(hours_of(study), 2),
        }
        runs = with_run(runs, run, whole=not told)
    runs.sort(key=lambda r: [*SWEEPS, COCO[0]].index(r["sweep"]))
    file.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")


LAYER_METRICS = ("gini", "mean_cosine", "stable_rank_centred")
"""Headline metrics drawn by layer: one of each kind."""
FACTORS = ("n_objects", "size_mean", "size_spread", "n_colours", "n_shapes", "spatial_spread")
"""Factors that the default design varies independently."""


COPIED = {
    "probes": "published-claims",
    "deletion": "published-claims",
    "knockout": "published-claims",
    "rivals": "rivals",
    "rival_ranks": "rivals",
    "routes": "routes",
    "replacing": "routes",
    "lens": "routes",
    "policy": "ablation",
}
"""Table that is published whole -> its study."""
PLANNED = ("llava-1.5-7b", "qwen2.5-vl-7b", "molmo-7b-d", "llama-3.2-11b-vision")
"""Models of the paper's kind for which the page states what the same sweeps cost."""
CARD = ("h200", 8)
"""Card and number of cards of those plans."""


def vision_rows(model_tap: str = "tap") -> pl.Expr:
    """Rows on visual tokens where the decoder reads them: its own states, or the values that cross-attention reads."""
    return (pl.col("group") == "vision") & pl.col(model_tap).is_in(("decoder", "cross_v"))


def relations_of(study: Study) -> pl.DataFrame:
    """Rank correlations of the headline metrics on visual tokens."""
    wanted = pl.col("metric").is_in(LAYER_METRICS) & (pl.col("statistic") != "epsilon_squared")
    return study.table("correlations").filter(vision_rows() & wanted).collect()


def ratio_verdicts(folder: Path = FOLDER) -> list[pl.DataFrame]:
    """The two claims about training, by their rules, on the published trials of all machines together."""
    trials, judged = pl.read_parquet(folder / "ratio_trials.parquet"), []
    for model in MODELS:
        own = of_model(trials, model)
        effect = effect_of_ratio(outcome_by_seed(own, "accuracy/high"))
        absent = {n: pl.lit(None, c.dtype) for n, c in TABLES["trials"].columns.items() if n not in own.columns}
        point = PointResults(
            model, model, "scenes", 0, {},
            trials=own.with_columns(**absent),
            sweep={
                "contrasts": contrasts(own, PRIMARY).to_dicts(),
                "tiers": {"high": {"sufficient_ratio": effect.sufficient}},
            },
        )  # fmt: skip
        table = judge_hypotheses(point).filter(pl.col("hypothesis").is_in(("text_changes_more", "sufficient_ratio")))
        judged.append(table.with_columns(study=pl.lit("published-ratio"), model=pl.lit(model)))
    return judged


def collect_claims(storage: str, folder: Path = FOLDER) -> None:
    """Copy the verdicts on the paper's claims, compression by layer and its relations out of the finished studies."""
    verdicts = ratio_verdicts(folder)
    for name in ("published-claims", "coco"):
        try:
            text = Storage(f"{newest(storage, name)}/report").read("tables/hypotheses.csv")
        except (VtsweepError, FileNotFoundError) as error:
            print(f"{name}: {error}")
            continue
        judged = pl.read_csv(text, infer_schema_length=None).filter(pl.col("verdict") != "not measured")
        if name == "coco":
            judged = judged.filter(pl.col("hypothesis") == "diversity_and_size_spread")  # the one about photographs
        verdicts.append(judged.with_columns(study=pl.lit(name), model=pl.col("point").str.split(" ").list.first()))
    claims = pl.concat(verdicts, how="diagonal_relaxed")
    file = folder / "claims.parquet"
    if file.exists():
        rest = pl.read_parquet(file).join(claims, on=["hypothesis", "model"], how="anti")
        claims = pl.concat([claims, rest], how="diagonal_relaxed")
    order = pl.col("hypothesis").replace_strict({h.name: k for k, h in enumerate(HYPOTHESES)})
    claims.sort(order, pl.col("model") != MODELS[0]).write_parquet(file, compression="zstd")
    try:
        study = Study.load(newest(storage, "published-claims"))
        by_layer = study.table("layer_metrics").filter(vision_rows()).group_by("model", "layer")
        means = [pl.col(c).mean() for c in LAYER_METRICS]
        spreads = [pl.col(c).std().alias(f"{c}_sd") for c in LAYER_METRICS]
        layers = by_layer.agg(pl.len().alias("n"), *means, *spreads).sort("model", "layer").collect()
        relations = relations_of(study)
    except VtsweepError as error:
        print(f"published-claims: {error}")
        return
    layers.write_parquet(folder / "layers.parquet", compression="zstd")
    relations.write_parquet(folder / "relations.parquet", compression="zstd")


def collect_tokens(storage: str, folder: Path = FOLDER) -> None:
    """Copy what single tokens know and which of them the answers need: probes, deletion, rivals, routes, policies."""
    for table, name in COPIED.items():
        try:
            found = Study.load(newest(storage, name)).table(table).collect()
        except VtsweepError as error:
            print(f"{name}, {table}: {error}")
            continue
        if table == "routes":
            found = found.with_columns(route=pl.format("{} to {}", "source", "target"))
        found.write_parquet(folder / f"{table}.parquet", compression="zstd")
    try:
        relations = relations_of(Study.load(newest(storage, "coco")))
    except VtsweepError as error:
        print(f"coco: {error}")
        return
    relations.write_parquet(folder / "coco_relations.parquet", compression="zstd")


def collect_plans(folder: Path = FOLDER) -> None:
    """What the two published sweeps cost on models of the paper's size, by `vtsweep plan`: no weights are needed."""
    rows = []
    for model in PLANNED:
        for sweep in ("published_ratio", "published_claims"):
            words = [f"model.name={model}", "model.trust_remote_code=true", "--gpu", CARD[0], "--gpus", str(CARD[1])]
            command = [sys.executable, "-m", "orchestrator", "plan", f"{ROOT}/sweeps/{sweep}.yaml", *words, "--json"]
            # the exit code tells whether this machine could hold it; the plan for the card is there either way
            said = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT).stdout
            plan = json.loads(said)
            rate, seconds = plan["card"]["rates"][0], plan["card"]["seconds"]
            kept = {"images_per_s": rate["images_per_s"], "memory_gb": rate["memory_gb"], "fits": rate["fits"]}
            hours = {"hours": seconds / 3600, "gpu_hours": CARD[1] * seconds / 3600}
            rows.append({"model": model, "sweep": sweep, "points": plan["points"], **kept, **hours})
    pl.DataFrame(rows).write_parquet(folder / "plans.parquet", compression="zstd")


def of_model(table: pl.DataFrame, model: str) -> pl.DataFrame:
    """The rows of one model."""
    return table.filter(pl.col("model") == model)
