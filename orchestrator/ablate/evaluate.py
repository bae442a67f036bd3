"""Evaluation of a policy on new questions: all tokens, the policy's rules, and rivals that delete as many tokens.

    vtsweep evaluate --policy results/ablate/DIGEST/policy.yaml sweeps/ablation.yaml

This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from orchestrator.ablate.ablate_stage import VERSION, subject_of
from orchestrator.ablate.identity import checkpoint_of, described, is_own_model, weights_of
from orchestrator.ablate.policy import with_layer_share
from orchestrator.ablate.policy_file import load_policy
from orchestrator.ablate.questions import make_questions
from orchestrator.config import AdaptiveRule, PolicyFile, PolicyRule, RunConfig
from orchestrator.errors import ConfigError
from orchestrator.stats.intervals import clustered_share
from orchestrator.stats.paired import paired_difference
from orchestrator.stats.verdict import non_inferiority
from orchestrator.store.resolved_point import ResolvedPoint, distinct
from orchestrator.store.stage_folder import Stage
from orchestrator.store.tables.core import check_table

if TYPE_CHECKING:
    from orchestrator.ablate.bench import Bench


@dataclass(frozen=True)
class Treatment:
    """Deletion applied to one question; a share of 0 keeps all tokens."""

    method: str = "random"
    layer: int = 0
    deleted_share: float = 0.0


def evaluate_points(points: Sequence[ResolvedPoint], file: str) -> list[tuple[RunConfig, Stage]]:
    """Evaluate a policy on the points with the model that it was chosen on; finished evaluations are reused.

    Raises:
        ConfigError: the policy cannot be read, or no point has its model.
    """
    policy = load_policy(file)
    matching = [point for point in points if is_own_model(policy, point.run)]
    if not matching:
        models = [p.run.model for p in points]
        models_found = sorted({described(m.name, checkpoint_of(m), weights_of(m)) for m in models})
        raise ConfigError(
            f"policy {file!r} was chosen on {described(policy.model, policy.checkpoint, policy.weights)}; the sweep has"
            f" {', '.join(models_found)}. A policy says nothing of another model: ablate that one."
        )
    todo = distinct([point.with_stages(evaluation_stage(point, policy)) for point in matching], "evaluate")
    return [(point.run, run_evaluation(point, policy)) for point in todo]


def evaluation_stage(point: ResolvedPoint, policy: PolicyFile) -> Stage:
    """The directory of an evaluation, without work."""
    keys = (
        "source",
        "complexity",
        "low_families",
        "high_families",
        "n_objects_low",
        "n_objects_high",
        "n_per_family",
        "instruction",
        "seed",
    )
    question_settings = {key: value for key, value in point.run.ablate.model_dump(mode="json").items() if key in keys}
    rules = policy.model_dump(mode="json", include={"fixed", "adaptive", "selector_settings"})
    identity = {"version": VERSION, **subject_of(point), "asked": question_settings, "policy": rules}
    return Stage(point.storage, "evaluate", identity)


def run_evaluation(point: ResolvedPoint, policy: PolicyFile) -> Stage:
    """Evaluate all systems in this process and write table `evaluation`; does nothing if the stage is done."""
    run, stage = point.run, point.stages["evaluate"]
    if stage.is_done():
        return stage
    from orchestrator.ablate.bench import Bench
    from orchestrator.ablate.runner import load_model

    stage.open()
    examples = make_questions(run, fresh=True)
    config = run.ablate
    bench = Bench(load_model(run), examples, run.how.batch_size, config.instruction, policy.selector_settings)
    table = evaluate(bench, policy)
    stage.write_shard(0, {"evaluation": table})
    stage.mark_done({"questions": len(examples), "model": run.model.label, "policy_model": policy.model})
    return stage


def evaluate(bench: Bench, policy: PolicyFile) -> pl.DataFrame:
    """Table `evaluation`: all tokens, the policy's fixed and adaptive rules, and rivals.

    Rivals delete as much as the fixed rules: at random at the same layers, or by downsampling the image. `seconds` does
    not include the measurement of an adaptive rule's metric, which takes a forward pass of its own here.
    """
    from orchestrator.answers.evaluate import figures

    fixed = [_fixed(policy.fixed, a.question.tier, a.question.family) for a in bench.examples]
    systems = {"all tokens": [Treatment() for _ in fixed], "fixed": fixed}
    if policy.adaptive:
        systems["adaptive"] = _adaptive(bench, policy.adaptive)
    systems["random"] = [Treatment("random", t.layer, t.deleted_share) for t in fixed]
    systems["downsample"] = [Treatment("downsample", 0, t.deleted_share) for t in fixed]
    bench.keeping([0.5] * len(fixed), "random", numbers=range(min(bench.batch_size, len(fixed))))  # warms up
    rows: list[dict[str, Any]] = []
    plain: list[bool] = []
    for system, treatments in systems.items():
        correct, kept, gflop, seconds, predicted = _apply(bench, treatments)
        present = _present(bench, treatments, kept)
        plain = plain or correct.tolist()
        for tier, family, numbers in bench.scopes():
            images = [bench.examples[i].question.cluster for i in numbers]
            before, margin = np.array(plain)[numbers], policy.max_accuracy_loss
            rows.append(_row(system, tier, family, correct[numbers], before, images, margin))
            rows[-1] |= figures([bench.examples[i] for i in numbers], [predicted[i] for i in numbers])
            rows[-1] |= {
                "kept_tokens": float(kept[numbers].mean()),
                "kept_share": float(present[numbers].mean()),
                "seconds": float(seconds[numbers].mean()),
                "gflop": float(gflop[numbers].mean()),
            }
    return check_table(pl.DataFrame(rows, infer_schema_length=None), "evaluation")


def _apply(
    bench: Bench, treatments: Sequence[Treatment]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Per question under its treatment: correct, tokens kept, operations (1e9), seconds and answer."""
    from orchestrator.ablate.runner import gflop

    n = len(treatments)
    correct, kept, seconds = np.zeros(n, dtype=bool), np.zeros(n, dtype=np.int64), np.zeros(n)
    predicted = [""] * n
    costs = np.zeros(n)
    kinds = [(t.method, t.layer) if t.deleted_share else ("", 0) for t in treatments]
    for method, layer in dict.fromkeys(kinds):
        numbers = [i for i, kind in enumerate(kinds) if kind == (method, layer)]
        if method:
            answered = bench.keeping([t.deleted_share for t in treatments], method, layer=layer, numbers=numbers)
        else:
            answered = bench.unchanged(numbers)
        correct[numbers], kept[numbers] = answered.correct, answered.kept
        seconds[numbers] = answered.seconds / len(numbers)
        for i, text in zip(numbers, answered.predicted, strict=True):
            predicted[i] = text
        costs[numbers] = [gflop(bench, i, method or "random", answered.stages(k)) for k, i in enumerate(numbers)]
    return correct, kept, costs, seconds, predicted


def _fixed(rules: Sequence[PolicyRule], tier: str | None, family: str) -> Treatment:
    """The rule of a family, else that of its tier, else no deletion."""
    for name in (family, "all"):
        for rule in rules:
            if rule.tier == tier and rule.family == name:
                return Treatment(rule.method, rule.layer, rule.deleted_share)
    return Treatment()


def _adaptive(bench: Bench, rules: Sequence[AdaptiveRule]) -> list[Treatment]:
    """Treatment of each question by the metric of its image, measured on the projected tokens."""
    from orchestrator.ablate.runner import image_metrics

    names = sorted({rule.metric for rule in rules})
    frame = image_metrics(bench, {("projector", 0): "projector"}, names)
    values = {row["question_id"]: row for row in frame.iter_rows(named=True)}
    by_scope = {(rule.tier, rule.family): rule for rule in rules}
    treatments = []
    for item in bench.examples:
        rule = by_scope.get((item.question.tier or "", item.question.family))
        if rule is None:
            treatments.append(Treatment())
            continue
        share = rule.share_at(values[item.question.question_id][rule.metric])
        treatments.append(Treatment(rule.method, 0, share))
    return treatments


def _present(bench: Bench, treatments: Sequence[Treatment], kept: np.ndarray) -> np.ndarray:
    """Share of visual tokens present for each question, mean over the layers that read them."""
    from orchestrator.ablate.runner import n_tokens

    frame = pl.DataFrame(
        {
            "layer": [t.layer if t.deleted_share else 0 for t in treatments],
            "kept_tokens": kept,
            "n_vision": [n_tokens(bench, i)[0] for i in range(len(treatments))],
        }
    )
    reading = getattr(bench.adapter, "cross_layers", range(bench.adapter.n_layers))
    return with_layer_share(frame, list(reading))["layer_share"].to_numpy()


def _row(
    system: str,
    tier: str | None,
    family: str,
    correct: np.ndarray,
    plain: np.ndarray,
    images: Sequence[str],
    margin: float,
) -> dict[str, Any]:
    share = clustered_share(correct, images)
    change = paired_difference(correct, plain, images)
    return {
        "system": system,
        "tier": tier,
        "family": family,
        "accuracy": share.value,
        "ci_low": share.low,
        "ci_high": share.high,
        "difference": change.value,
        "difference_low": change.low,
        "difference_high": change.high,
        "margin": margin,
        "verdict": "" if system == "all tokens" else non_inferiority(change.low, change.high, margin),
        "n": len(correct),
    }
