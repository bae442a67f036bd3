"""The ablation stage: one shard per cell, then tables `policy`, `link` and `rivals` and the file `policy.yaml`.

`work` is the unit of work and of resume. `run_ablate` runs the cells in order in this process, `ablate/ray.py` in Ray
actors. This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from orchestrator.ablate.cells import Cell, list_cells, unmet
from orchestrator.ablate.identity import chosen_on
from orchestrator.ablate.link import adaptive_policy, link_table, most_accurate_method, needed_shares
from orchestrator.ablate.policy import choose_rules, judge_rules, policy_text, with_layer_share
from orchestrator.ablate.questions import make_questions
from orchestrator.ablate.rivals import rank_table, rival_table
from orchestrator.config import AdaptiveRule, PolicyFile, RunConfig
from orchestrator.data.templates import question_fingerprint
from orchestrator.errors import StageError
from orchestrator.models.catalogue import resolve
from orchestrator.progress import Progress
from orchestrator.store.resolved_point import ResolvedPoint
from orchestrator.store.stage_folder import Stage
from orchestrator.store.tables.core import TABLES, check_table, rejected_rows

if TYPE_CHECKING:
    from orchestrator.ablate.runner import Ablation

VERSION = 10
"""Raised whenever equal inputs would give other values; part of the digest."""
POLICY_FILE = "policy.yaml"


def ablate_stage(point: ResolvedPoint) -> Stage:
    """The directory of an ablation, without work."""
    config, subject = point.run.ablate, subject_of(point)
    if packages := point.packages_of("selectors", (*config.methods, *config.inside_methods, *config.rivals)):
        subject["selectors"] = packages
    if "link" in config.checks and (packages := point.packages_of("metrics")):
        subject["metrics_of"] = packages
    return Stage(point.storage, "ablate", {"version": VERSION, **subject, "ablate": config.model_dump(mode="json")})


def subject_of(point: ResolvedPoint) -> dict[str, Any]:
    """What identifies model, questions and images."""
    return {"model": point.model, "questions": question_fingerprint(), "images": point.ablated}


def open_ablation(run: RunConfig, stage: Stage) -> list[Cell]:
    """Write the stage's plan, or read the existing one; returns the stage's cells."""
    from orchestrator.models.known_config import read_config
    from orchestrator.models.stacks import cross_layers, decoder_stack

    config = read_config(resolve(run.model))
    plan = stage.open({"n_layers": decoder_stack(config).layers, "cross_layers": cross_layers(config)})
    return list_cells(run.ablate, plan["n_layers"], plan["cross_layers"])


def unfinished(stage: Stage, cells: list[Cell]) -> list[int]:
    """Indices of the cells without a complete shard."""
    finished = stage.finished_shards()
    return [i for i in range(len(cells)) if i not in finished]


def work(ablation: Ablation, stage: Stage, index: int, cell: Cell) -> None:
    """Ask one cell's questions and write its shard."""
    stage.write_shard(index, ablation.tables(cell), extra={"cell": cell.as_json()})


def run_ablate(point: ResolvedPoint, *, quiet: bool = False) -> Stage:
    """Run the unfinished cells in this process; does nothing if the stage is done.

    Raises:
        VtsweepError: model, data or settings are unsuitable; finished cells are kept.
    """
    run, stage = point.run, point.stages["ablate"]
    if stage.is_done():
        return stage
    cells = open_ablation(run, stage)
    pending = unfinished(stage, cells)
    if pending:
        from orchestrator.ablate.runner import Ablation, load_model

        title, n_done = f"ablate {run.model.label}", len(cells) - len(pending)
        with Progress(title, len(cells), "cells", done=n_done, quiet=quiet, about=stage.digest) as progress:
            ablation = Ablation(load_model(run), run)
            for i in pending:
                work(ablation, stage, i, cells[i])
                progress.advance(note=cells[i].label)
    return finish(run, stage, cells)


def finish(run: RunConfig, stage: Stage, cells: list[Cell]) -> Stage:
    """Write the tables that need all cells (policy, link, rivals, rejected rows) and mark the stage done.

    Raises:
        StageError: a cell has no complete shard.
    """
    if missing := set(range(len(cells))) - set(stage.finished_shards()):
        raise StageError(f"ablate: {len(missing)} of {len(cells)} cells are not whole in storage; run again")
    config, summary = run.ablate, {"cells": len(cells)}
    if {"policy", "link"} & set(config.checks):
        plan = stage.open()
        reading = plan["cross_layers"] or list(range(plan["n_layers"]))
        answers = with_layer_share(stage.scan("deletion_answers").collect(), reading)
        tables, policy = draw_policy(run, answers, _metrics(stage, cells))
        text = {} if policy is None else {POLICY_FILE: policy_text(policy, tables["policy"]).encode()}
        stage.write_shard(len(cells), tables, files=text)
        summary |= {"rules": tables["policy"].height, "links": tables["link"].height}
    if "rivals" in config.checks:
        plan = stage.open()
        tables = draw_rivals(run, stage.scan("rival_answers").collect(), plan["n_layers"], plan["cross_layers"])
        stage.write_shard(len(cells) + int("rules" in summary), tables)
        summary |= {"rivals": tables["rivals"].height}
    if config.source == "questions":
        rejected: list[tuple[int, str, str]] = []
        make_questions(run, rejected=rejected)
        place = len(cells) + sum(name in summary for name in ("rules", "rivals"))
        stage.write_shard(place, {"ablate_rejected": rejected_rows(rejected, "ablate_rejected")})
        summary |= {"rejected_rows": len(rejected)}
    stage.mark_done(summary)
    return stage


def _metrics(stage: Stage, cells: list[Cell]) -> pl.DataFrame | None:
    return stage.scan("question_metrics").collect() if any(cell.check == "metrics" for cell in cells) else None


def draw_rivals(
    run: RunConfig, answers: pl.DataFrame, n_layers: int, cross_layers: Sequence[int]
) -> dict[str, pl.DataFrame]:
    """Tables `rivals` and `rival_ranks`; a setting that could not be measured has a row in `rivals` with the reason."""
    config = run.ablate
    reasons = [(m, b, unmet(m, n_layers, cross_layers, b)) for m in config.rivals for b in config.budgets]
    missing = [
        {"method": m, "budget": b, "tier": tier, "family": "all", "difficulty": "all", "reason": reason}
        for m, b, reason in reasons
        if reason
        for tier in answers["tier"].unique(maintain_order=True)
    ]
    rows = rival_table(answers, config.max_accuracy_loss)
    rows = pl.concat([rows, pl.DataFrame(missing, schema_overrides={"budget": pl.Float64})], how="diagonal_relaxed")
    return {"rivals": check_table(rows, "rivals"), "rival_ranks": check_table(rank_table(answers), "rival_ranks")}


def draw_policy(
    run: RunConfig, answers: pl.DataFrame, metrics: pl.DataFrame | None
) -> tuple[dict[str, pl.DataFrame], PolicyFile | None]:
    """Tables `policy` and `link`, and the content of `policy.yaml` (None without rules).

    Args:
        answers: table `deletion_answers` with `layer_share`.
        metrics: table `question_metrics`; None if check `link` is not requested.
    """
    config = run.ablate
    rules = choose_rules(answers, config.max_accuracy_loss)
    policy, links = [judge_rules(answers, rules, config.max_accuracy_loss)], []
    adaptive: list[AdaptiveRule] = []
    for (tier,), part in answers.group_by(["tier"], maintain_order=True) if metrics is not None else ():
        method = most_accurate_method(part)
        if method is None or metrics is None:
            continue
        links.append(link_table(needed_shares(part, method), metrics, method))
        tier_rules, rows = adaptive_policy(part, metrics, str(tier), method, config.max_accuracy_loss)
        adaptive += tier_rules
        policy.append(rows)
    tables = {"policy": _joined(policy, "policy"), "link": _joined(links, "link")}
    if not rules:
        return tables, None
    file = PolicyFile(
        **chosen_on(run),
        selector_settings=config.selector_settings,
        max_accuracy_loss=config.max_accuracy_loss,
        fixed=tuple(rules),
        adaptive=tuple(adaptive),
    )
    return tables, file


def _joined(frames: list[pl.DataFrame], table: str) -> pl.DataFrame:
    filled = [frame for frame in frames if frame.height]
    if not filled:
        return pl.DataFrame(schema={c: spec.dtype for c, spec in TABLES[table].columns.items()})
    return check_table(pl.concat(filled, how="diagonal_relaxed"), table)
