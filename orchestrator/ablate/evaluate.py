"""A policy applied: fresh questions asked with all tokens, under the policy's rules, and under its rivals.

    vtsweep evaluate --policy results/ablate/DIGEST/policy.yaml sweeps/ablation.yaml

Importing this module imports no torch.
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
    """What is done for one question; a share of 0 leaves all tokens."""

    method: str = "random"
    layer: int = 0
    deleted_share: float = 0.0


def evaluate_points(points: Sequence[ResolvedPoint], file: str) -> list[tuple[RunConfig, Stage]]:
    """Evaluate a policy on the points whose model it was chosen on; what is done already is found again.

    Raises:
        ConfigError: the policy cannot be read, or no point has its model.
    """
    policy = load_policy(file)
    own = [point for point in points if is_own_model(policy, point.run)]
    if not own:
        models = [p.run.model for p in points]
        found = sorted({described(m.name, checkpoint_of(m), weights_of(m)) for m in models})
        raise ConfigError(
            f"policy {file!r} was chosen on {described(policy.model, policy.checkpoint, policy.weights)}; the sweep has"
            f" {', '.join(found)}. A policy says nothing of another model: ablate that one."
        )
    todo = distinct([point.with_stages(evaluation_stage(point, policy)) for point in own], "evaluate")
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
    asked = {key: value for key, value in point.run.ablate.model_dump(mode="json").items() if key in keys}
    rules = policy.model_dump(mode="json", include={"fixed", "adaptive", "selector_settings"})
    what = {"version": VERSION, **subject_of(point), "asked": asked, "policy": rules}
    return Stage(point.storage, "evaluate", what)


def run_evaluation(point: ResolvedPoint, policy: PolicyFile) -> Stage:
    """Ask all systems in this process and write table `evaluation`; does nothing when it is done."""
    run, stage = point.run, point.stages["evaluate"]
    if stage.is_done():
        return stage
    from orchestrator.ablate.bench import Bench
    from orchestrator.ablate.runner import load_model

    stage.open()
    asked = make_questions(run, fresh=True)
    config = run.ablate
    bench = Bench(load_model(run), asked, run.how.batch_size, config.instruction, policy.selector_settings)
    table = evaluate(bench, policy)
    stage.write_shard(0, {"evaluation": table})
    stage.mark_done({"questions": len(asked), "model": run.model.label, "policy_model": policy.model})
    return stage


def evaluate(bench: Bench, policy: PolicyFile) -> pl.DataFrame:
    """Table `evaluation`: all tokens, the policy's fixed and adaptive rules, and as many tokens given up by rivals.

    Rivals follow the fixed rules: random deletion at the same layers, and downsampling of the image by as much. The
    time of measuring an adaptive rule's metric is not in `seconds`: here it takes a pass of its own.
    """
    from orchestrator.answers.evaluate import figures

    fixed = [_fixed(policy.fixed, a.question.tier, a.question.family) for a in bench.asked]
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
        for tier, family, numbers in _scopes(bench):
            images = [bench.asked[i].question.cluster for i in numbers]
            before, margin = np.array(plain)[numbers], policy.max_accuracy_loss
            rows.append(_row(system, tier, family, correct[numbers], before, images, margin))
            rows[-1] |= figures([bench.asked[i] for i in numbers], [predicted[i] for i in numbers])
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
    """Right or wrong, tokens kept, operations (1e9), seconds and answer of each question under its own treatment."""
    from orchestrator.ablate.runner import gflop

    n = len(treatments)
    correct, kept, seconds = np.zeros(n, dtype=bool), np.zeros(n, dtype=np.int64), np.zeros(n)
    predicted = [""] * n
    costs = np.zeros(n)
    kinds = [(t.method, t.layer) if t.deleted_share else ("", 0) for t in treatments]
    for method, layer in dict.fromkeys(kinds):
        numbers = [i for i, kind in enumerate(kinds) if kind == (method, layer)]
        if method:
            found = bench.keeping([t.deleted_share for t in treatments], method, layer=layer, numbers=numbers)
        else:
            found = bench.unchanged(numbers)
        correct[numbers], kept[numbers] = found.correct, found.kept
        seconds[numbers] = found.seconds / len(numbers)
        for i, text in zip(numbers, found.predicted, strict=True):
            predicted[i] = text
        costs[numbers] = [gflop(bench, i, method or "random", found.stages(k)) for k, i in enumerate(numbers)]
    return correct, kept, costs, seconds, predicted


def _fixed(rules: Sequence[PolicyRule], tier: str | None, family: str) -> Treatment:
    """The rule of a family, else that of its tier, else nothing."""
    for name in (family, "all"):
        for rule in rules:
            if rule.tier == tier and rule.family == name:
                return Treatment(rule.method, rule.layer, rule.deleted_share)
    return Treatment()


def _adaptive(bench: Bench, rules: Sequence[AdaptiveRule]) -> list[Treatment]:
    """What each question's image asks for by its metric, measured on its projected tokens."""
    from orchestrator.ablate.runner import image_metrics

    names = sorted({rule.metric for rule in rules})
    frame = image_metrics(bench, {("projector", 0): "projector"}, names)
    values = {row["question_id"]: row for row in frame.iter_rows(named=True)}
    by_scope = {(rule.tier, rule.family): rule for rule in rules}
    found = []
    for item in bench.asked:
        rule = by_scope.get((item.question.tier or "", item.question.family))
        if rule is None:
            found.append(Treatment())
            continue
        share = rule.share_at(values[item.question.question_id][rule.metric])
        found.append(Treatment(rule.method, 0, share))
    return found


def _scopes(bench: Bench) -> list[tuple[str | None, str, np.ndarray]]:
    keys = [(a.question.tier, a.question.family) for a in bench.asked]
    wanted = [
        (tier, family) for tier in dict.fromkeys(t for t, _ in keys) for family in ("all", *_families(keys, tier))
    ]
    return [
        (tier, family, np.array([i for i, (t, f) in enumerate(keys) if t == tier and family in ("all", f)]))
        for tier, family in wanted
    ]


def _families(keys: Sequence[tuple[str | None, str]], tier: str | None) -> list[str]:
    return list(dict.fromkeys(family for t, family in keys if t == tier))


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
