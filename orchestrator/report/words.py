"""The summary at the top of the page: findings as sentences with numbers and intervals."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from orchestrator.probes.summary import redundancy
from orchestrator.report.benchmark_words import deletion_figures
from orchestrator.report.causal_views import over_seeds, whole_image, windows, without_knockout
from orchestrator.report.claims import claims, design
from orchestrator.report.model import PointResults, StudyResults, distinct_points, merged_trials, missing_trials
from orchestrator.report.probe_views import first_layers, vision_tap, with_skill
from orchestrator.report.ratio_words import ratio_statements
from orchestrator.report.statement import Statement, interval, number, percent
from orchestrator.report.style import name_of
from orchestrator.stats.power import correlation_detectable

MOST_ATTRIBUTES = 4
"""Maximum number of attribute findings listed; the rest is one line."""


def summary(results: StudyResults) -> list[tuple[str, list[Statement]]]:
    """(heading, statements): populations, then each point with statements, then each model's trials."""
    parts = [("What the statements hold for", list(_populations(results)))]
    parts += [(f"{p.label}: the studied paper's claims", claims(p)) for p in distinct_points(results.points)]
    parts += [(p.label, [*design(p), *_findings(p), *_probes(p), *_deletion(p), *_yes(p), *_knockout(p), *_patching(p)])
             for p in distinct_points(results.points)]  # fmt: skip
    sweeps = {p.model: p.sweep for p in results.points if p.sweep}
    for model, trials in merged_trials(results.points).items():
        parts.append((f"{model}, complexity ratio", list(ratio_statements(trials, sweeps.get(model, {})))))
    return [(heading, statements) for heading, statements in parts if statements]


def _populations(results: StudyResults) -> Iterator[Statement]:
    """Model, images, prompt and trials that the statements apply to, and the number of finished trials."""
    for model, (n_done, n_planned) in missing_trials(results.points).items():
        yield Statement(
            f"{n_done} of {n_planned} trials of {model} are finished: statements about training are of these alone.",
            "the others are running, failed or not begun; write the report again when they are done",
            topic="population",
        )
    for point in distinct_points(results.points):
        if point.population:
            yield Statement(
                f"{point.label}: {point.population}.", "other models, images and prompts may differ", topic="population"
            )
    for text, evidence in dict.fromkeys(p.training for p in results.points if p.training[0]):
        yield Statement(f"Trials: {text}.", evidence, topic="population")


def _findings(point: PointResults) -> Iterator[Statement]:
    if point.findings is None or point.findings.is_empty():
        return
    rows = point.findings.to_dicts()
    claims = [r for r in rows if r["claim"] != "attribute"]
    attributes = [r for r in rows if r["claim"] == "attribute"]
    supported = [r for r in attributes if r["holds"] == "supported"]
    for row in [*claims, *supported[:MOST_ATTRIBUTES]]:
        yield Statement(_readable(row["statement"], point), _evidence(row), row["holds"], "compression")
    rest = len(supported) - MOST_ATTRIBUTES
    unsure = sum(r["holds"] == "undecided" for r in attributes)
    absent = sum(r["holds"] == "equivalent to nothing" for r in attributes)
    if attributes:
        yield Statement(
            f"Of {len(attributes)} further relations with image attributes {len(supported)} are supported, {unsure} "
            f"are undecided at this number of images and {absent} are equivalent to nothing.",
            (f"{rest} more supported ones are in the table of findings" if rest > 0 else "see the table of findings")
            + "; verdicts pay for the number of relations, intervals hold by themselves",
            topic="compression",
        )
    if point.images is not None and (least := correlation_detectable(point.images.height)) is not None:
        yield Statement(
            f"{point.images.height} images cannot settle a correlation below {number(least)}: what is not found may be "
            "there and smaller.",
            "smallest absolute correlation seen with 80 % power at 5 %, one test alone",
            topic="power",
        )


def _readable(statement: str, point: PointResults) -> str:
    """`statement` with attribute keys replaced by display names."""
    words = [name_of(w) if w in point.attribute_kinds else w for w in statement.replace(")", " )").split(" ")]
    return re.sub(r"(?<=[ (\[])-(?=\d)", "−", " ".join(words).replace(" )", ")")) + "."


def _evidence(row: Mapping[str, Any]) -> str:
    effect = f"{row['effect_name']}: {number(row['effect'])} {interval(row['ci_low'], row['ci_high'])}"
    agreement = row.get("agreement")
    share = "" if agreement is None else f"; {percent(agreement)} of metric and layer pairs agree"
    return f"{effect}, n = {row['n']}{share}"


def _probes(point: PointResults) -> Iterator[Statement]:
    if point.probes is None or point.probes.is_empty():
        return
    text = first_layers(point.probes).filter(pl.col("position_kind") == "text_mean")
    readable = text.filter(pl.col("first_layer").is_not_null()).sort("first_layer")
    if text.height:
        by_layer = readable.group_by("first_layer", maintain_order=True).agg(pl.col("attribute"))
        listed = "; ".join(f"layer {k}: {', '.join(name_of(a) for a in names)}" for k, names in by_layer.iter_rows())
        yield Statement(
            f"A linear probe reads {readable.height} of {text.height} attributes from the text tokens.",
            f"first of {max(text['n_layers'].to_list(), default=0)} layers at which the interval clears baseline and "
            "shuffled control: "
            f"{listed or 'none'}",
            topic="probes",
        )
        yield from _beyond(point.probes, text)
    count = with_skill(point.probes).filter(
        (pl.col("attribute") == "n_objects")
        & (pl.col("solver") == "ridge")
        & (pl.col("tap") == vision_tap(point.probes))
        & pl.col("score").is_not_null()
    )
    single, mean = (count.filter(pl.col("position_kind") == k) for k in ("vision_single", "vision_mean"))
    if single.height and mean.height:
        by_layer = single.group_by("layer").agg(pl.col("score").mean()).sort("score")
        layer = by_layer["layer"][-1]
        of_layer, first = (single.filter(pl.col("layer") == at) for at in (layer, single["layer"].min()))
        best_mean = mean.filter(pl.col("layer") == layer)
        if best_mean.height:
            row = best_mean.row(0, named=True)
            near = redundancy(pl.concat([of_layer, best_mean]), shares=(0.9,))["reached"]
            reached = f", {percent(near[0])} of which reach 90 % of that" if len(near) else ""
            before = (
                f"; single tokens at layer {first['layer'][0]}: {_range(first)}" if layer > first["layer"][0] else ""
            )
            yield Statement(
                f"Single vision tokens at layer {layer} predict the number of objects with R² from "
                f"{_range(of_layer)}, their mean with {number(row['score'])}.",
                f"layer of the best mean score of {by_layer.height}; {of_layer.height} places{reached}; "
                f"mean token {interval(row['ci_low'], row['ci_high'])}, "
                f"{row['n_test']} held-out images{before}",
                topic="probes",
            )


def _beyond(probes: pl.DataFrame, text: pl.DataFrame) -> Iterator[Statement]:
    """Attributes that text tokens encode given the covariates."""
    judged = text.filter(pl.col("skill_beyond").is_not_null()).sort("skill_beyond", descending=True)
    held = next(iter(probes["beyond"].drop_nulls()), None)
    if held is None or judged.is_empty():
        return
    clear = judged.filter(pl.col("beyond_low") > 0)
    listed = "; ".join(
        f"{name_of(r['attribute'])} {number(r['skill_beyond'])} {interval(r['beyond_low'], r['beyond_high'])}"
        for r in judged.to_dicts()
    )
    yield Statement(
        f"Among images alike in {name_of(held)}, text tokens still tell {clear.height} of {judged.height} numeric "
        "attributes apart.",
        "rank correlation of held-out predictions with the truth, at the layer of the best score of "
        f"{max(text['n_layers'].to_list(), default=0)}: {listed}",
        topic="probes",
    )


def _range(probes: pl.DataFrame) -> str:
    return f"{number(probes['score'].min())} to {number(probes['score'].max())}"  # type: ignore[arg-type]


def _deletion(point: PointResults) -> Iterator[Statement]:
    if point.deletion is None or point.deletion.is_empty():
        return
    table = over_seeds(point.deletion).filter(
        (pl.col("checkpoint") == "base") & (pl.col("layer") == 0) & (pl.col("method") == "random")
    )
    table = table.drop_nulls(["accuracy", "ci_low", "ci_high"])
    losses = []
    for (family, tier), part in table.group_by("family", "tier", maintain_order=True):
        rows = part.sort("deleted_share").to_dicts()
        half = next((r for r in rows if r["deleted_share"] >= 0.5), None)
        full = rows[0]
        if full["deleted_share"] > 0 or half is None or full["ci_low"] <= rows[-1]["ci_high"]:
            continue  # accuracy with all tokens is no higher than with the fewest tokens
        kept = max((r["deleted_share"] for r in rows if r["ci_high"] >= full["accuracy"]), default=0.0)
        losses.append((half["accuracy"] / full["accuracy"], f"{name_of(str(family))} ({tier} tier)", full, half, kept))
    losses.sort(key=lambda t: t[0])
    for (_, question, full, half, kept), words in zip(
        losses[:1] + losses[1:][-1:], ("falls first", "survives longest"), strict=False
    ):
        yield Statement(
            f"Under random deletion of visual tokens {question} {words}: {percent(full['accuracy'])} with all tokens, "
            f"{percent(half['accuracy'])} with {percent(half['deleted_share'])} deleted.",
            f"of {len(losses)} kinds of question with something to lose; "
            f"{interval(half['ci_low'], half['ci_high'], percent)}, n = {half['n']}; its interval reaches the full "
            f"accuracy up to {percent(kept)} deleted",
            topic="deletion",
        )


def _yes(point: PointResults) -> Iterator[Statement]:
    if point.deletion is not None and not point.deletion.is_empty():
        yield from (Statement(text, rest, topic="deletion") for text, rest in deletion_figures(point.deletion))


def _knockout(point: PointResults) -> Iterator[Statement]:
    if point.knockout is None or point.knockout.is_empty():
        return
    base = point.knockout.filter((pl.col("checkpoint") == "base") & pl.col("accuracy").is_not_null())
    plain, blocked = without_knockout(base), windows(base)
    width = pl.col("last_layer") - pl.col("first_layer")
    blocked = blocked.filter(width == width.min())  # blocking all layers has the largest effect and locates nothing
    if plain.is_empty() or blocked.is_empty():
        return
    loss = (
        blocked.join(plain.select("family", "tier", pl.col("accuracy").alias("whole")), on=["family", "tier"])
        .group_by("first_layer", "last_layer")
        .agg((pl.col("whole") - pl.col("accuracy")).mean().alias("loss"), pl.col("n").sum())
        .sort("loss", descending=True)
    )
    worst, mildest = loss.row(0, named=True), loss.row(-1, named=True)
    if loss.height == 1:
        yield Statement(
            f"Blocking the attention of text to vision in layers {worst['first_layer']} to {worst['last_layer']} costs "
            f"{number(100 * worst['loss'], 0)} points of accuracy on average.",
            f"the only window of layers: no place to compare it with; mean over families and tiers, "
            f"{worst['n']} questions",
            topic="knock-out",
        )
        return
    yield Statement(
        f"Text reads vision most in layers {worst['first_layer']} to {worst['last_layer']}: blocking its attention "
        f"there costs {number(100 * worst['loss'], 0)} points of accuracy on average.",
        f"the largest loss of {loss.height} windows of layers; "
        f"least: layers {mildest['first_layer']} to {mildest['last_layer']}, "
        f"{number(100 * mildest['loss'], 0)} points; mean over families and tiers, {worst['n']} questions",
        topic="knock-out",
    )


def _patching(point: PointResults) -> Iterator[Statement]:
    if point.patching is None or point.patching.is_empty():
        return
    usable = (pl.col("checkpoint") == "base") & pl.col("flip_share").is_not_null()
    base = whole_image(point.patching).filter(usable).sort("layer")
    depths, evidence = [], []
    for (attribute,), part in base.group_by(["attribute"], maintain_order=True):
        name = name_of(str(attribute))
        first = part.row(0, named=True)
        half: Any = part.filter(pl.col("flip_share") >= 0.5)["layer"].max()
        depths.append(f"up to layer {half} for {name}" if half is not None else f"at no layer for {name}")
        shown = interval(first["ci_low"], first["ci_high"], percent)
        evidence.append(f"{name}: {percent(first['flip_share'])} {shown} at layer {first['layer']}, n = {first['n']}")
    if depths:
        text = (
            f"With vision states of another scene put in place at least half of the answers flip {', '.join(depths)}."
        )
        yield Statement(text, "; ".join(evidence), topic="patching")
